import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.geometry import encoding

CODERS = [
  {},
  {'stds': (0.1, 0.1, 0.2, 0.2)},
  {'means': (0.1, -0.2, 0.3, 0.05), 'stds': (0.5, 0.1, 2.0, 0.2)},
  {'stds': (0.1, 0.1, 0.2, 0.2), 'inclusive': True},
]


def random_boxes(count, seed):
  rng = np.random.RandomState(seed)
  low = rng.uniform(0, 100, (count, 2))
  return np.concatenate([low, low + rng.uniform(1, 60, (count, 2))], axis=-1)


def encode(box, target, means=(0,) * 4, stds=(1,) * 4, inclusive=False):
  width, height = box[2] - box[0] + inclusive, box[3] - box[1] + inclusive
  deltas = [
    ((target[0] + target[2]) / 2 - (box[0] + box[2]) / 2) / width,
    ((target[1] + target[3]) / 2 - (box[1] + box[3]) / 2) / height,
    np.log((target[2] - target[0] + inclusive) / width),
    np.log((target[3] - target[1] + inclusive) / height),
  ]
  return [(d - mean) / std for d, mean, std in zip(deltas, means, stds, strict=True)]


def decode(box, deltas, image_size=None, means=(0,) * 4, stds=(1,) * 4, inclusive=False):
  dx, dy, dw, dh = (d * std + mean for d, mean, std in zip(deltas, means, stds, strict=True))
  width, height = box[2] - box[0] + inclusive, box[3] - box[1] + inclusive
  x, y = (box[0] + box[2]) / 2 + dx * width, (box[1] + box[3]) / 2 + dy * height
  width *= np.exp(np.clip(dw, np.log(0.016), -np.log(0.016)))
  height *= np.exp(np.clip(dh, np.log(0.016), -np.log(0.016)))
  half = inclusive / 2
  corners = [
    x - width / 2 + half,
    y - height / 2 + half,
    x + width / 2 - half,
    y + height / 2 - half,
  ]
  if image_size is None:
    return corners
  limits = [image_size[1] - inclusive, image_size[0] - inclusive]
  return [min(max(corner, 0), limits[index % 2]) for index, corner in enumerate(corners)]


@pytest.mark.parametrize('coder', CODERS, ids=str)
def test_boxes_are_encoded_as_defined_and_come_back(coder):
  references, targets = random_boxes(30, seed=0), random_boxes(30, seed=1)
  expected = [encode(*pair, **coder) for pair in zip(references, targets, strict=True)]
  deltas = jax.jit(lambda *pair: encoding.encode(*pair, **coder))(references, targets)
  np.testing.assert_allclose(deltas, expected, rtol=2e-5, atol=2e-5)
  back = jax.jit(lambda *pair: encoding.decode(*pair, **coder))(references, deltas)
  np.testing.assert_allclose(back, targets, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('image_size', [None, (80, 90)])
@pytest.mark.parametrize('coder', CODERS, ids=str)
def test_offsets_are_decoded_as_defined(coder, image_size):
  references = random_boxes(30, seed=0)
  deltas = np.random.RandomState(2).standard_normal((30, 4)) * 3  # Some beyond the clamp.
  pairs = zip(references, deltas, strict=True)
  expected = [decode(*pair, image_size, **coder) for pair in pairs]
  run = jax.jit(lambda *pair: encoding.decode(*pair, image_size=image_size, **coder))
  np.testing.assert_allclose(run(references, deltas), expected, rtol=1e-4, atol=1e-3)


def test_a_reference_has_an_offset_for_every_class():
  references = random_boxes(5, seed=0)
  deltas = np.random.RandomState(2).standard_normal((5, 3, 4))
  pairs = zip(references, deltas, strict=True)
  expected = [[decode(box, of_class) for of_class in row] for box, row in pairs]
  result = jax.jit(encoding.decode)(references[:, None], deltas)
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


def test_images_of_a_batch_have_their_own_size():
  references = np.stack([random_boxes(5, seed=0), random_boxes(5, seed=1)])
  run = lambda box, size: encoding.decode(box, jnp.zeros_like(box), image_size=size)
  result = jax.jit(jax.vmap(run))(references, np.array([[50, 60], [30, 90]]))
  expected = np.clip(references, 0, [[[60, 50, 60, 50]], [[90, 30, 90, 30]]])
  np.testing.assert_allclose(result, expected, atol=1e-4)


def test_padding_and_boxes_without_area_stay_finite():
  some = np.float32([[0, 0, 0, 0], [3, 4, 3, 9], [1, 2, 11, 12]])
  encode = lambda box: encoding.encode(some, box).sum()
  decode = lambda deltas: encoding.decode(some, deltas).sum()
  for function, argument in [(encode, some), (decode, np.full((3, 4), 1e4, np.float32))]:
    value, gradient = jax.jit(jax.value_and_grad(function))(argument)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
