"""Losses of what detectors say of every cell: masks of queries, classes of a backbone's tokens.

Sources: DETR, Carion et al. 2020 (arXiv 2005.12872), appendix; token labels as in the code of ViDT,
Song et al. 2022 (arXiv 2110.03921).
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.layers import pooling, resize
from crossattn_jax.tasks.detection import losses as losses_lib

Losses = dict[str, jax.Array]

focal_loss = functools.partial(losses_lib.binary_cross_entropy, gamma=2)


def dice_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """One less twice the shared share of two masks; 1 is added above and below.

  Args:
    logits: `[..., cells]`.
    targets: `[..., cells]`, from 0 to 1.

  Returns:
    `[...]`.
  """
  probability = nn.sigmoid(logits)
  shared = 2 * (probability * targets).sum(axis=-1)
  return 1 - (shared + 1) / (probability.sum(axis=-1) + targets.sum(axis=-1) + 1)


def mask_losses(
  logits: jax.Array, masks: jax.Array, is_truth: jax.Array, count: jax.Array | float
) -> Losses:
  """Losses of the masks of matched queries, bilinearly resized to their objects' masks.

  Args:
    logits: `[batch, truths, height, width]`, of the queries that the objects are matched with.
    masks: bool `[batch, truths, rows, columns]`.
    is_truth: bool `[batch, truths]`, False in padding.
    count: of objects by which the losses are divided.

  Returns:
    'mask_loss', a focal loss, and 'dice_loss', scalars.
  """
  resized = resize.resize(logits[..., None], masks.shape[-2:], 'bilinear')
  logits, targets = (x.reshape(*is_truth.shape, -1) for x in (resized, masks))
  targets = targets.astype(logits.dtype)
  losses = {
    'mask_loss': focal_loss(logits, targets).mean(axis=-1),
    'dice_loss': dice_loss(logits, targets),
  }
  return {name: jnp.where(is_truth, x, 0).sum() / count for name, x in losses.items()}


def token_label_losses(
  levels: Sequence[jax.Array], masks: jax.Array, labels: jax.Array, count: jax.Array | float
) -> Losses:
  """Losses of tokens that say which classes, in which shares, they see.

  Class 0 is set to be whether there is anything. Where masks overlap, the first one counts.

  Args:
    levels: `[batch, height, width, classes]`, logits of the tokens of each map.
    masks: bool `[batch, truths, rows, columns]`.
    labels: `[batch, truths]`, -1 in padding.
    count: of objects by which the losses are divided.

  Returns:
    'token_focal_loss' and 'token_dice_loss', scalars, summed over the maps.
  """
  masks &= (labels >= 0)[..., None, None]
  first = jnp.argmax(masks, axis=1)[:, None]
  labels = jnp.broadcast_to(jnp.maximum(labels, 0)[..., None, None], masks.shape)
  seen = jnp.where(masks.any(axis=1), jnp.take_along_axis(labels, first, axis=1)[:, 0], 0)
  shares = nn.one_hot(seen, levels[0].shape[-1], dtype=levels[0].dtype)
  shares = shares.at[..., 0].set(1 - shares[..., 0])
  focal, dice = 0, 0
  for logits in levels:
    targets = pooling.adaptive_average_pool(shares, logits.shape[1:3])
    of_cells = focal_loss(logits, targets)
    focal += of_cells.mean(axis=(1, 2)).sum()
    dice += dice_loss(*(x.reshape(len(x), -1) for x in (logits, targets))).sum()
  return {'token_focal_loss': focal / count, 'token_dice_loss': dice / count}
