"""Scenes as a detection data set: objects are those that the scene was rendered of."""

import numpy as np
import pytest

from crossattn_jax.data.detection import scenes
from crossattn_jax.data.paired_detection import scenes as paired_scenes
from crossattn_jax.data.scenes import dataset, shapes


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return scenes.SceneSource('shape_scenes/tiny', 'validation', str(tmp_path_factory.mktemp('tfds')))


def test_objects_are_those_of_the_rendered_scene(source):
  assert len(source) == len(source.image_ids) == 10
  ids = []
  for index in range(len(source)):
    _, seed, number = source[index]['key'].rpartition('(')[2].removesuffix(')').split('_')
    scene = shapes.render_scene(int(seed), int(number), 64)
    objects = source.annotations(index)
    assert objects.size == source.image_size(index) == (64, 64)
    expected = [
      (left, top, right, bottom)
      for top, left, bottom, right in (item.box for item in scene.objects)
    ]
    np.testing.assert_array_equal(objects.boxes, expected)
    names = [source.class_names[label] for label in objects.labels]
    assert names == [shapes.CLASS_NAMES[item.label] for item in scene.objects]
    masks = objects.masks()
    np.testing.assert_array_equal(masks * 1, [scene.instances == i + 1 for i in range(len(names))])
    np.testing.assert_array_equal(objects.area, masks.sum((1, 2)))
    assert objects.learnable.all()
    ids += objects.ids.tolist()
  assert len(set(ids)) == len(ids)
  assert 0 not in ids


def test_scenes_for_detection_have_three_to_eight_objects_of_many_sizes():
  (config,) = (each for each in dataset.ShapeScenes.BUILDER_CONFIGS if each.name == '160')
  rendered = [
    shapes.render_scene(
      1, i, 160, drawn=config.drawn, least_seen=config.least_seen, radii=config.radii
    )
    for i in range(16)
  ]
  counts = {len(scene.objects) for scene in rendered}
  assert counts == set(range(3, 9))
  heights = [item.box[2] - item.box[0] for scene in rendered for item in scene.objects]
  assert min(heights) < 20
  assert max(heights) > 50


@pytest.mark.parametrize('source_of', [scenes.SceneSource, paired_scenes.PairedScenes])
def test_other_classes_than_the_shapes_are_refused(source_of, tmp_path):
  with pytest.raises(ValueError, match=r"got dataset.class_names=\('disc', 'cube'\); leave"):
    source_of('shape_scenes/tiny', 'validation', tmp_path, ('disc', 'cube'))
