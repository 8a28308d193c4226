"""What a fusion network makes of pairs of image files and of evaluation pairs."""

from collections.abc import Mapping, Sequence

from etils import epath
import jax
import numpy as np
from PIL import Image

from crossattn_jax.data.image_fusion import batches as data
from crossattn_jax.data.image_fusion import colors, sources
from crossattn_jax.metrics import image_fusion as metrics
from crossattn_jax.tasks import attention_maps, base, drawing
from crossattn_jax.tasks.image_fusion import pictures, tables

_SAMPLES = 8


class Predictor(base.Predictor):
  """Writes fused images, what they were fused from beside them, and how good they are."""

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Fuses pairs as `data.prepare_pair` makes them.

    Returns:
      `fused` uint8 `[batch, height, width]`, of which `size` counts, and where the model has them
      attention maps `attention_maps/NAME` over the padded images.
    """
    images, model = self.task.model_inputs(batch), self.task.model
    fused, features = model.apply(variables, *images, size=batch['size'])
    outputs = {'fused': self.task.to_bytes(fused[..., 0])}
    return outputs | attention_maps.outputs(model, features)

  @staticmethod
  def list_inputs(inputs: epath.Path) -> list[epath.Path]:
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

  def predict_files(self, inputs: Sequence[epath.Path], output: epath.Path) -> list[base.Record]:
    """Writes the fused images, pictures and tables of metrics, which are of the luma.

    `fused/NAME.png` has the colours of the visible image where it has any; `NAME.png` is a sheet of
    both images, the fused one, and attention maps; `metrics.csv` has a row per pair, `metrics.md`
    the means, also those of the mean of both images.

    Args:
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
    (output / 'fused').mkdir(parents=True, exist_ok=True)
    half = len(inputs) // 2
    records, rows = [], {self.task.config.model.name: [], 'mean of both images': []}
    for paths in zip(inputs[:half], inputs[half:], strict=True):
      pair = data.read_pair(*paths, self.task.config.dataset)
      luma, files = self._fuse(pair, paths[0].stem, output)
      record = {
        'visible': str(paths[0]),
        'infrared': str(paths[1]),
        **{kind: str(path) for kind, path in files.items()},
      }
      if min(luma.shape) >= metrics.SMALLEST_SIDE:
        images = colors.luma(pair.visible), colors.luma(pair.infrared)
        record['metrics'] = metrics.fusion_metrics(luma, *images)
        average = metrics.fusion_metrics(tables.average(*images), *images)
        for table, values in zip(rows.values(), (record['metrics'], average), strict=True):
          table.append(tables.row(values))
      records.append(record)
    (output / 'metrics.csv').write_text(tables.to_csv(records))
    means = {name: tables.means(np.array(values)) for name, values in rows.items() if values}
    if means:
      (output / 'metrics.md').write_text(tables.to_markdown(means))
    return records

  def _fuse(
    self, pair: data.Pair, name: str, output: epath.Path
  ) -> tuple[np.ndarray, dict[str, epath.Path]]:
    """Writes the fused image and its sheet; returns its luma and the files."""
    batch = data.prepare_pair(pair, self.task.config.dataset)
    outputs = self.outputs(batch)
    height, width = batch['size'][0]
    luma = outputs['fused'][0, :height, :width]
    fused = luma if colors.is_grey(pair.visible) else colors.recolor(luma, pair.visible)
    files = {'fused': output / 'fused' / f'{name}.png', 'picture': output / f'{name}.png'}
    drawing.write_png(files['fused'], Image.fromarray(fused))
    sample = pictures.Sample(pair.visible, pair.infrared, fused)
    pictures.side_by_side(files['picture'], sample, _attention(outputs, (height, width)))
    return luma, files

  def write_samples(self, path: epath.Path) -> None:
    """Writes a sheet of evaluation pairs and what was made of them."""
    batch = next(iter(self.task.eval_data(_SAMPLES, 0, 1)))
    fused = self.outputs({name: batch[name] for name in ('visible', 'infrared', 'size')})['fused']
    samples = []
    for row in np.flatnonzero(batch['mask']):
      height, width = batch['size'][row]
      both = (batch[name][row, :height, :width, 0] for name in ('visible', 'infrared'))
      images = (image.astype(np.uint8) for image in both)
      samples.append(pictures.Sample(*images, fused[row, :height, :width]))
    pictures.sheet(path, samples)


def _attention(
  outputs: Mapping[str, np.ndarray], size: tuple[int, int]
) -> dict[str, attention_maps.Attention]:
  """The maps of the first pair, without what is beyond it."""
  bucket = outputs['fused'].shape[1:3]
  shown = {}
  for name, attention in attention_maps.of_example(outputs, 0).items():
    rows, columns = (
      -(-side * count // length)
      for side, count, length in zip(size, attention.weights.shape, bucket, strict=True)
    )
    shown[name] = attention_maps.Attention(attention.weights[:rows, :columns])
  return shown
