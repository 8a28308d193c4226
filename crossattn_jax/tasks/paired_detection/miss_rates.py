"""KAIST's miss rates of a run, from its file of annotations."""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from crossattn_jax.data.paired_detection import sources
from crossattn_jax.metrics import coco, miss_rate

NAMES = tuple(f'miss_rate/{name}' for name in miss_rate.SETTINGS)
# What annotations say of each person.
_KEYS = ('id', 'image_id', 'bbox', 'height', 'occlusion', 'ignore')


def evaluate(
  rows: Mapping[str, np.ndarray],
  people: miss_rate.Pedestrians,
  count: int,
  options: ml_collections.ConfigDict,
) -> dict[str, float]:
  """The miss rates of detections, fractions.

  Args:
    rows: of all pairs, as `instances.to_rows` has them.
    people: who is there, as `read` has it.
    count: of the pairs.
    options: `config.task.miss_rate`.

  Returns:
    The `NAMES` but for settings in which nobody must be found.
  """
  found = coco.Instances(rows['image'], rows['label'], rows['box'], rows['score'])
  day = np.arange(count) < options.day_pairs
  results = miss_rate.miss_rates(people, found, day, options.official)
  rates = {f'miss_rate/{name}': result.rate for name, result in results.items()}
  return {name: rate for name, rate in rates.items() if not np.isnan(rate)}


def line(metrics: Mapping[str, float]) -> str:
  """The results of `evaluate` in percent, as papers print them."""
  shown = [
    f'{name} {100 * metrics[key]:.2f}'
    for key, name in zip(NAMES, miss_rate.SETTINGS, strict=True)
    if key in metrics
  ]
  return 'miss rates in percent: ' + '  '.join(shown)


def read(path: str | os.PathLike[str], source: sources.Source) -> miss_rate.Pedestrians:
  """Reads KAIST's improved annotations of its test set, JSON in COCO's form.

  Args:
    path: of the file.
    source: of the split, whose pairs must be the file's images, in its order.

  Returns:
    Who is there.

  Raises:
    ValueError: it is no such file, or one of other images; the message says what is missing.
  """
  expected = "KAIST's annotations: JSON with 'images' and 'annotations', which have"
  try:
    content = json.loads(epath.Path(path).read_text())
    images = content['images']
    people = sorted(content['annotations'], key=lambda person: person['id'])
    numbers = {image['id']: number for number, image in enumerate(images)}
    columns = {key: [person[key] for person in people] for key in _KEYS}
    image = np.array([numbers[number] for number in columns['image_id']], int)
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise ValueError(
      f'config.task.miss_rate.annotations={os.fspath(path)!r}: expected {expected} '
      f'{", ".join(_KEYS)}; {type(error).__name__}: {error}'
    ) from error
  corner, size = np.split(np.reshape(np.array(columns['bbox'], np.float64), (-1, 4)), 2, axis=1)
  _check_images(images, source, os.fspath(path))
  return miss_rate.Pedestrians(
    image=image,
    box=np.concatenate([corner, corner + size], axis=1),
    occlusion=np.array(columns['occlusion']),
    ignored=np.array(columns['ignore'], bool),
    height=np.array(columns['height'], np.float64),
  )


def _check_images(images: Sequence[Mapping[str, Any]], source: sources.Source, path: str) -> None:
  """Refuses a file of other images than those of a split."""
  where = f'config.task.miss_rate.annotations={path!r}'
  if len(images) != len(source):
    raise ValueError(
      f'{where} has {len(images)} images, and the evaluated split {len(source)} pairs; set '
      "config.dataset.eval_split to KAIST's test pairs, or config.task.miss_rate.annotations=None"
    )
  for index, image in enumerate(images):
    name, key = image.get('im_name', image.get('file_name', '')), source.key(index)
    if _plain(name) not in _plain(key):
      raise ValueError(
        f'{where}: its image {index} is {name!r}, and pair {index} of the split is {key!r}; the '
        "split must have the file's images in its order"
      )
    size = tuple(image.get(side) for side in ('height', 'width'))
    own = tuple(source.image_size(index))
    if None not in size and size != own:
      raise ValueError(
        f'{where}: its image {index} has {size[0]} x {size[1]} pixels (height x width), and pair '
        f'{key!r} {own[0]} x {own[1]}; boxes must be in the same pixels'
      )


def _plain(name: str) -> str:
  """A path without its extension, whose folders may have become a part of the name."""
  return os.path.splitext(str(name))[0].replace('/', '_')
