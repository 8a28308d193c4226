"""KAIST's miss rates of a run, from its file of annotations."""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from crossattn_jax.metrics import coco, miss_rate

NAMES = tuple(f'miss_rate/{name}' for name in miss_rate.SETTINGS)
# What annotations say of each person.
_KEYS = ('id', 'image_id', 'bbox', 'height', 'occlusion', 'ignore')


def evaluate(
  rows: Mapping[str, np.ndarray], source: Any, options: ml_collections.ConfigDict
) -> dict[str, float]:
  """The miss rates of detections, fractions.

  Args:
    rows: of all pairs, as `instances.to_rows` has them.
    source: of the split, whose pairs must be those of the file, in its order.
    options: `config.task.miss_rate`.

  Returns:
    The `NAMES` but for settings in which nobody must be found.

  Raises:
    ValueError: the file is not one of KAIST's annotations, or of other images.
  """
  truths, images = read_annotations(options.annotations)
  _check_images(images, source, options.annotations)
  found = coco.Instances(rows['image'], rows['label'], rows['box'], rows['score'])
  day = np.arange(len(images)) < options.day_pairs
  results = miss_rate.miss_rates(truths, found, day, options.official)
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


def read_annotations(
  path: str | os.PathLike[str],
) -> tuple[miss_rate.Pedestrians, list[Mapping[str, Any]]]:
  """Reads KAIST's improved annotations of its test set, JSON in COCO's form.

  Returns:
    Who is there, and of each image what the file says; images count in its order.

  Raises:
    ValueError: it is no such file; the message says what is missing.
  """
  expected = "KAIST's annotations: JSON with 'images' and 'annotations', which have"
  try:
    content = json.loads(epath.Path(path).read_text())
    images = content['images']
    people = sorted(content['annotations'], key=lambda person: person['id'])
    numbers = {image['id']: number for number, image in enumerate(images)}
    columns = {key: [person[key] for person in people] for key in _KEYS}
    image = np.array([numbers[number] for number in columns['image_id']], int)
  except (ValueError, LookupError, TypeError) as error:
    raise ValueError(
      f'config.task.miss_rate.annotations={os.fspath(path)!r}: expected {expected} '
      f'{", ".join(_KEYS)}; {type(error).__name__}: {error}'
    ) from error
  corner, size = np.split(np.reshape(np.array(columns['bbox'], np.float64), (-1, 4)), 2, axis=1)
  people = miss_rate.Pedestrians(
    image=image,
    box=np.concatenate([corner, corner + size], axis=1),
    occlusion=np.array(columns['occlusion']),
    ignored=np.array(columns['ignore'], bool),
    height=np.array(columns['height'], np.float64),
  )
  return people, images


def _check_images(images: Sequence[Mapping[str, Any]], source: Any, path: str) -> None:
  """Refuses a file of other images than those of a split."""
  where = f'config.task.miss_rate.annotations={path!r}'
  if len(images) != len(source):
    raise ValueError(
      f'{where} has {len(images)} images, and the evaluated split {len(source)} pairs; set '
      "config.dataset.eval_split to KAIST's test pairs, or config.task.miss_rate.annotations=None"
    )
  for index, image in enumerate(images):
    name, key = image.get('im_name', image.get('file_name', '')), source[index]['key']
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
