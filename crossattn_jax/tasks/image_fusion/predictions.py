"""What a fusion network makes of pairs of image files and of evaluation pairs."""

import collections
from collections.abc import Mapping, Sequence

from etils import epath
import jax
import numpy as np
from PIL import Image

from crossattn_jax.data import pairing
from crossattn_jax.data import sources as files_lib
from crossattn_jax.data.image_fusion import batches as data
from crossattn_jax.data.image_fusion import colors
from crossattn_jax.metrics import image_fusion as metrics
from crossattn_jax.tasks import attention_maps, base, drawing, predictor
from crossattn_jax.tasks.image_fusion import pictures, tables


class Predictor(predictor.FilePredictor):
  """Writes fused images, what they were fused from beside them, and how good they are.

  `fused/NAME.png` has the colours of the visible image where it has any. Metrics are of the luma;
  `metrics.csv` has a row per pair, `metrics.md` the means, also those of the mean of both images.
  """

  expected = (
    f'a folder with one folder of visible images ({", ".join(pairing.VISIBLE_FOLDERS)}) and one of '
    f'infrared images ({", ".join(pairing.INFRARED_FOLDERS)}), or VISIBLE,INFRARED: two folders or '
    'two files'
  )
  kinds = ('fused',)
  num_samples = 8
  draw = staticmethod(pictures.side_by_side)
  draw_sheet = staticmethod(pictures.sheet)

  @classmethod
  def find_inputs(
    cls, given: epath.Path, apart_from: epath.Path | None = None
  ) -> tuple[list[predictor.Input], collections.Counter[str]]:
    """The pairs, whose files are named equally below both folders.

    Args:
      given: as `expected` says.
      apart_from: unused: results lie in none of the two folders.

    Returns:
      The pairs, and how many other files there are, by their extension.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: it is none of these, or an image has no partner.
    """
    parts = [epath.Path(part) for part in str(given).split(',')]
    for part in parts:
      if not part.exists():
        raise FileNotFoundError(f'--input={given}: {part} does not exist; expected {cls.expected}')
    if len(parts) == 1 and parts[0].is_dir():
      parts = list(pairing.find_folders(parts[0]) or ())
    if len(parts) != 2 or parts[0].is_dir() != parts[1].is_dir():
      raise ValueError(f'--input={given}: expected {cls.expected}')
    if not parts[0].is_dir():
      return [predictor.Input(parts[0].stem, tuple(map(str, parts)))], collections.Counter()
    found, left_out = zip(*map(files_lib.find_files, parts), strict=True)
    pairs = pairing.pair_files(*found, *parts)
    if not pairs:
      raise FileNotFoundError(f'--input={given}: no images in {parts[0]} and {parts[1]}')
    inputs = [
      predictor.Input(predictor.relative_name(pair[0], parts[0]), tuple(map(str, pair)))
      for pair in pairs
    ]
    return inputs, left_out[0] + left_out[1]

  def load(self, source: predictor.Input) -> predictor.Loaded:
    """A pair, padded to its bucket, and as its files have it."""
    pair = data.read_pair(*source.paths, self.task.config.dataset)
    batch = data.prepare_pair(pair, self.task.config.dataset)
    return predictor.Loaded(predictor.row_of(batch, 0), pair)

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Fuses pairs as `data.prepare_pair` makes them.

    Returns:
      `fused` uint8 `[batch, height, width]`, of which `size` counts, `size`, and where the model
      has them attention maps `attention_maps/NAME` over the padded images.
    """
    images, model = self.task.model_inputs(batch), self.task.model
    fused, features = model.apply(variables, *images, size=batch['size'])
    outputs = {'fused': self.task.to_bytes(fused[..., 0]), 'size': batch['size']}
    return outputs | attention_maps.outputs(model, features)

  def source_record(self, source: predictor.Input) -> predictor.Record:
    """Both files."""
    return dict(zip(('visible', 'infrared'), source.paths, strict=True))

  def record(
    self, shown: data.Pair, result: predictor.Row, files: Mapping[str, epath.Path]
  ) -> predictor.Record:
    """Metrics of the fused image, which is written, and of the mean of both images."""
    drawing.write_png(files['fused'], Image.fromarray(_fused(shown, result)))
    luma = _luma(result)
    if min(luma.shape) < metrics.SMALLEST_SIDE:
      return {}
    images = colors.luma(shown.visible), colors.luma(shown.infrared)
    return {
      'metrics': metrics.fusion_metrics(luma, *images),
      'metrics_of_mean': metrics.fusion_metrics(tables.average(*images), *images),
    }

  def summarize(self, records: Sequence[predictor.Record], output: epath.Path) -> None:
    """Writes both tables of metrics."""
    (output / 'metrics.csv').write_text(tables.to_csv(records))
    methods = {self.task.config.model.name: 'metrics', 'mean of both images': 'metrics_of_mean'}
    rows = {
      name: [tables.row(record[key]) for record in records if key in record]
      for name, key in methods.items()
    }
    if all(rows.values()):
      means = {name: tables.means(np.array(values)) for name, values in rows.items()}
      (output / 'metrics.md').write_text(tables.to_markdown(means))

  def sample(self, shown: data.Pair, result: predictor.Row) -> pictures.Sample:
    """A pair with what was made of it and attention."""
    fused = _fused(shown, result)
    return pictures.Sample(shown.visible, shown.infrared, fused, _attention(result))

  def evaluation_sample(self, example: predictor.Row, result: predictor.Row) -> pictures.Sample:
    """The same of the luma."""
    height, width = result['size']
    both = (example[name][:height, :width, 0] for name in ('visible', 'infrared'))
    images = (image.astype(np.uint8) for image in both)
    return pictures.Sample(*images, _luma(result), _attention(result))


def _luma(result: predictor.Row) -> np.ndarray:
  height, width = result['size']
  return result['fused'][:height, :width]


def _fused(pair: data.Pair, result: predictor.Row) -> np.ndarray:
  """The fused image in the colours of the visible one, where it has any."""
  luma = _luma(result)
  return luma if colors.is_grey(pair.visible) else colors.recolor(luma, pair.visible)


def _attention(result: predictor.Row) -> dict[str, attention_maps.Attention]:
  """The maps of a pair, without what is beyond it."""
  shown = {}
  for name, attention in attention_maps.of_example(result).items():
    rows, columns = (
      -(-side * count // length)
      for side, count, length in zip(
        result['size'], attention.weights.shape, result['fused'].shape, strict=True
      )
    )
    shown[name] = attention_maps.Attention(attention.weights[:rows, :columns])
  return shown
