"""Procedural scenes as a TFDS dataset, which is written on first use: nothing is downloaded."""

from collections.abc import Iterator, Sequence
import dataclasses
import io
import os

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from crossattn_jax.data import writing
from crossattn_jax.data.scenes import shapes

_SEED = 2024


@dataclasses.dataclass
class ShapeScenesConfig(tfds.core.BuilderConfig):
  """A set of scenes.

  Attributes:
    image_size: height and width in pixels.
    train_examples: scenes for training.
    validation_examples: scenes for evaluation.
    drawn: see `shapes.render_scene`.
    least_seen: see `shapes.render_scene`.
    radii: see `shapes.render_scene`.
    dark: see `shapes.render_scene`.
    tepid: see `shapes.render_scene`.
    shown: see `shapes.render_scene`; also the data set's classes.
    unseen: those of them that no scene for training shows.
    turn: see `shapes.render_scene`.
    textures: see `shapes.render_scene`.
    least_visible: see `shapes.render_scene`.
  """

  image_size: int = 128
  train_examples: int = 2400
  validation_examples: int = 300
  drawn: tuple[int, int] = (3, 7)
  least_seen: int = 1
  radii: tuple[float, float] = shapes.RADII
  dark: float = 0.0
  tepid: float = 0.0
  shown: tuple[str, ...] = shapes.SHAPES
  unseen: tuple[str, ...] = ()
  turn: float = np.pi
  textures: tuple[str, ...] = shapes.TEXTURES
  least_visible: float = shapes.VISIBLE_SHARE

  def render(self, seed: int, index: int) -> shapes.Scene:
    """Renders a scene of the set."""
    names = ('drawn', 'least_seen', 'radii', 'dark', 'tepid', 'turn', 'textures', 'least_visible')
    options = {name: getattr(self, name) for name in names}
    left_out = self.unseen if seed == _SEED else ()
    shown = [name for name in self.shown if name not in left_out]
    return shapes.render_scene(seed, index, self.image_size, shown=shown, **options)


class ShapeScenes(tfds.core.GeneratorBasedBuilder):
  """Writes scenes as ArrayRecord; see `shapes.Scene`.

  Depth is in millimetres, sketches are side by side in one image.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version.'}
  BUILDER_CONFIGS = [
    ShapeScenesConfig(name='128', description='128 x 128 pixels.'),
    ShapeScenesConfig(name='64', description='64 x 64 pixels.', image_size=64),
    ShapeScenesConfig(
      name='160',
      description='160 x 160 pixels, 3 to 8 objects of many sizes, for detection.',
      image_size=160,
      train_examples=1600,
      validation_examples=200,
      drawn=(3, 8),
      least_seen=3,
      radii=(0.06, 0.22),
    ),
    ShapeScenesConfig(
      name='night',
      description='96 x 96 pixels, in which visible and thermal images each hide a third of the '
      'objects, in the dark or as warm as the ground.',
      image_size=96,
      train_examples=3000,
      drawn=(3, 8),
      least_seen=3,
      radii=(0.08, 0.20),
      dark=0.35,
      tepid=0.6,
    ),
    ShapeScenesConfig(
      name='sketch',
      description='96 x 96 pixels, 4 to 6 plain objects of 30 shapes that stand nearly upright; '
      'objects of six shapes are in the scenes for evaluation only.',
      image_size=96,
      train_examples=4000,
      drawn=(4, 6),
      least_seen=4,
      radii=(0.13, 0.19),
      textures=('plain',),
      least_visible=0.7,
      shown=shapes.ALL_SHAPES,
      unseen=shapes.UNSEEN_SHAPES,
      turn=0.3,
    ),
    ShapeScenesConfig(
      name='tiny',
      description='A few scenes of 64 x 64 pixels, for tests.',
      image_size=64,
      train_examples=24,
      validation_examples=10,
    ),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.image_size

    def png(dtype: type = np.uint8, shape: tuple[int, int] = (size, size)) -> tfds.features.Image:
      return tfds.features.Image(shape=(*shape, 1), dtype=dtype, encoding_format='png')

    return tfds.core.DatasetInfo(
      builder=self,
      description='Procedural scenes of shapes over a ground, with all annotations.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(size, size, 3), encoding_format='jpeg'),
          'segmentation_label': png(),
          'instances': png(),
          'objects': tfds.features.Sequence(
            {
              'bbox': tfds.features.BBoxFeature(),
              'label': tfds.features.ClassLabel(names=['ground', *self.builder_config.shown]),
              'color': tfds.features.ClassLabel(names=list(shapes.COLORS)),
              'texture': tfds.features.ClassLabel(names=list(shapes.TEXTURES)),
              'visible': np.float32,
              'depth': np.float32,
              'temperature': np.float32,
            }
          ),
          'caption': tfds.features.Text(),
          'sketches': png(shape=(size // 2, size // 2 * len(shapes.SHAPES))),
          'thermal': tfds.features.Image(shape=(size, size, 1), encoding_format='jpeg'),
          'depth': png(np.uint16),
          'id': tfds.features.Text(),
        }
      ),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    config = self.builder_config
    return {
      'train': self._generate_examples(_SEED, config.train_examples),
      'validation': self._generate_examples(_SEED + 1, config.validation_examples),
    }

  def _generate_examples(self, seed: int, count: int) -> Iterator[tuple[str, dict[str, object]]]:
    for index in range(count):
      key = f'scene_{seed}_{index:06d}'
      yield key, {'id': key, **encode_scene(self.builder_config.render(seed, index))}


def encode_scene(scene: shapes.Scene) -> dict[str, object]:
  """The features of a scene, images as files."""
  size = scene.image.shape[0]
  names, textures = tuple(shapes.COLORS), shapes.TEXTURES
  return {
    'image': _encode(scene.image, 'jpeg'),
    'segmentation_label': _encode(scene.semantic),
    'instances': _encode(scene.instances),
    'objects': [
      {
        'bbox': tfds.features.BBox(*(float(edge) / size for edge in item.box)),
        'label': item.label,
        'color': names.index(item.color),
        'texture': textures.index(item.texture),
        'visible': item.visible,
        'depth': item.depth,
        'temperature': item.temperature,
      }
      for item in scene.objects
    ],
    'caption': scene.caption,
    'sketches': _encode(np.concatenate(scene.sketches, axis=1)),
    'thermal': _encode(scene.thermal, 'jpeg'),
    'depth': _encode(np.rint(scene.depth * 1000).astype(np.uint16)),
  }


def _encode(pixels: np.ndarray, image_format: str = 'png') -> io.BytesIO:
  file = io.BytesIO()
  options = {'quality': 95, 'subsampling': 0} if image_format == 'jpeg' else {'compress_level': 3}
  Image.fromarray(pixels).save(file, image_format, **options)
  file.seek(0)
  return file


def prepare(
  name: str = 'shape_scenes',
  data_dir: str | os.PathLike[str] | None = None,
  known_shapes: Sequence[str] = shapes.ALL_SHAPES,
) -> None:
  """Writes the dataset below `data_dir` unless it is there; see `writing.write_once`.

  Args:
    name: 'shape_scenes' or with a configuration: 'shape_scenes/64'.
    data_dir: folder of TFDS datasets; TFDS's own default (`~/tensorflow_datasets`) if None.
    known_shapes: those for which there are classes or words.

  Raises:
    ValueError: there is no such configuration, or it shows other shapes.
  """
  configs = {config.name: config for config in ShapeScenes.BUILDER_CONFIGS}
  config = name.partition('/')[2].partition(':')[0] or next(iter(configs))
  usable = [each for each in configs if set(configs[each].shown) <= set(known_shapes)]
  expected = f'expected one of {", ".join(f"shape_scenes/{each}" for each in usable)}'
  if config not in configs:
    raise ValueError(f'unknown dataset {name!r}; {expected}')
  if config not in usable:
    raise ValueError(f'{name!r} shows other shapes than {", ".join(known_shapes)}; {expected}')
  writing.write_once(ShapeScenes(config=config, data_dir=data_dir, file_format='array_record'))
