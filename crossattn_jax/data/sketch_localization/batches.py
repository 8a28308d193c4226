"""The input pipeline of sketch localization: photos, drawings of a category, and its objects."""

from typing import Any

from absl import logging
import jax
import ml_collections
from ml_collections import config_dict
import numpy as np
from PIL import Image

from crossattn_jax.data import pipeline
from crossattn_jax.data.detection import annotations
from crossattn_jax.data.detection import batches as detection
from crossattn_jax.data.sketch_localization import drawings, rasters, sources


def default_config() -> ml_collections.ConfigDict:
  """Returns `config.dataset`: COCO's photos and QuickDraw's drawings."""
  config = detection.default_config()
  # Where photos and their objects come from: as for detection.
  config.name = 'coco'
  # Objects of other classes are left out; photos without any object are, too; masks are not learnt.
  for name in ('other_classes', 'skip_empty', 'masks'):
    del config[name]
  # What can be asked for. By default the classes that photos and drawings share, filled in at the
  # start.
  config.class_names = ()
  # Of these, those that are never learnt, but asked for in evaluation. None: none; where the
  # classes are the published ones by default, those of them.
  config.unseen_classes = config_dict.placeholder(tuple)
  # Sides of resized images are multiples of it, rounded down, as in ViDT.
  config.size_multiple = 16
  # (height, width) of the arrays that hold images wider than high, multiples of 32; images higher
  # than wide are in arrays of (width, height), in batches of their own.
  config.image_size = (800, 1328)

  config.sketches = ml_collections.ConfigDict()
  # 'quickdraw' or 'sketchy', as they are released; 'sketch_folder', a folder of drawings of each
  # class; or 'shape_scenes', which are made.
  config.sketches.name = 'quickdraw'
  # Folder of the drawings.
  config.sketches.data_dir = config_dict.placeholder(str)
  # Which drawings evaluation asks by: 'valid' or 'test'. Training has others.
  config.sketches.eval_split = 'valid'
  # Drawings of a query.
  config.sketches.count = 1
  # Side of the square that a drawing becomes, a multiple of 32.
  config.sketches.size = 224
  # How drawings look: 'release', thin white lines on black, or 'repaired', larger and black on
  # white.
  config.sketches.style = 'release'
  # In pixels. None: that of the style.
  config.sketches.line_width = config_dict.placeholder(int)
  # Whether lines are white on black. None: as the style has them.
  config.sketches.invert = config_dict.placeholder(bool)
  # Whether drawings are left empty, to see what is found without them.
  config.sketches.blank = False

  # For each photo, 'one' category is asked for, or 'all' that it shows are.
  config.evaluation.queries = 'one'
  return config


def batch_spec(
  config: ml_collections.ConfigDict, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a training batch of photos wider than high; see `Examples`."""
  options = config.sketches
  shape = (batch_size, options.count, options.size, options.size, 3)
  return detection.batch_spec(config, batch_size) | {
    'sketches': jax.ShapeDtypeStruct(shape, np.float32),
    'category': jax.ShapeDtypeStruct((batch_size,), np.int32),
  }


class Examples(detection.Examples):
  """The photos of a split, drawings of a category, and its objects in them.

  Rows are those of `detection.batches.Examples`, whose objects are those of the category, of label
  0, and
    `sketches`: float32 `[count, size, size, 3]`, normalised as the photo.
    `category`: index into `config.class_names`, int32; -1 where there is no photo.
  In evaluation `index` counts the queries, `source.annotations(index)` are what is to be found.
  """

  kind = 'photo'
  side_multiple = 16
  open_source = staticmethod(sources.open_source)

  @classmethod
  def check(cls, config: ml_collections.ConfigDict) -> None:
    """Refuses wrong values, naming the key."""
    super().check(config)
    require, options = pipeline.requirement(config), config.sketches
    require(options.count >= 1, 'sketches.count', 'at least 1')
    require(options.size > 0 and options.size % 32 == 0, 'sketches.size', 'a multiple of 32 pixels')
    require(
      options.style in rasters.STYLES,
      'sketches.style',
      f'one of {", ".join(map(repr, rasters.STYLES))}',
    )
    width = options.line_width
    require(width is None or width >= 1, 'sketches.line_width', 'at least 1 pixel, or None')
    require(
      options.eval_split in drawings.HELD_OUT,
      'sketches.eval_split',
      f'one of {", ".join(map(repr, drawings.HELD_OUT))}',
    )
    require(
      config.evaluation.queries in sources.QUERIES,
      'evaluation.queries',
      f'one of {", ".join(map(repr, sources.QUERIES))}',
    )
    sources.check(config)

  def objects(self, index: int) -> annotations.Objects:
    """Those of all categories that may be asked for."""
    return self.source.all_annotations(index)

  def train_example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Asks for one of the categories that a photo shows, and draws a view of it and drawings."""
    (image, objects), found, skipped = self.next_readable(index)
    category = int(rng.choice(self.source.choices(found)))
    numbers = rng.integers(self.source.sketches.counts[category], size=self.config.sketches.count)
    return {
      **self.view(index, image, sources.matching(objects, category), rng),
      'sketches': self._sketches(category, numbers),
      'category': np.int32(category),
      'index': np.int32(found),
      'skipped': np.int32(skipped),
    }

  def eval_example(
    self,
    decoded: tuple[Image.Image, annotations.Objects] | None,
    index: int,
    bucket: tuple[int, int],
  ) -> dict[str, np.ndarray]:
    """Resizes, normalises and pads a photo, and adds drawings of what is asked for."""
    row, options = super().eval_example(decoded, index, bucket), self.config.sketches
    if decoded is None:
      sketches = np.zeros((options.count, options.size, options.size, 3), np.float32)
      return row | {'sketches': sketches, 'category': np.int32(-1)}
    category = self.source.category(index)
    numbers = self.source.sketch_numbers(index, options.count)
    sketches = self._sketches(category, numbers)
    return row | {'sketches': sketches, 'category': np.int32(category)}

  def _sketches(self, category: int, numbers: np.ndarray) -> np.ndarray:
    """Drawings of a category as the network sees them, float32 `[count, size, size, 3]`."""
    options = self.config.sketches
    drawn = [rasters.raster(self._drawing(category, k), options) for k in numbers.tolist()]
    return np.stack([rasters.normalized(pixels, self.config) for pixels in drawn])

  def _drawing(self, category: int, number: int) -> rasters.Drawing:
    """A drawing, or else the next one of its category that can be read."""
    source = self.source.sketches
    count = int(source.counts[category])
    for place in range(count):
      try:
        return source.drawing(category, (number + place) % count)
      except pipeline.UnreadableError as error:
        if self.config.unreadable == 'error':
          raise ValueError(
            f"unreadable drawing {error}; repair or remove it, or set dataset.unreadable = 'skip'"
          ) from error
        logging.warning('skipped drawing %s', error)
    raise ValueError(
      f'none of the {count} drawings of {self.source.categories[category]!r} can be read'
    )


def describe_preprocessing(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What makes inputs of fixed size of a photo and drawings, as JSON can hold it."""
  return detection.describe_preprocessing(config) | {'sketches': rasters.describe(config.sketches)}
