import numpy as np
import pytest

from crossattn_jax.data.segmentation import augmentation

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(256, size=(20, 30, 3), dtype=np.uint8)
LABEL = RNG.integers(19, size=(20, 30), dtype=np.uint8)


def test_scale_one_copies_pixels_and_pads_at_the_bottom_and_the_right():
  choice = augmentation.Draw(1.0, 4, 7, False)
  image, label = augmentation.apply(IMAGE, LABEL, choice, (24, 25), padding=(1, 2, 3))
  np.testing.assert_array_equal(image[:16, :23], IMAGE[4:, 7:])
  np.testing.assert_array_equal(label[:16, :23], LABEL[4:, 7:])
  assert (image[16:] == (1, 2, 3)).all()
  assert (image[:, 23:] == (1, 2, 3)).all()
  assert (label[16:] == 255).all()
  assert (label[:, 23:] == 255).all()


@pytest.mark.parametrize('scale', [0.7, 1.3, 2.1])
def test_a_crop_is_a_part_of_the_whole_scaled_image(scale):
  size = augmentation.scaled_size((20, 30), scale)
  whole, labels = augmentation.apply(IMAGE, LABEL, augmentation.Draw(scale, 0, 0, False), size)
  part, part_labels = augmentation.apply(
    IMAGE, LABEL, augmentation.Draw(scale, 3, 5, True), (9, 11)
  )
  np.testing.assert_array_equal(part, whole[3:12, 5:16][:, ::-1])
  np.testing.assert_array_equal(part_labels, labels[3:12, 5:16][:, ::-1])


def test_draws_stay_inside_and_reach_the_borders():
  rng = np.random.default_rng(1)
  drawn = [augmentation.draw(rng, (20, 30), (15, 15), (0.5, 1.0)) for _ in range(400)]
  assert {d.scale for d in drawn} == {0.5, 1.0}
  assert {d.top for d in drawn if d.scale == 0.5} == {0}
  assert {d.top for d in drawn if d.scale == 1.0} == set(range(6))
  assert {d.left for d in drawn if d.scale == 1.0} == set(range(16))
  assert 0.4 < np.mean([d.mirrored for d in drawn]) < 0.6


def test_resizing_to_a_size_uses_that_size_not_a_factor():
  image = np.random.default_rng(0).integers(256, size=(7, 9, 3), dtype=np.uint8)
  np.testing.assert_array_equal(augmentation.resize(image, (7, 9)), image)
  ramp = np.repeat(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], 3, axis=0)
  doubled = augmentation.resize(ramp, (3, 16))[0, :, 0]
  assert doubled.tolist() == [0, *np.rint(np.arange(2.5, 70, 5)).astype(int).tolist(), 70]
