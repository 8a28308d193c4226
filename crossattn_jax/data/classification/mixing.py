"""Mixup and CutMix on device: every image of a batch is mixed with its mirror image in the batch.

Sources: mixup, Zhang et al. 2018 (arXiv 1710.09412); CutMix, Yun et al. 2019 (arXiv 1905.04899).
Both use one mixing weight for the whole batch, as the DeiT and CrossViT recipes do.
"""

import jax
import jax.numpy as jnp


def smoothed_one_hot(
  labels: jax.Array, num_classes: int, smoothing: float = 0.0, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """One-hot targets with `smoothing` of the mass spread evenly over all classes.

  Args:
    labels: integer classes `[batch]`.
    num_classes: number of classes.
    smoothing: mass taken from the true class, in [0, 1).
    dtype: of the result.

  Returns:
    `[batch, num_classes]`; every row sums to one.
  """
  off = smoothing / num_classes
  true = labels[..., None] == jnp.arange(num_classes)
  return jnp.where(true, 1.0 - smoothing + off, off).astype(dtype)


def mixup_targets(
  labels: jax.Array,
  num_classes: int,
  lam: jax.Array | float,
  smoothing: float = 0.0,
  dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
  """Soft targets of a batch mixed with its reverse.

  Args:
    labels: integer classes `[batch]`.
    num_classes: number of classes.
    lam: weight of the sample itself; its partner, sample `batch - 1 - n`, has `1 - lam`.
    smoothing: label smoothing of both.
    dtype: of the result.

  Returns:
    `[batch, num_classes]`.
  """
  targets = smoothed_one_hot(labels, num_classes, smoothing, dtype)
  return targets * lam + targets[::-1] * (1.0 - lam)


def mixup(images: jax.Array, lam: jax.Array | float) -> jax.Array:
  """Blends every image with its partner: `lam * x[n] + (1 - lam) * x[batch - 1 - n]`."""
  lam = jnp.asarray(lam, images.dtype)
  return images * lam + images[::-1] * (1 - lam)


def cutmix(images: jax.Array, lam: jax.Array, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Pastes one box of the partner image into every image.

  The box has the area share `1 - lam` and a uniformly drawn centre; what leaves the image is cut.

  Args:
    images: `[batch, height, width, channels]`.
    lam: wanted share of the image that stays.
    rng: key of the box position.

  Returns:
    The mixed images, and the share that really stayed (the box may have been cut).
  """
  height, width = images.shape[1:3]
  rng_y, rng_x = jax.random.split(rng)
  side = jnp.sqrt(1.0 - lam)
  box_height = jnp.floor(height * side).astype(jnp.int32)
  box_width = jnp.floor(width * side).astype(jnp.int32)
  center_y = jax.random.randint(rng_y, (), 0, height)
  center_x = jax.random.randint(rng_x, (), 0, width)
  top = jnp.clip(center_y - box_height // 2, 0, height)
  bottom = jnp.clip(center_y + box_height // 2, 0, height)
  left = jnp.clip(center_x - box_width // 2, 0, width)
  right = jnp.clip(center_x + box_width // 2, 0, width)
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
  inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
  kept = 1.0 - (bottom - top) * (right - left) / (height * width)
  return jnp.where(inside[None, :, :, None], images[::-1], images), kept


def mix_batch(
  images: jax.Array,
  labels: jax.Array,
  rng: jax.Array,
  *,
  num_classes: int,
  smoothing: float = 0.0,
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
  probability: float = 1.0,
  switch_probability: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
  """Applies mixup or CutMix to a whole batch, or neither, as the DeiT recipe does.

  Args:
    images: `[batch, height, width, channels]`.
    labels: integer classes `[batch]`.
    rng: key of this step.
    num_classes: number of classes.
    smoothing: label smoothing.
    mixup_alpha: parameter of the Beta distribution of mixup's weight; 0 switches mixup off.
    cutmix_alpha: the same for CutMix.
    probability: of mixing the batch at all.
    switch_probability: of CutMix where both are on.

  Returns:
    Images in the shape and dtype given, and soft targets `[batch, num_classes]` in float32.
  """
  rng_apply, rng_switch, rng_mixup, rng_cutmix, rng_box = jax.random.split(rng, 5)
  enabled = jax.random.uniform(rng_apply) < probability
  if mixup_alpha > 0 and cutmix_alpha > 0:
    use_cutmix = jax.random.uniform(rng_switch) < switch_probability
  else:
    use_cutmix = jnp.asarray(cutmix_alpha > 0)

  mixed, kept = images, jnp.ones(())
  if mixup_alpha > 0:
    kept = jax.random.beta(rng_mixup, mixup_alpha, mixup_alpha)
    mixed = mixup(images, kept)
  if cutmix_alpha > 0:
    pasted, share = cutmix(images, jax.random.beta(rng_cutmix, cutmix_alpha, cutmix_alpha), rng_box)
    mixed = jnp.where(use_cutmix, pasted, mixed)
    kept = jnp.where(use_cutmix, share, kept)
  kept = jnp.where(enabled, kept, 1.0)
  return (
    jnp.where(enabled, mixed, images),
    mixup_targets(labels, num_classes, kept, smoothing),
  )
