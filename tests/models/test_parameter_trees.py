"""Parameters of every model keep their paths, shapes and types: a checkpoint is read for years."""

import hashlib
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from crossattn_jax import models
from crossattn_jax.layers import sparse_convolution

# By name: parameters, and the hash of the tree of all variables.
TREES = json.loads(pathlib.Path(__file__).with_name('parameter_trees.json').read_text())


def _inputs(model):
  """What a model takes, as small as it may be."""
  array = jax.ShapeDtypeStruct
  match type(model).__name__:
    case 'Bert':
      return array((1, 4), jnp.int32), array((1, 4), jnp.bool_)
    case 'MMCA':
      words = array((1, 4, model.word_dim), jnp.float32)
      if model.text_layers:
        words = array((1, 4), jnp.int32)
      return ({'regions': array((1, 2, model.region_dim), jnp.float32), 'words': words},)
    case 'ATFuse':
      return (array((1, 8, 8, 1), jnp.float32),) * 2
    case 'SketchLocalizer':
      sketch = 1, 1, model.sketch_size, model.sketch_size, model.num_channels
      return array((1, 64, 64, model.num_channels), jnp.float32), array(sketch, jnp.float32)
    case 'MinkUNet' | 'MIT' | 'MITPoints' | 'MITImages':
      tables = [array((1, rows, 1), jnp.int32) for rows in (27, 8)]
      level = sparse_convolution.Level(*tables, array((1, 1), jnp.int32))
      points = array((1, 1, 125 * model.num_channels), jnp.float32), [level] * 5
      if not hasattr(model, 'num_heads'):
        return points
      supervoxels = array((1, 1), jnp.int32), array((1,), jnp.int32), array((1, 1, 3), jnp.float32)
      views = getattr(model, 'num_views', 0), 32, 32, model.num_channels
      return *points, *supervoxels, array((1, *views), jnp.float32)
    case 'ICAFusion':
      return (array((1, *model.image_size, model.num_channels), jnp.float32),) * 2
  return (array((1, *model.image_size, model.num_channels), jnp.float32),)


def tree_of(name):
  """The entry of a model."""
  model = models.create_model(name)
  variables = jax.eval_shape(model.init, jax.random.key(0), *_inputs(model))
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  described = sorted(
    f'{jax.tree_util.keystr(path, simple=True, separator="/")} {leaf.shape} {leaf.dtype}'
    for path, leaf in leaves
  )
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
  return [count, hashlib.sha256('\n'.join(described).encode()).hexdigest()[:16]]


@pytest.mark.extended
@pytest.mark.parametrize('name', TREES)
def test_a_model_s_variables_are_those_of_its_checkpoints(name):
  assert tree_of(name) == TREES[name]
