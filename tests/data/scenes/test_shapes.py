"""Scenes are a function of (seed, index), and all of their annotations show the same pixels."""

import dataclasses
import io

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from crossattn_jax.data.scenes import dataset
from crossattn_jax.data.scenes import shapes as shape_scenes


@pytest.fixture(scope='module')
def scenes():
  return [shape_scenes.render_scene(7, index, 64) for index in range(12)]


@pytest.fixture(scope='module')
def scenes_dir(tmp_path_factory) -> str:
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  dataset.prepare('shape_scenes/tiny', data_dir)
  return data_dir


def pixels(data: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)))


def test_a_scene_depends_on_seed_and_index_alone(scenes):
  for index in (5, 0):
    again = shape_scenes.render_scene(7, index, 64)
    for field in dataclasses.fields(again):
      np.testing.assert_equal(getattr(again, field.name), getattr(scenes[index], field.name))
  assert not np.array_equal(shape_scenes.render_scene(8, 0, 64).image, scenes[0].image)
  assert not np.array_equal(scenes[1].image, scenes[0].image)


def test_semantic_and_instance_maps_agree_with_the_objects(scenes):
  for scene in scenes:
    labels = np.array([0, *(item.label for item in scene.objects)])
    np.testing.assert_array_equal(scene.semantic, labels[scene.instances])
    np.testing.assert_array_equal(
      np.unique(scene.instances[scene.instances > 0]), labels.nonzero()[0]
    )


def test_boxes_bound_the_visible_pixels(scenes):
  for scene in scenes:
    for number, item in enumerate(scene.objects, start=1):
      rows, columns = np.nonzero(scene.instances == number)
      assert item.box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
      assert 0.4 <= item.visible <= 1


def test_a_pixel_shows_the_nearest_of_the_objects_that_cover_it(scenes):
  overlaps = 0
  for scene in scenes:
    depths = np.array([item.depth for item in scene.objects])
    assert (np.diff(depths) >= 0).all()
    covering = np.where(scene.masks, depths[:, None, None], np.inf)
    nearest = np.where(scene.masks.any(0), covering.argmin(0) + 1, 0)
    np.testing.assert_array_equal(scene.instances, nearest)
    ground = np.linspace(12, 8, 65)[:-1] - 2 / 64
    expected = np.where(scene.masks.any(0), covering.min(0), ground[:, None])
    np.testing.assert_allclose(scene.depth, expected, rtol=1e-5)
    assert (covering.min(0)[scene.masks.any(0)] < ground[np.nonzero(scene.masks.any(0))[0]]).all()
    overlaps += (scene.masks.sum(0) > 1).any()
  assert overlaps > 4


def test_the_thermal_image_shows_temperatures_where_the_objects_are(scenes):
  checked = 0
  for scene in scenes:
    for number, item in enumerate(scene.objects, start=1):
      inside = scene.instances == number
      for _ in range(3):  # Away from blurred edges.
        inner = inside[1:-1, 1:-1] & inside[2:, 1:-1] & inside[:-2, 1:-1]
        inner &= inside[1:-1, 2:] & inside[1:-1, :-2]
        inside = np.pad(inner, 1)
      if inside.sum() > 20:
        assert abs(scene.thermal[inside].mean() / 255 - item.temperature) < 0.02
        checked += 1
  assert checked > 10


def test_captions_name_every_object(scenes):
  for scene in scenes:
    listed, _, _ = scene.caption.partition(' on ')
    for item in scene.objects:
      texture = '' if item.texture == 'plain' else f'{item.texture} '
      phrase = f'{item.size} {item.color} {texture}{shape_scenes.CLASS_NAMES[item.label]}'
      assert phrase in listed
    assert len(listed.replace(' and ', ', ').split(', ')) == len(scene.objects)


def test_every_shape_is_drawn_and_sketched(scenes):
  assert {item.label for scene in scenes for item in scene.objects} == set(range(1, 7))
  for scene in scenes:
    ink = (scene.sketches < 128).mean((1, 2))
    assert ((ink > 0.02) & (ink < 0.25)).all()


@pytest.fixture(scope='module')
def night():
  (config,) = (each for each in dataset.ShapeScenes.BUILDER_CONFIGS if each.name == 'night')
  return [config.render(7, index) for index in range(60)]


def contrasts(image, scene):
  """How far each object's mean colour is from that of the ground around it, in levels."""
  result = []
  for number, item in enumerate(scene.objects, start=1):
    top, left, bottom, right = item.box
    around = np.zeros(scene.instances.shape, bool)
    around[max(top - 4, 0) : bottom + 4, max(left - 4, 0) : right + 4] = True
    around &= scene.instances == 0
    inside = scene.instances == number
    result.append(np.abs(image[inside].mean(0) - image[around].mean(0)).max())
  return np.array(result)


def test_at_night_a_third_of_the_objects_shows_in_each_image_only(night):
  items = [item for scene in night for item in scene.objects]
  lit, tepid = (np.array([getattr(item, name) for item in items]) for name in ('lit', 'tepid'))
  assert abs(tepid.mean() - 0.35) < 0.05
  assert abs((lit < 0.5).mean() - 0.32) < 0.05
  assert not (tepid & (lit < 0.75)).any()
  rgb = np.concatenate([contrasts(scene.image, scene) for scene in night])
  thermal = np.concatenate([contrasts(scene.thermal[..., None], scene) for scene in night])
  levels = [
    scene.image[scene.instances == i + 1].mean()
    for scene in night
    for i in range(len(scene.objects))
  ]
  assert np.array(levels)[lit < 0.02].max() < 8
  assert (rgb[lit > 0.98] > 6).mean() > 0.97
  assert thermal[tepid].max() < 12 < 30 < thermal[~tepid].min()


def test_the_light_changes_nothing_but_the_images():
  day, night = (shape_scenes.render_scene(7, 3, 64, dark=dark) for dark in (0, 0.35))
  np.testing.assert_array_equal(night.instances, day.instances)
  assert [item.box for item in night.objects] == [item.box for item in day.objects]
  assert all(item.lit == 1 and not item.tepid for item in day.objects)
  np.testing.assert_allclose((night.image < 20).all(-1).mean(), 0.33, atol=0.05)


def test_unseen_shapes_are_in_scenes_for_evaluation_only_and_all_stand_nearly_upright():
  (config,) = (each for each in dataset.ShapeScenes.BUILDER_CONFIGS if each.name == 'sketch')
  unseen = {1 + shape_scenes.ALL_SHAPES.index(name) for name in shape_scenes.UNSEEN_SHAPES}
  train, validation = (
    {item.label for index in range(40) for item in config.render(seed, index).objects}
    for seed in (2024, 2025)
  )
  assert len(unseen) == 6
  assert not unseen & train
  assert unseen <= validation
  assert train | unseen == set(range(1, 31))


def test_a_turn_limits_how_far_objects_are_turned():
  def widths(turn):
    scenes = [shape_scenes.render_scene(1, i, 64, shown=('square',), turn=turn) for i in range(20)]
    whole = [item for scene in scenes for item in scene.objects if item.visible == 1]
    areas = [np.prod(np.subtract(item.box[2:], item.box[:2])) for item in whole]
    seen = [
      (scene.instances == i + 1).sum()
      for scene in scenes
      for i, item in enumerate(scene.objects)
      if item.visible == 1
    ]
    return np.array(seen) / areas

  assert widths(0.0).min() > 0.9
  assert widths(np.pi).min() < 0.65


def test_the_scenes_of_six_shapes_stay_what_they_were():
  scene = shape_scenes.render_scene(2024, 0, 64)
  assert scene.caption == (
    'a small white dotted disc, a medium white square, a small yellow striped square and a medium '
    'purple dotted ring on sand; the purple ring is below the white square'
  )
  boxes = [(37, 47, 60, 64), (4, 14, 25, 35), (7, 33, 21, 43), (6, 2, 20, 16)]
  assert [item.box for item in scene.objects] == boxes


def test_tasks_without_names_for_all_shapes_refuse_them(tmp_path):
  with pytest.raises(ValueError, match="'shape_scenes/sketch' shows other shapes than disc"):
    dataset.prepare('shape_scenes/sketch', tmp_path, shape_scenes.SHAPES)


def test_an_odd_size_and_an_unknown_configuration_are_refused(tmp_path):
  with pytest.raises(ValueError, match='size=33 must be even'):
    shape_scenes.render_scene(0, 0, 33)
  with pytest.raises(ValueError, match='expected one of shape_scenes/128, shape_scenes/64'):
    dataset.prepare('shape_scenes/96', tmp_path)


def test_the_written_dataset_holds_the_scenes(scenes_dir):
  builder = read_only_builder.builder_from_files('shape_scenes/tiny', data_dir=scenes_dir)
  assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
    'train': 24,
    'validation': 10,
  }
  images = ('image', 'segmentation_label', 'instances', 'sketches', 'thermal', 'depth')
  source = builder.as_data_source(
    'validation', decoders={name: tfds.decode.SkipDecoding() for name in images}
  )
  for example in source:
    key = example['id'].decode()
    _, seed, index = key.split('_')
    scene = shape_scenes.render_scene(int(seed), int(index), 64)
    assert example['caption'].decode() == scene.caption
    np.testing.assert_array_equal(pixels(example['segmentation_label']), scene.semantic)
    np.testing.assert_array_equal(pixels(example['instances']), scene.instances)
    assert np.abs(pixels(example['image']).astype(int) - scene.image).mean() < 4
    assert np.abs(pixels(example['depth']) / 1000 - scene.depth).max() < 1e-3
    np.testing.assert_array_equal(
      pixels(example['sketches']), np.concatenate(scene.sketches, axis=1)
    )
    np.testing.assert_array_equal(
      example['objects']['label'], [item.label for item in scene.objects]
    )
    boxes = np.array([item.box for item in scene.objects]) / 64
    np.testing.assert_allclose(example['objects']['bbox'], boxes, atol=1e-6)
