"""Fusion of infrared and visible images: one image that shows what both show."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax.data.image_fusion import batches as data
from crossattn_jax.metrics import image_fusion as metrics
from crossattn_jax.tasks import base, review
from crossattn_jax.tasks.image_fusion import losses, predictions, serving, tables

ROUNDINGS = ('truncate', 'round')


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of a fusion experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'image_fusion',
      # Of the loss that keeps edges: gradients of both images.
      'gradient_weight': 20.0,
      # Of the loss that keeps brightness.
      'intensity_weight': 20.0,
      # (share of the pixels, target), the most salient first; see `fusion_loss` for targets.
      'segments': losses.SEGMENTS,
      # How results become 8-bit levels: 'truncate' as published, or 'round'.
      'rounding': 'truncate',
      # Whether evaluation also says how good the mean of both images is.
      'compare_with_average': False,
      # (height, width) of the largest images that an exported model takes.
      'serving_size': (480, 640),
    }
  )
  config.dataset = data.default_config()
  return config


class ImageFusion(base.Task):
  """Makes one image of a registered visible and infrared image."""

  Examples = data.Examples
  Predictor = predictions.Predictor
  Serving = serving.Serving

  def __init__(self, config: ml_collections.ConfigDict):
    _check(config)
    super().__init__(config)
    self._crop = tuple(config.dataset.image_size)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Luma in 0..255 of both images, `[batch, height, width, 1]`."""
    image = jax.ShapeDtypeStruct((batch_size, *self._crop, 1), jnp.float32)
    return {'visible': image, 'infrared': image}

  def model_inputs(self, batch: base.Batch) -> tuple[jax.Array, jax.Array]:
    """Both images."""
    return batch['visible'], batch['infrared']

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """The loss of a batch over all pixels of all devices."""
    (fused, _), updated = self.forward(variables, batch, jax.random.split(rng), train)
    loss = self._loss(fused, batch)
    reported = {'gradient_loss': loss.gradient.mean(), 'intensity_loss': loss.intensity.mean()}
    return loss.total.mean(), (reported, updated)

  def _loss(
    self, fused: jax.Array, batch: base.Batch, size: jax.Array | None = None
  ) -> losses.FusionLoss:
    config = self.config.task
    return losses.fusion_loss(
      fused,
      batch['visible'],
      batch['infrared'],
      segments=config.segments,
      gradient_weight=config.gradient_weight,
      intensity_weight=config.intensity_weight,
      size=size,
    )

  def evaluate(self, variables: base.Variables, batch: base.Batch) -> base.Evaluation:
    """Sums of the losses, and the images, of which the host computes the metrics."""
    fused, _ = self.model.apply(variables, *self.model_inputs(batch), size=batch['size'])
    loss, mask = self._loss(fused, batch, batch['size']), batch['mask']
    images = {'visible': batch['visible'], 'infrared': batch['infrared'], 'fused': fused}
    return base.Evaluation(
      sums={
        'count': jnp.sum(mask, dtype=jnp.int32),
        'loss': jnp.sum(jnp.where(mask, loss.total, 0)),
        'gradient_loss': jnp.sum(jnp.where(mask, loss.gradient, 0)),
        'intensity_loss': jnp.sum(jnp.where(mask, loss.intensity, 0)),
        'not_finite': jnp.sum(~jnp.isfinite(loss.total) & mask, dtype=jnp.int32),
      },
      examples={name: self.to_bytes(image[..., 0]) for name, image in images.items()}
      | {name: batch[name] for name in ('size', 'index')}
      | {'loss': loss.total},
    )

  def to_bytes(self, levels: jax.Array) -> jax.Array:
    """Levels of 8 bits."""
    if self.config.task.rounding == 'round':
      levels = jnp.round(levels)
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)

  def reduce_examples(self, examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics of each pair `[rows, metrics]`, in float64; NaN where images are too small.

    Its index and its loss stay beside them.
    """
    found: dict[str, list[list[float]]] = {'fused': []}
    if self.config.task.compare_with_average:
      found[tables.AVERAGE] = []
    for row, (height, width) in enumerate(examples['size']):
      fused, *pair = (
        examples[name][row, :height, :width] for name in ('fused', 'visible', 'infrared')
      )
      images = {'fused': fused, tables.AVERAGE: tables.average(*pair)}
      for kind, rows in found.items():
        rows.append(tables.row(metrics.fusion_metrics(images[kind], *pair)))
    shape = (-1, len(metrics.DIRECTIONS))
    rows = {kind: np.array(rows, np.float64).reshape(shape) for kind, rows in found.items()}
    return rows | {name: examples[name] for name in ('index', 'loss')}

  def review(
    self, evaluation: base.Evaluation, examples: Mapping[str, np.ndarray]
  ) -> review.Review:
    """The pairs with the largest loss."""
    loss = examples['loss']
    return review.Review(
      mistakes=review.worst(examples['index'], loss, lambda row: f'loss {loss[row]:.4g}')
    )

  @property
  def metric_modes(self) -> dict[str, str]:
    """Losses are to be low, of the suite each says itself."""
    modes = dict.fromkeys(('loss', 'gradient_loss', 'intensity_loss'), 'min')
    modes |= {
      name: {'up': 'max', 'down': 'min'}[direction]
      for name, direction in metrics.DIRECTIONS.items()
    }
    return modes | ({'better_than_average': 'max'} if self.config.task.compare_with_average else {})

  @property
  def main_metrics(self) -> list[str]:
    """The loss, and what papers print."""
    return ['loss', *metrics.HEADLINE]

  @property
  def metric_words(self) -> dict[str, str]:
    """Losses and the suite, also of the mean of both images."""
    words = dict(metrics.WORDS)
    words |= {f'{tables.AVERAGE}/{name}': f'{x}: of the mean of both' for name, x in words.items()}
    return words | {
      'loss': 'the weighted sum of both losses, mean over pairs',
      'gradient_loss': 'how far edges are from the strongest of both images',
      'intensity_loss': 'how far levels are from those of the images',
      'better_than_average': f'of {len(metrics.HEADLINE)} metrics, those better than of the mean '
      'of both images',
    }

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """Means of the losses and of the suite of `metrics.image_fusion`, and the number of pairs.

    With `compare_with_average` also 'average/NAME', of the mean of both images, and
    'better_than_average': in how many of `metrics.image_fusion.HEADLINE` fusion is better.

    Raises:
      ValueError: fused images have values that are not finite, which no 8-bit level shows.
    """
    sums = evaluation.sums
    self.check_finite(sums, 'values')
    count = int(sums['count'])
    results = {
      name: float(sums[name]) / count for name in ('loss', 'gradient_loss', 'intensity_loss')
    }
    means = {
      kind: tables.means(evaluation.examples[kind])
      for kind in ('fused', tables.AVERAGE)
      if kind in evaluation.examples
    }
    results |= means['fused']
    if tables.AVERAGE in means:
      average = means[tables.AVERAGE]
      results |= {f'{tables.AVERAGE}/{name}': value for name, value in average.items()}
      results['better_than_average'] = sum(
        metrics.better(name, means['fused'][name], average[name]) for name in metrics.HEADLINE
      )
    return results | {'examples': count}


def _check(config: ml_collections.ConfigDict) -> None:
  """Refuses wrong values, naming the key."""
  task = config.task
  if task.rounding not in ROUNDINGS:
    raise ValueError(f'config.task.rounding={task.rounding!r} is not one of {", ".join(ROUNDINGS)}')
  shares = [share for share, _ in task.segments]
  if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
    raise ValueError(
      f'config.task.segments={task.segments}: the shares must be positive and add up to 1'
    )
  for _, target in task.segments:
    if target not in losses.TARGETS:
      raise ValueError(
        f'config.task.segments: target {target!r} is not one of {", ".join(losses.TARGETS)}'
      )
  if any(side % 4 for side in task.serving_size):
    raise ValueError(f'config.task.serving_size={task.serving_size} must be multiples of 4')
