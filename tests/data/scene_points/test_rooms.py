import pickle

import numpy as np

from crossattn_jax.data.scene_points import rooms
from crossattn_jax.data.scenes import rooms as generated


def test_a_source_hands_out_what_was_generated(tmp_path):
  source = pickle.loads(pickle.dumps(rooms.RoomSource('room_scenes/tiny', 'train', tmp_path)))
  assert len(source) == 8
  assert len(rooms.RoomSource('room_scenes/tiny', 'validation', tmp_path)) == 4
  assert source.class_names == generated.CLASS_NAMES
  _, seed, index = source.keys[3].split('_')
  room = generated.make_room(int(seed), int(index), pieces=(1, 2), side=(1.2, 1.7))
  expected = generated.scan(room, int(seed), int(index), per_area=100.0)
  scene = source.scene(3)
  np.testing.assert_allclose(scene.points, expected.points, atol=6e-4)
  np.testing.assert_array_equal(scene.colors, expected.colors)
  np.testing.assert_array_equal(scene.labels, expected.labels)
  np.testing.assert_array_equal(scene.supervoxels, expected.supervoxels)
  np.testing.assert_array_equal(
    np.flatnonzero(source.tags(3)), np.unique(scene.labels[scene.labels >= 0])
  )
  assert source.views(3) == 3
  photograph = generated.photograph(room, int(seed), int(index), 2, (24, 32))
  np.testing.assert_array_equal(np.asarray(source.view(3, 2)), photograph)
