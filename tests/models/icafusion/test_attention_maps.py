"""Where anchors look, by hand: tokens that ask for one token alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models
from crossattn_jax.attention import cross_modal
from crossattn_jax.models.icafusion import attention_maps

SIZE = (64, 96)
# Windows of the maps 8 x 12, 4 x 6 and 2 x 3: (2, 3), (3, 3) at steps of one, (1, 2) at a step.
GRIDS = ((4, 4), (2, 4), (2, 2))


def certain(tokens, asked):
  """What one modality says, whose token i asks for token `asked[i]` of the other one."""
  key = jnp.eye(tokens)[None, :, None]
  return cross_modal.Projected(1000 * key[:, asked], key, key)


@pytest.fixture(scope='module')
def model():
  return models.create_model('icafusion_n', grids=GRIDS, fusion_depth=2)


@pytest.fixture(scope='module')
def intermediates():
  kept = {}
  for level, (rows, columns) in zip((3, 4, 5), GRIDS, strict=True):
    tokens = rows * columns
    # RGB asks for the next token, thermal for its own place counted from the end.
    rgb, thermal = np.roll(np.arange(tokens), -1), np.arange(tokens)[::-1]
    said = {'rgb': certain(tokens, rgb), 'thermal': certain(tokens, thermal)}
    attention = {name: {'project': (None, said[name])} for name in said}
    kept[f'fusion_{level}'] = {'block_0': {}, 'block_1': {'attention': attention}}
  return kept


def window(image):
  """The box of what is not zero."""
  y, x = np.nonzero(np.asarray(image) > 1e-6)
  return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_an_anchor_looks_from_the_window_of_its_cell(model, intermediates):
  levels = model.anchors().of_input(SIZE).levels
  anchors = jnp.array(
    [
      # Row 2, column 7 of the finest level: token (1, 2).
      [(2 * 12 + 7) * 3 + 1, 0, -1],
      # Row 3, column 5 of the middle level: token (1, 3). Row 1, column 0 of the coarsest: (1, 0).
      [levels[1].start + (3 * 6 + 5) * 3, levels[2].start + 3 * 3 + 2, -1],
    ]
  )
  maps = jax.jit(lambda x: attention_maps.of_anchors(model, intermediates, SIZE, x))(anchors)
  assert {name: x.shape for name, x in maps.items()} == dict.fromkeys(
    ('rgb', 'thermal', 'query'), (2, 3, 8, 12)
  )
  for values in maps.values():
    np.testing.assert_allclose(values.sum((2, 3)), [[1, 1, 0], [1, 1, 0]], rtol=1e-5)
  assert window(maps['query'][0, 0]) == [6, 2, 9, 4]
  # RGB asks thermal for token (1, 3), thermal asks RGB for token 15 - 6 = (2, 1).
  assert window(maps['thermal'][0, 0]) == [9, 2, 12, 4]
  assert window(maps['rgb'][0, 0]) == [3, 4, 6, 6]
  np.testing.assert_allclose(maps['rgb'][0, 0, 4:6, 3:6], 1 / 6, rtol=1e-5)
  # Windows of 2 x 3 cells of 16 pixels at steps of 2 rows and 1 column.
  assert window(maps['query'][1, 0]) == [6, 4, 12, 8]
  assert window(maps['rgb'][1, 0]) == [0, 0, 6, 4]
  # Of 1 x 2 cells of 32 pixels at steps of 1.
  assert window(maps['query'][1, 1]) == [0, 4, 8, 8]
  assert window(maps['thermal'][1, 1]) == [4, 4, 12, 8]


@pytest.mark.extended
@pytest.mark.parametrize('fields', [{}, {'fusion': 'nin'}, {'modalities': ('thermal',)}], ids=str)
def test_a_model_keeps_what_maps_are_made_of_if_it_attends(fields):
  model = models.create_model('icafusion_n', **fields)

  def run():
    pair = [jnp.zeros((2, 64, 96, 3))] * 2
    _, state = model.init_with_output(jax.random.key(0), *pair)
    _, state = model.apply(
      state,
      *pair,
      mutable='intermediates',
      capture_intermediates=attention_maps.is_shown,
    )
    anchors = jnp.zeros((2, 1), jnp.int32)
    return attention_maps.of_anchors(model, state.get('intermediates', {}), SIZE, anchors)

  shapes = {name: x.shape for name, x in jax.eval_shape(run).items()}
  attends = dict.fromkeys(('rgb', 'thermal', 'query'), (2, 1, 8, 12))
  assert shapes == ({} if fields else attends)
