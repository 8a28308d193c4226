"""What a detector makes of pairs of image files and of evaluation pairs."""

from collections.abc import Mapping, Sequence
import dataclasses

from etils import epath
import jax
import numpy as np

from crossattn_jax.data import levels
from crossattn_jax.data.paired_detection import batches as data
from crossattn_jax.tasks import base, pair_inputs, predictor
from crossattn_jax.tasks.detection import pictures as objects_lib
from crossattn_jax.tasks.detection import predictions as detection
from crossattn_jax.tasks.paired_detection import pictures

_KAIST_FILE = 'detections.txt'


@dataclasses.dataclass(frozen=True)
class Shown(detection.Shown):
  """A pair of image files: the RGB one, the pixels of both, and where their array has them."""

  thermal: np.ndarray
  example: predictor.Row


class Predictor(pair_inputs.PairInputs, detection.Predictor):
  """Writes the objects of pairs: over both images, as records, and as a result file of COCO.

  Pictures also show where the best of them look in the other image. `detections.txt` has what was
  found in the form of KAIST's tools, if `config.task.kaist_file`.
  """

  num_samples = 3
  draw = predictor.with_class_names(pictures.side_by_side)
  draw_sheet = predictor.with_class_names(pictures.sheet)

  def load(self, source: predictor.Input) -> predictor.Loaded:
    """A pair in arrays of `image_size`, and as its files have it."""
    batch, pair = data.read_pair(*source.paths, self.task.config.dataset)
    example = predictor.row_of(batch, 0)
    return predictor.Loaded(example, Shown(source.paths[0], pair.rgb, pair.thermal, example))

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Objects in pixels of the files, and where the best ones look in pixels of the arrays.

    Returns:
      `boxes`, `scores`, `labels` and `anchors`, and where the model has such attention
      `attention/rgb`, `attention/thermal` and `attention/query`; see `attention_maps.of_anchors`.
    """
    found, _, looks = self.task.find(variables, batch, self.task.config.task.shown_attention)
    found = self.task.in_files(found, batch)
    fields = {name: x for name, x in vars(found).items() if x is not None}
    return fields | {f'attention/{name}': x for name, x in looks.items()}

  def begin(self, inputs: Sequence[predictor.Input]) -> None:
    """Numbers the pairs, too."""
    super().begin(inputs)
    self._numbers = {source.paths[0]: number for number, source in enumerate(inputs, start=1)}
    self._lines: list[str] = []

  def source_record(self, source: predictor.Input) -> predictor.Record:
    """Both files."""
    return dict(zip(data.MODALITIES, source.paths, strict=True))

  def record(
    self, shown: Shown, result: predictor.Row, files: Mapping[str, epath.Path]
  ) -> predictor.Record:
    """The objects that are shown, best first, boxes as x_min, y_min, x_max, y_max."""
    if self.task.config.task.kaist_file:
      self._lines += _kaist_lines(self._numbers[shown.path], result)
    return super().record(shown, result, files)

  def summarize(self, records: Sequence[predictor.Record], output: epath.Path) -> None:
    """Writes `detections.json`, and on request `detections.txt`."""
    super().summarize(records, output)
    if self.task.config.task.kaist_file:
      (output / _KAIST_FILE).write_text(''.join(self._lines))

  def sample(self, shown: Shown, result: predictor.Row) -> pictures.Sample:
    """Both images with what was found."""
    found = self.shown_objects(result)
    looks = self._looks(shown.example, result, found)
    return pictures.Sample(shown.image, shown.thermal, found, looks=looks)

  def _looks(
    self, example: predictor.Row, result: predictor.Row, found: objects_lib.Objects
  ) -> list[pictures.Look]:
    """Where the best of the objects that are shown look."""
    if 'attention/rgb' not in result:
      return []
    looks = []
    # Objects are in the order of the maps, of which there may be fewer.
    for box, label, score, *maps in zip(
      found.boxes,
      found.labels,
      found.scores,
      *(result[f'attention/{name}'] for name in ('rgb', 'thermal', 'query')),
      strict=False,
    ):
      rgb, thermal, query = (_within(x * x.size, example) for x in maps)
      title = f'{self.task.class_names[label]} {score:.2f}'
      looks.append(pictures.Look(title, box, rgb, thermal, query))
    return looks

  def evaluation_sample(self, example: predictor.Row, result: predictor.Row) -> pictures.Sample:
    """The same in the size that the network saw, and the true objects."""
    config = self.task.config.dataset
    images = [
      levels.denormalize(_within(example[name], example), config) for name in data.MODALITIES
    ]
    found, scale = self.shown_objects(result), float(example['scale'])
    true = self.task.examples(config.eval_split).source.annotations(int(example['index']))
    return pictures.Sample(
      *images,
      dataclasses.replace(found, boxes=found.boxes * scale),
      objects_lib.Objects(true.boxes * scale, true.labels),
    )


def _kaist_lines(number: int, result: predictor.Row) -> list[str]:
  """The objects of a pair as lines of its number, x_min, y_min, width, height and score."""
  real = result['labels'] >= 0
  low, high = np.split(result['boxes'][real], 2, axis=1)
  return [
    f'{number},{",".join(f"{value:.4f}" for value in box)},{score:.8f}\n'
    for box, score in zip(
      np.concatenate([low, high - low], axis=1), result['scores'][real], strict=True
    )
  ]


def _within(values: np.ndarray, example: predictor.Row) -> np.ndarray:
  """What arrays `[height, width, ...]`, or coarser maps over them, have where the images are."""
  factor = len(example['rgb']) // len(values)
  (top, left), (height, width) = example['offset'], _size_shown(example)
  values = values.repeat(factor, axis=0).repeat(factor, axis=1)
  return values[top : top + height, left : left + width]


def _size_shown(example: predictor.Row) -> np.ndarray:
  """(height, width) of the images in their arrays."""
  return np.rint(example['original_size'] * float(example['scale'])).astype(int)
