"""Fusion of infrared and visible images: one image that shows what both show."""

from collections.abc import Mapping, Sequence
import csv
import io
import json
import pathlib
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from crossattn_jax.data.image_fusion import batches as data
from crossattn_jax.data.image_fusion import sources
from crossattn_jax.metrics import image_fusion as metrics
from crossattn_jax.tasks import base, pictures
from crossattn_jax.tasks.image_fusion import losses
from crossattn_jax.tasks.image_fusion import pictures as fusion_pictures

ROUNDINGS = ('truncate', 'round')
AVERAGE = 'average'


def default_config() -> ml_collections.ConfigDict:
  """The `task` and `dataset` sections of a fusion experiment."""
  config = ml_collections.ConfigDict()
  config.task = ml_collections.ConfigDict(
    {
      'name': 'image_fusion',
      'gradient_weight': 20.0,
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


def create_task(config: ml_collections.ConfigDict) -> 'ImageFusion':
  """Builds the task; see `tasks.create_task`."""
  return ImageFusion(config)


class ImageFusion(base.Task):
  """Makes one image of a registered visible and infrared image."""

  Examples = data.Examples

  def __init__(self, config: ml_collections.ConfigDict):
    _check(config)
    super().__init__(config)
    self._crop = tuple(config.dataset.image_size)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Luma in 0..255 of both images, `[batch, height, width, 1]`."""
    image = jax.ShapeDtypeStruct((batch_size, *self._crop, 1), jnp.float32)
    return {'visible': image, 'infrared': image}

  def init(self, rng: jax.Array) -> base.Variables:
    """Initial variables of the model."""
    image = jnp.zeros((1, *self._crop, 1))
    return self.model.init({'params': rng}, image, image)

  def loss(
    self, variables: base.Variables, batch: base.Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], base.Variables]]:
    """The loss of a batch over all pixels of all devices."""
    del rng
    state = [name for name in variables if name != 'params']
    (fused, _), updated = self.model.apply(
      variables,
      batch['visible'],
      batch['infrared'],
      train=train,
      mutable=state if train else [],
    )
    loss = self._loss(fused, batch)
    reported = {
      'gradient_loss': loss.gradient.mean(),
      'intensity_loss': loss.intensity.mean(),
    }
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
    fused, _ = self.model.apply(variables, batch['visible'], batch['infrared'], size=batch['size'])
    loss, mask = self._loss(fused, batch, batch['size']), batch['mask']
    images = {'visible': batch['visible'], 'infrared': batch['infrared'], 'fused': fused}
    return base.Evaluation(
      sums={
        'count': jnp.sum(mask, dtype=jnp.int32),
        'loss': jnp.sum(jnp.where(mask, loss.total, 0)),
        'gradient_loss': jnp.sum(jnp.where(mask, loss.gradient, 0)),
        'intensity_loss': jnp.sum(jnp.where(mask, loss.intensity, 0)),
      },
      examples={name: self._to_bytes(image[..., 0]) for name, image in images.items()}
      | {'size': batch['size']},
    )

  def _to_bytes(self, levels: jax.Array) -> jax.Array:
    if self.config.task.rounding == 'round':
      levels = jnp.round(levels)
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)

  def reduce_examples(self, examples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics of each pair `[rows, metrics]`, in float64; NaN where images are too small."""
    kinds = ['fused', *([AVERAGE] if self.config.task.compare_with_average else [])]
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for row, (height, width) in enumerate(examples['size']):
      images = {
        name: examples[name][row, :height, :width] for name in ('fused', 'visible', 'infrared')
      }
      images[AVERAGE] = average(images['visible'], images['infrared'])
      for kind in kinds:
        values = metrics.fusion_metrics(images[kind], images['visible'], images['infrared'])
        found[kind].append([values.get(name, np.nan) for name in metrics.DIRECTIONS])
    shape = (-1, len(metrics.DIRECTIONS))
    return {kind: np.array(rows, np.float64).reshape(shape) for kind, rows in found.items()}

  def metrics(self, evaluation: base.Evaluation) -> dict[str, float]:
    """Means of the losses and of the suite of `metrics.image_fusion`, and the number of pairs.

    With `compare_with_average` also 'average/NAME', of the mean of both images, and
    'better_than_average': in how many of `metrics.image_fusion.HEADLINE` fusion is better.
    """
    sums = evaluation.sums
    count = int(sums['count'])
    results = {
      name: float(sums[name]) / count for name in ('loss', 'gradient_loss', 'intensity_loss')
    }
    means = {kind: _means(rows) for kind, rows in evaluation.examples.items()}
    results |= means['fused']
    if AVERAGE in means:
      results |= {f'{AVERAGE}/{name}': value for name, value in means[AVERAGE].items()}
      results['better_than_average'] = sum(
        metrics.better(name, means['fused'][name], means[AVERAGE][name])
        for name in metrics.HEADLINE
      )
    return results | {'examples': count}

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Fuses pairs as `data.prepare_pair` makes them.

    Returns:
      `fused` uint8 `[batch, height, width]`, of which `size` counts, and where the model has them
      attention maps `attention_maps/NAME` over the padded images.
    """
    fused, features = self.model.apply(
      variables, batch['visible'], batch['infrared'], size=batch['size']
    )
    outputs = {'fused': self._to_bytes(fused[..., 0])}
    return outputs | pictures.attention_outputs(self.model, features)

  def list_inputs(self, inputs: epath.Path) -> list[epath.Path]:
    """The files of pairs, all visible ones first.

    Args:
      inputs: a folder that has a folder of visible ('vi', 'visible', ...) and one of infrared
        images ('ir', 'infrared', ...); or two folders, or two files, joined by a comma, the visible
        one first.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: it is none of these, or an image has no partner.
    """
    parts = [epath.Path(part) for part in str(inputs).split(',')]
    for part in parts:
      if not part.exists():
        raise FileNotFoundError(f'--input={inputs}: {part} does not exist')
    if len(parts) == 1 and parts[0].is_dir():
      parts = list(sources.find_folders(parts[0]) or ())
    if len(parts) != 2 or parts[0].is_dir() != parts[1].is_dir():
      raise ValueError(
        f'--input={inputs}: expected a folder with one folder of visible images '
        f'({", ".join(sources.VISIBLE_FOLDERS)}) and one of infrared images '
        f'({", ".join(sources.INFRARED_FOLDERS)}), or VISIBLE,INFRARED: two folders or two files'
      )
    if not parts[0].is_dir():
      return parts
    pairs = sources.pair_files(*(sources.list_images(part) for part in parts))
    if not pairs:
      raise FileNotFoundError(f'--input={inputs}: no images in {parts[0]} and {parts[1]}')
    return [pair[0] for pair in pairs] + [pair[1] for pair in pairs]

  def write_predictions(
    self, variables: base.Variables, inputs: Sequence[epath.Path], output: epath.Path
  ) -> list[dict[str, Any]]:
    """Writes the fused images, what they were fused from beside them, and how good they are.

    `fused/NAME.png` has the colours of the visible image where it has any; `NAME.png` is a sheet of
    both images, the fused one, and attention maps; `metrics.csv` has a row per pair, `metrics.md`
    the means, also those of the mean of both images; `predictions.json` repeats the former. Metrics
    are of the luma.

    Args:
      variables: of the model.
      inputs: all visible files, then the infrared ones in the same order.
      output: an existing folder.

    Returns:
      One record per pair.

    Raises:
      ValueError: a pair is not aligned, or a file unreadable.
    """
    if len(inputs) % 2:
      raise ValueError(
        f'{len(inputs)} files make no pairs: give all visible files, then as many infrared ones'
      )
    predict = jax.jit(self.predict)
    (output / 'fused').mkdir(parents=True, exist_ok=True)
    records, tables = [], {'fused': [], AVERAGE: []}
    half = len(inputs) // 2
    for visible_path, infrared_path in zip(inputs[:half], inputs[half:], strict=True):
      pair = data.read_pair(visible_path, infrared_path)
      batch = data.prepare_pair(pair, self.config.dataset)
      outputs = jax.device_get(predict(variables, batch))
      height, width = batch['size'][0]
      luma = outputs['fused'][0, :height, :width]
      visible, infrared = data.luma(pair.visible), data.luma(pair.infrared)
      fused = luma if data.is_grey(pair.visible) else data.recolor(luma, pair.visible)
      files = {
        'fused': output / 'fused' / f'{visible_path.stem}.png',
        'picture': output / f'{visible_path.stem}.png',
      }
      fusion_pictures.write_image(files['fused'], fused)
      fusion_pictures.side_by_side(
        files['picture'],
        fusion_pictures.Sample(pair.visible, pair.infrared, fused),
        _attention(outputs, (height, width)),
      )
      record = {
        'visible': str(visible_path),
        'infrared': str(infrared_path),
        **{kind: str(path) for kind, path in files.items()},
      }
      if min(luma.shape) >= metrics.SMALLEST_SIDE:
        mean = average(visible, infrared)
        for kind, image in (('fused', luma), (AVERAGE, mean)):
          values = metrics.fusion_metrics(image, visible, infrared)
          tables[kind].append([values.get(name, np.nan) for name in metrics.DIRECTIONS])
          if kind == 'fused':
            record['metrics'] = values
      records.append(record)
    (output / 'predictions.json').write_text(json.dumps(records, indent=2) + '\n')
    (output / 'metrics.csv').write_text(_csv(records))
    if tables['fused']:
      rows = {self.config.model.name: tables['fused'], 'mean of both images': tables[AVERAGE]}
      means = {name: _means(np.array(values)) for name, values in rows.items()}
      (output / 'metrics.md').write_text(_markdown(means))
    return records

  def write_samples(self, variables: base.Variables, path: epath.Path) -> None:
    """Writes a sheet of evaluation pairs and what was made of them."""
    batch = next(iter(self.eval_data(8, 0, 1)))
    inputs = {name: batch[name] for name in ('visible', 'infrared', 'size')}
    fused = jax.device_get(jax.jit(self.predict)(variables, inputs)['fused'])
    samples = []
    for row in np.flatnonzero(batch['mask']):
      height, width = batch['size'][row]
      both = (batch[name][row, :height, :width, 0] for name in ('visible', 'infrared'))
      samples.append(
        fusion_pictures.Sample(
          *(image.astype(np.uint8) for image in both), fused[row, :height, :width]
        )
      )
    fusion_pictures.sheet(path, samples)

  def serving(self) -> base.Serving:
    """Luma of pairs of any size up to `serving_size` in, fused luma out."""
    size = tuple(self.config.task.serving_size)
    image = jax.ShapeDtypeStruct((*size, 1), jnp.float32)

    def run(variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
      fused, _ = self.model.apply(
        variables, inputs['visible'], inputs['infrared'], size=inputs['size']
      )
      return {'fused': fused}

    return base.Serving(
      run=run,
      inputs={
        'visible': image,
        'infrared': image,
        'size': jax.ShapeDtypeStruct((2,), jnp.int32),
      },
      description={
        'preprocessing': data.describe_preprocessing(),
        'rounding': self.config.task.rounding,
      },
      script=pathlib.Path(__file__).with_name('serving_script.py'),
    )


def average(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
  """The mean of two images, uint8, rounded: what every fusion should be better than."""
  return np.rint((visible.astype(np.float64) + infrared) / 2).astype(np.uint8)


def _means(rows: np.ndarray) -> dict[str, float]:
  """Means over the pairs that have a metric, by its name."""
  return {
    name: float(np.mean(column[~np.isnan(column)]))
    for name, column in zip(metrics.DIRECTIONS, rows.T, strict=True)
    if not np.isnan(column).all()
  }


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
  file = io.StringIO()
  found = {name for record in records for name in record.get('metrics', {})}
  names = [name for name in metrics.DIRECTIONS if name in found]
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(['visible', 'infrared', *names])
  for record in records:
    values = record.get('metrics', {})
    writer.writerow([record['visible'], record['infrared'], *(values.get(n, '') for n in names)])
  return file.getvalue()


def _markdown(means: Mapping[str, Mapping[str, float]]) -> str:
  """A table with a row per method; arrows say what is better."""
  names = list(next(iter(means.values())))
  arrows = {'up': '↑', 'down': '↓'}
  lines = [
    '| method | ' + ' | '.join(f'{n} {arrows[metrics.DIRECTIONS[n]]}' for n in names) + ' |',
    '|---' * (len(names) + 1) + '|',
  ]
  for method, values in means.items():
    lines.append(f'| {method} | ' + ' | '.join(f'{values[n]:.4f}' for n in names) + ' |')
  return '\n'.join(lines) + '\n'


def _attention(
  outputs: Mapping[str, np.ndarray], size: tuple[int, int]
) -> dict[str, pictures.Attention]:
  """The maps of the first pair, without what is beyond it."""
  bucket = outputs['fused'].shape[1:3]
  shown = {}
  for name, attention in pictures.attention_of(outputs, 0).items():
    rows, columns = (
      -(-side * count // length)
      for side, count, length in zip(size, attention.weights.shape, bucket, strict=True)
    )
    shown[name] = pictures.Attention(attention.weights[:rows, :columns])
  return shown


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
