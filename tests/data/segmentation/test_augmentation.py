import numpy as np
import pytest

from crossattn_jax.data.segmentation import augmentation, taxonomies

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


def test_cityscapes_ids_go_there_and_back():
  cityscapes, classes = taxonomies.CITYSCAPES, np.arange(19)
  np.testing.assert_array_equal(cityscapes.to_classes(cityscapes.to_labels(classes)), classes)
  ignored = [0, 1, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255]
  assert (cityscapes.to_classes(np.array(ignored)) == 255).all()
  assert cityscapes.to_labels(np.array([255])) == 0
  assert cityscapes.class_names[13] == 'car'
  assert cityscapes.to_labels(np.array([13])) == 26
