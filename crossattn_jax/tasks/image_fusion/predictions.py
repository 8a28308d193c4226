"""What a fusion network makes of pairs of image files and of evaluation pairs."""

from collections.abc import Mapping, Sequence

from etils import epath
import jax
import numpy as np
from PIL import Image

from crossattn_jax.data.image_fusion import batches as data
from crossattn_jax.data.image_fusion import colors
from crossattn_jax.metrics import image_fusion as metrics
from crossattn_jax.tasks import attention_maps, base, drawing, pair_inputs, predictor
from crossattn_jax.tasks.image_fusion import pictures, tables


class Predictor(pair_inputs.PairInputs, predictor.FilePredictor):
  """Writes fused images, what they were fused from beside them, and how good they are.

  `fused/NAME.png` has the colours of the visible image where it has any. Metrics are of the luma;
  `metrics.csv` has a row per pair, `metrics.md` the means, also those of the mean of both images.
  """

  kinds = ('fused',)
  shown_files = ('fused', 'picture')
  num_samples = 8
  draw = staticmethod(pictures.side_by_side)
  draw_sheet = staticmethod(pictures.sheet)

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
  """The maps of a pair, without what is beyond it; 1 is the mean of what is left."""
  shown = {}
  for name, attention in attention_maps.of_example(result).items():
    rows, columns = (
      -(-side * count // length)
      for side, count, length in zip(
        result['size'], attention.weights.shape, result['fused'].shape, strict=True
      )
    )
    inside = attention.weights[:rows, :columns]
    shown[name] = attention_maps.Attention(inside / max(inside.mean(), 1e-12))
  return shown
