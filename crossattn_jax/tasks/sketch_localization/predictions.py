"""What a sketch localizer finds in image files and in evaluation images."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath
import jax
import ml_collections
import numpy as np

from crossattn_jax import config_errors
from crossattn_jax.data import levels
from crossattn_jax.data.detection import batches as photos
from crossattn_jax.data.sketch_localization import rasters, reading
from crossattn_jax.models.sketch_localizer import attention_maps
from crossattn_jax.tasks import base, predictor, review
from crossattn_jax.tasks.detection import predictions as detection
from crossattn_jax.tasks.sketch_localization import pictures


@dataclasses.dataclass(frozen=True)
class Shown(detection.Shown):
  """An image file, its pixels, and what the network takes of it."""

  example: predictor.Row


class Predictor(detection.Predictor):
  """Writes the objects that sketches show: over images, as records, as a result file of COCO.

  All images are searched for one object, of which `config.predict.sketch` has one sketch or more.
  Pictures show it as the network sees it, and how much places of the image look at its lines.
  """

  fields = (
    predictor.Field('image', 'image', 'Photo'),
    predictor.Field('sketch', 'drawing', 'Sketch of what is searched for'),
  )
  draw = predictor.with_class_names(pictures.found_and_looks)
  draw_sheet = predictor.with_class_names(pictures.sheet)

  def input_of(self, files: Mapping[str, epath.Path]) -> epath.Path:
    """The photo; it is searched for what the sketch shows."""
    self.task.config.predict.sketch = str(files['sketch'])
    return files['image']

  @classmethod
  def check(cls, task: base.Task) -> list[str]:
    """Says how sketches become such as were learnt; raises what `read_sketches` raises."""
    style = rasters.style_of(task.config.dataset.sketches)
    drawn = (
      f'drawn as those that were learnt from: in {style.line_width}-pixel lines, '
      f'{"white on black" if style.invert else "black on white"}'
    )
    lines = []
    for path, drawing in read_sketches(task.config).items():
      lines.append(f'sketch {path}: {"; ".join([*drawing.notes, drawn])}')
      if drawing.doubt:
        lines.append(f'warning: sketch {path}: {drawing.doubt}')
    return lines

  def begin(self, inputs: Sequence[predictor.Input]) -> None:
    """Reads the sketches, too."""
    super().begin(inputs)
    config = self.task.config.dataset
    drawings = read_sketches(self.task.config)
    self._notes = {path: '; '.join(drawing.notes) for path, drawing in drawings.items()}
    pixels = [rasters.raster(drawing.strokes, config.sketches) for drawing in drawings.values()]
    self._sketches = np.stack([rasters.normalized(x, config) for x in pixels])

  def load(self, source: predictor.Input) -> predictor.Loaded:
    """An image and the sketches as evaluation has them, and the image as the file has it."""
    (path,) = source.paths
    batch, image = photos.read_image(path, self.task.config.dataset)
    example = predictor.row_of(batch, 0) | {'sketches': self._sketches}
    return predictor.Loaded(example, Shown(path, np.asarray(image), example))

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Detections in pixels of the image files, and where the images look at lines of the sketches.

    Returns:
      `boxes`, `scores` and `labels`, and 'attention/NAME' for each of `attention_maps.of_lines`.
    """
    found, _, features = self.task.find(variables, batch)
    looks = attention_maps.of_lines(features, batch['sketches'])
    fields = {name: x for name, x in vars(found).items() if x is not None}
    return fields | {f'attention/{name}': x for name, x in looks.items()}

  def record(
    self, shown: Shown, result: predictor.Row, files: Mapping[str, epath.Path]
  ) -> predictor.Record:
    """The objects that are shown, best first, and what was done to the sketches."""
    return {'sketches': self._notes} | super().record(shown, result, files)

  def sample(self, shown: Shown, result: predictor.Row) -> pictures.Sample:
    """An image with what was found."""
    return self._sample(shown.image, shown.example, result)

  def evaluation_sample(self, example: predictor.Row, result: predictor.Row) -> pictures.Sample:
    """The same in the size that the network saw, with the true objects and their category."""
    plain = super().evaluation_sample(example, result)
    sample = self._sample(plain.image, example, result)
    name = self.task.categories[example['category']]
    return dataclasses.replace(sample, found=plain.found, true=plain.true, name=name)

  def mistake_sample(self, sample: pictures.Sample, mistake: review.Mistake) -> pictures.Sample:
    """The same with what is missed and what is false, and what was searched for."""
    marked = super().mistake_sample(sample, mistake)
    return dataclasses.replace(marked, name=f'{sample.name}: {mistake.text}')

  def _sample(
    self, image: np.ndarray, example: predictor.Row, result: predictor.Row
  ) -> pictures.Sample:
    looks = {
      name.removeprefix('attention/'): _within(x, example)
      for name, x in result.items()
      if name.startswith('attention/')
    }
    sketches = levels.denormalize(example['sketches'], self.task.config.dataset)
    return pictures.Sample(image, self.shown_objects(result), sketches=sketches, looks=looks)


def read_sketches(config: ml_collections.ConfigDict) -> dict[str, reading.Drawing]:
  """The drawings that `config.predict.sketch` names, by their paths.

  Raises:
    ConfigError: it is not set.
    FileNotFoundError: there are no such files.
    ValueError: one of them is no drawing.
  """
  if not config.predict.sketch:
    raise config_errors.ConfigError(
      'nothing says what to search for: set --config.predict.sketch=FILE, a drawing of it '
      'such as crossattn_jax/samples/sketches/cup.png (there are house.png, fish.svg and '
      'drop.ndjson, too), or FILE,FILE or a folder with several of the same'
    )
  return {path: reading.read(path) for path in reading.find(config.predict.sketch)}


def _within(values: np.ndarray, example: predictor.Row) -> np.ndarray:
  """The part of a map over the network's input where there is image."""
  share = example['image_size'] / example['image'].shape[:2]
  rows, columns = np.ceil(share * values.shape).astype(int)
  return values[:rows, :columns]
