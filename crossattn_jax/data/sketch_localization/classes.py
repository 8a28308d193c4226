"""The classes that COCO's photos share with collections of drawings, and which are not learnt.

Lists and their order are those of LocFormer (arXiv 2303.08784) and of its release.
"""

from collections.abc import Iterable, Mapping
import os

from crossattn_jax import config_errors
from crossattn_jax.data import sources

COCO_QUICKDRAW = (
  'elephant', 'bear', 'cat', 'zebra', 'bus', 'horse', 'giraffe', 'airplane', 'bed', 'dog',
  'scissors', 'train', 'sandwich', 'pizza', 'cow', 'broccoli', 'umbrella', 'sheep', 'bird',
  'stop sign', 'toothbrush', 'bicycle', 'hot dog', 'laptop', 'toaster', 'microwave', 'banana',
  'baseball bat', 'donut', 'couch', 'keyboard', 'cake', 'oven', 'carrot', 'bench', 'suitcase',
  'fire hydrant', 'fork', 'chair', 'wine glass', 'apple', 'truck', 'cell phone', 'cup', 'car',
  'knife', 'toilet', 'clock', 'backpack', 'spoon', 'vase', 'book', 'skateboard', 'sink', 'mouse',
  'traffic light',
)  # fmt: skip
COCO_SKETCHY = (
  'elephant', 'bear', 'cat', 'zebra', 'horse', 'giraffe', 'airplane', 'dog', 'scissors', 'pizza',
  'cow', 'umbrella', 'sheep', 'bicycle', 'hot dog', 'banana', 'couch', 'bench', 'chair', 'apple',
  'cup', 'car', 'knife', 'clock', 'spoon', 'mouse', 'motorcycle',
)  # fmt: skip
# What folders of Sketchy are called, where COCO's class has another name.
SKETCHY_NAMES = {'car (sedan)': 'car', 'hotdog': 'hot dog', 'alarm clock': 'clock'}

# Of a collection of drawings: the classes that it is used for with COCO's photos, and those of
# them that are not learnt. Of Sketchy, papers have several sets; this is the release's last one.
PUBLISHED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  'quickdraw': (COCO_QUICKDRAW, COCO_QUICKDRAW[::4]),
  'sketchy': (COCO_SKETCHY, ('cat', 'couch', 'bicycle', 'car', 'horse')),
}


def plain(name: str) -> str:
  """A class's name as photos and drawings have it in common: in lower case, with spaces."""
  return name.lower().replace('_', ' ')


def without_drawings(
  name: str, drawn: Iterable[str], folder: str | os.PathLike[str], expected: str
) -> config_errors.UnknownName:
  """The error for a class that has no drawings in a folder.

  Args:
    name: of the class.
    drawn: plain names of those that have.
    folder: of all drawings.
    expected: what it should hold.
  """
  known = sorted(drawn)
  return config_errors.UnknownName(
    f'{os.fspath(folder)!r} has no drawings of {name!r}: expected {expected}; '
    f'{config_errors.near_names(name, known)}it has those of '
    f'{sources.shown(known) or "no class"}; add them, or leave {name!r} out of dataset.class_names',
    name,
    known,
  )
