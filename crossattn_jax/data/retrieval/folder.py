"""Images and sentences of one's own: a table for each split, `DIR/train.csv` and `DIR/val.csv`.

  file,caption
  images/1.jpg,a dog runs over wet sand
  images/1.jpg,"at the sea, a dog"
  images/2.jpg,...

Files are relative to DIR. No detector is needed: regions are windows of the image, described by
colours and edges (`scenes.regions`). A detector's features say more: `sources.RegionFilesSource`.

`DIR/vocab.txt` has the words. This writes those of the sentences to learn from:

  python -m crossattn_jax.data.retrieval.folder DIR
"""

from collections.abc import Sequence
import itertools
import os
import pathlib
import sys

from absl import app
import numpy as np
from PIL import Image

from crossattn_jax import config_errors
from crossattn_jax.data import image_ops, label_tables, pipeline
from crossattn_jax.data import sources as common
from crossattn_jax.data.retrieval import examples, word_pieces
from crossattn_jax.data.scenes import regions

VOCABULARY = 'vocab.txt'
_COLUMNS = ('file', 'caption')

# The whole image, then windows half as wide and high, a quarter apart; shares of the sides.
_STARTS = (0.0, 0.25, 0.5)
BOXES = (
  (0.0, 0.0, 1.0, 1.0),
  *((top, left, top + 0.5, left + 0.5) for top, left in itertools.product(_STARTS, _STARTS)),
)


class CaptionFolder:
  """The images of a table and their sentences: a `sources.Source`.

  Attributes:
    captions_per_image: as many as each image has, or the first ones of those it has.
  """

  def __init__(
    self,
    data_dir: str | os.PathLike[str],
    split: str,
    region_dim: int,
    captions_per_image: int | None = None,
  ):
    """Reads the table of a split.

    Args:
      data_dir: the folder.
      split: the name of a table in it.
      region_dim: channels of the description of a region.
      captions_per_image: how many sentences of each image are used; those that all have if None.

    Raises:
      ValueError: there is no such table, it is wrong, or images have different numbers of sentences
        and nobody says how many to use.
    """
    self._root, self._region_dim = pathlib.Path(data_dir), region_dim
    path = self._root / f'{split}.csv'
    if not path.is_file():
      found = sorted(table.stem for table in self._root.glob('*.csv'))
      raise config_errors.UnknownName(
        f'{str(path)!r} does not exist; {str(self._root)!r} has tables of '
        f'{common.shown(found) or "no split"}; expected lines with {",".join(_COLUMNS)}',
        split,
        found,
      )
    by_file = _read(path)
    few, many = (choose(by_file, key=lambda file: len(by_file[file])) for choose in (min, max))
    least, most = len(by_file[few]), len(by_file[many])
    self.captions_per_image = captions_per_image or least
    if self.captions_per_image > least or (captions_per_image is None and most > least):
      raise ValueError(
        f'{str(path)!r} has {least} captions of {few!r} and {most} of {many!r}; expected '
        f'{captions_per_image or "as many"} of each image: set dataset.captions_per_image={least} '
        'to use the first ones'
      )
    self._files = tuple(by_file)
    self._captions = tuple(
      tuple(sentences[: self.captions_per_image]) for sentences in by_file.values()
    )
    missing = [file for file in self._files if not (self._root / file).is_file()]
    if missing:
      raise ValueError(
        f'{str(path)!r} names {len(missing)} of {len(self._files)} images that are not there, such '
        f'as {str(self._root / missing[0])!r}'
      )

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> examples.Example:
    features = regions.region_features(np.asarray(self._image(index)), BOXES, self._region_dim)
    return examples.Example(features, self._captions[index], self.key(index))

  def key(self, index: int) -> str:
    """The file of an image, as the table has it."""
    return self._files[index]

  def picture(self, index: int) -> examples.Picture:
    """The image with the windows that are its regions."""
    image = self._image(index)
    boxes = np.array(BOXES) * ([image.height, image.width] * 2)
    return examples.Picture(image, tuple(map(tuple, boxes.tolist())))

  def _image(self, index: int) -> Image.Image:
    path = self._root / self._files[index]
    try:
      return image_ops.decode(path.read_bytes(), 3, upright=True)
    except (OSError, pipeline.UnreadableError) as error:
      raise pipeline.UnreadableError(f'{str(path)!r}: {error}') from error


def write_vocabulary(argv: Sequence[str]) -> None:
  """Writes `vocab.txt` of the sentences of `train.csv`; `argv` is the program and the folder."""
  if len(argv) != 2:
    raise app.UsageError('expected a folder with train.csv')
  root = pathlib.Path(argv[1])
  try:
    sentences = _read(root / 'train.csv').values()
  except ValueError as error:
    sys.exit(f'error: {error}')
  words = word_pieces.words_of(itertools.chain(*sentences))
  (root / VOCABULARY).write_text('\n'.join([*words, '']))
  print(f'{len(words)} words in {root / VOCABULARY}')


def _read(path: pathlib.Path) -> dict[str, Sequence[str]]:
  """The sentences of each file, in the order of the table."""
  found: dict[str, list[str]] = {}
  for number, row in enumerate(label_tables.read_table(path, _COLUMNS), 2):
    file, caption = (row[name].strip() for name in _COLUMNS)
    if not file or not caption:
      raise ValueError(f'line {number} of {str(path)!r}: expected a file and a caption')
    found.setdefault(file, []).append(caption)
  return found


if __name__ == '__main__':
  app.run(write_vocabulary)
