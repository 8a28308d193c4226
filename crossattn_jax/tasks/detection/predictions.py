"""What a detector makes of image files and of evaluation images."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib

from etils import epath
import jax
import numpy as np

from crossattn_jax.data import levels
from crossattn_jax.data.detection import batches as data
from crossattn_jax.tasks import base, drawing, predictor, review
from crossattn_jax.tasks.detection import instances, mistakes, pictures

_RESULTS = 'detections.json'


@dataclasses.dataclass(frozen=True)
class Shown:
  """An image file, and its pixels, uint8 `[height, width, 3]`."""

  path: str
  image: np.ndarray


class Predictor(predictor.FilePredictor):
  """Writes the objects of images: over them, as records, and as a result file of COCO.

  Pictures and records show what scores at least `config.task.shown_score`; `detections.json` has
  all that was found, in the form that COCO's tools and its test server take.
  """

  num_samples = 6
  draw_sheet = predictor.with_class_names(pictures.sheet)

  def load(self, source: predictor.Input) -> predictor.Loaded:
    """An image as evaluation has it, and as the file has it."""
    (path,) = source.paths
    batch, image = data.read_image(path, self.task.config.dataset)
    return predictor.Loaded(predictor.row_of(batch, 0), Shown(path, np.asarray(image)))

  def predict(self, variables: base.Variables, batch: base.Batch) -> dict[str, jax.Array]:
    """Detections in pixels of the image files: `boxes`, `scores`, `labels` and maybe `masks`."""
    found, _ = self.task.detect(variables, batch)
    return {name: x for name, x in vars(found).items() if x is not None}

  def begin(self, inputs: Sequence[predictor.Input]) -> None:
    """Numbers the images; nothing is found yet."""
    self._image_ids = _image_ids([source.paths[0] for source in inputs])
    self._detections: list[predictor.Record] = []

  def record(
    self, shown: Shown, result: predictor.Row, files: Mapping[str, epath.Path]
  ) -> predictor.Record:
    """The objects that are shown, best first, boxes as x_min, y_min, x_max, y_max."""
    del files
    task, image_id = self.task, self._image_ids[shown.path]
    self._detections += instances.to_coco(
      result, shown.image.shape[:2], image_id, task.category_ids
    )
    found = self.shown_objects(result)
    return {
      'image_id': image_id,
      'objects': [
        {
          'index': int(label),
          'name': task.class_names[label],
          'score': round(float(score), 4),
          'box': np.round(box.astype(np.float64), 2).tolist(),
        }
        for label, score, box in zip(found.labels, found.scores, found.boxes, strict=True)
      ],
    }

  def summarize(self, records: Sequence[predictor.Record], output: epath.Path) -> None:
    """Writes `detections.json`."""
    (output / _RESULTS).write_text(json.dumps(self._detections) + '\n')

  def shown_objects(self, result: predictor.Row) -> pictures.Objects:
    """Those that score enough, best first."""
    # Padding has the score 0.
    kept = (result['labels'] >= 0) & (result['scores'] >= self.task.config.task.shown_score)
    masks = result['masks'][kept] if 'masks' in result else None
    return pictures.Objects(
      result['boxes'][kept], result['labels'][kept], result['scores'][kept], masks
    )

  def sample(self, shown: Shown, result: predictor.Row) -> pictures.Sample:
    """An image with what was found."""
    return pictures.Sample(shown.image, self.shown_objects(result))

  def evaluation_sample(self, example: predictor.Row, result: predictor.Row) -> pictures.Sample:
    """The same in the size that the network saw, and the true objects."""
    config = self.task.config.dataset
    rows, columns = example['image_size']
    image = levels.denormalize(example['image'][:rows, :columns], config)
    factors = np.tile(example['image_size'] / example['original_size'], 2)[[1, 0, 1, 0]]
    found = self.shown_objects(result)
    true = self.task.examples(config.eval_split).source.annotations(int(example['index']))
    return pictures.Sample(
      image,
      dataclasses.replace(found, boxes=found.boxes * factors),
      pictures.Objects(
        true.boxes * factors, true.labels, masks=true.masks() if self.task.masks else None
      ),
    )

  def mistake_sample(self, sample: pictures.Sample, mistake: review.Mistake) -> pictures.Sample:
    """The same with what is missed and what is false."""
    source = self.task.examples(self.task.config.dataset.eval_split).source
    found, true = sample.found, sample.true
    crowd = source.annotations(mistake.index).crowd
    matches = mistakes.match(found.boxes, found.labels, true.boxes, true.labels, crowd)
    return dataclasses.replace(
      super().mistake_sample(sample, mistake),
      found=dataclasses.replace(found, wrong=matches.false),
      true=dataclasses.replace(true, wrong=matches.missed),
    )

  def draw(self, path: epath.Path, sample: pictures.Sample) -> None:
    """See `pictures.overlaid`."""
    picture = pictures.overlaid(sample.image, sample.found, self.task.class_names)
    drawing.write_png(path, picture)


def _image_ids(paths: Sequence[str]) -> dict[str, int]:
  """Numbers of images by their paths: their names, where all are numbers, as those of COCO are."""
  stems = [pathlib.Path(path).stem for path in paths]
  if len(set(stems)) == len(stems) and all(stem.isdecimal() for stem in stems):
    return {path: int(stem) for path, stem in zip(paths, stems, strict=True)}
  return {path: number for number, path in enumerate(paths, start=1)}
