import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.geometry import anchors

CELLS = [
  # RetinaNet, RPN, one of mmdetection 1, a shifted one.
  {'size': 8, 'scales': anchors.octave_scales(4, 3), 'ratios': (0.5, 1, 2)},
  {'size': 16, 'scales': (8,), 'ratios': (0.5, 1, 2)},
  {'size': 16, 'scales': (2, 4), 'ratios': (0.5, 1, 2), 'center_offset': 0.5, 'inclusive': True},
  {'size': 4, 'scales': (1, 3), 'ratios': (0.3, 1.7), 'center_offset': 0.5},
]


def plain(size, scales, ratios, center_offset=0.0, inclusive=False, map_size=(1, 1), stride=1):
  boxes = []
  for y in range(map_size[0]):
    for x in range(map_size[1]):
      for ratio in ratios:
        for scale in scales:
          width = size * scale / np.sqrt(ratio) - inclusive
          height = size * scale * np.sqrt(ratio) - inclusive
          center = center_offset * (size - inclusive)
          box = np.array([-width, -height, width, height]) / 2 + center
          boxes.append((np.round(box) if inclusive else box) + np.array([x, y, x, y]) * stride)
  return np.array(boxes)


@pytest.mark.parametrize('cell', CELLS, ids=str)
def test_anchors_are_where_they_are_defined(cell):
  result = jax.jit(lambda: anchors.grid_anchors(anchors.cell_anchors(**cell), (3, 5), stride=8))()
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, plain(**cell, map_size=(3, 5), stride=8), rtol=1e-6, atol=1e-5)


def test_scales_divide_an_octave():
  np.testing.assert_allclose(anchors.octave_scales(4, 3), [4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)])
  assert anchors.octave_scales(2, 1) == (2,)


def test_the_dtype_is_kept():
  cell = anchors.cell_anchors(8, (4,), (0.5, 2), dtype=np.float64)
  np.testing.assert_allclose(cell, plain(8, (4,), (0.5, 2)), rtol=1e-15)


@pytest.mark.parametrize('image_size', [(96, 160), (65, 97), (1, 8), (64, 96)])
def test_anchors_of_padding_are_not_valid(image_size):
  valid = jax.jit(lambda size: anchors.valid_anchors(size, (12, 20), 8, 3))(jnp.array(image_size))
  rows, columns = np.ceil(np.array(image_size) / 8)
  cells = [(y, x) for y in range(12) for x in range(20) for _ in range(3)]
  np.testing.assert_array_equal(valid, [y < rows and x < columns for y, x in cells])
