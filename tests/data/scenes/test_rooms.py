import numpy as np
import pytest

from crossattn_jax.data.scenes import furniture, room_dataset, rooms, solids

SEED = 2024


def _scan(index: int) -> rooms.Scan:
  return rooms.scan(rooms.make_room(SEED, index), SEED, index, per_area=100.0)


@pytest.fixture(scope='module')
def scans() -> list[rooms.Scan]:
  return [_scan(index) for index in range(6)]


def test_a_room_is_a_function_of_seed_and_index(scans):
  again = _scan(2)
  for one, other in zip(scans[2], again, strict=True):
    np.testing.assert_array_equal(one, other)
  assert scans[2].points.shape != scans[3].points.shape
  one, other = (rooms.photograph(rooms.make_room(SEED, 2), SEED, 2, 1, (12, 16)) for _ in range(2))
  np.testing.assert_array_equal(one, other)
  assert one.shape == (12, 16, 3)


def test_scans_are_what_a_source_hands_out(scans):
  for scan in scans:
    assert [x.dtype for x in scan] == [np.float32, np.uint8, np.int32, np.int32]
    assert np.abs(scan.points[:, :2]).max() < 1.85
    assert -0.05 < scan.points[:, 2].min() < scan.points[:, 2].max() < 2.3
    assert set(np.unique(scan.labels)) <= set(range(-1, len(rooms.CLASS_NAMES)))
    np.testing.assert_array_equal(
      np.unique(scan.supervoxels), np.arange(scan.supervoxels.max() + 1)
    )


def test_supervoxels_are_nearly_pure(scans):
  pure = []
  for scan in scans:
    counts = np.zeros((scan.supervoxels.max() + 1, len(rooms.CLASS_NAMES) + 1))
    np.add.at(counts, (scan.supervoxels, scan.labels), 1)
    pure.append(counts.max(axis=1).sum() / counts.sum())
  assert 0.93 < np.mean(pure) < 1


def test_no_class_is_in_every_room_or_in_few():
  present = np.zeros(len(rooms.CLASS_NAMES))
  for index in range(60):
    parts = rooms.make_room(SEED, index).parts
    present += np.isin(np.arange(len(present)), [part.label for part in parts])
  assert (present > 6).all()
  assert (present < 40).all()


def test_furniture_stands_on_the_ground():
  for make in furniture.PIECES.values():
    for seed in range(5):
      parts = make(np.random.default_rng(seed))
      assert 0 <= min(part.center[2] - part.half[2] for part in parts) < 0.1
      assert {part.label for part in parts} <= {0, -1}


def test_what_is_nearer_hides_what_is_behind():
  white, black = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
  near = solids.Solid('box', (0, 2, 1), (0.2, 0.1, 0.2), color=black)
  far = solids.Solid('box', (0, 3, 1), (2, 0.1, 2), color=white)
  eye, target = np.array([0, 0, 1.0]), np.array([0, 3.0, 1.0])
  image = rooms.render([near, far], eye, target, (20, 20), np.random.default_rng(0))[..., 0]
  # 0.2 at a distance of 1.9, seen through 0.62 widths: 1.3 pixels to either side.
  np.testing.assert_array_equal(np.argwhere(image < 60).min(axis=0), [9, 9])
  np.testing.assert_array_equal(np.argwhere(image < 60).max(axis=0), [10, 10])
  swapped = rooms.render([far, near], eye, target, (20, 20), np.random.default_rng(0))
  np.testing.assert_array_equal(swapped[..., 0] < 60, image < 60)


def test_an_unknown_set_of_rooms_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"'room_scenes/tinny'.*room_scenes/tiny"):
    room_dataset.prepare('room_scenes/tinny', tmp_path)
