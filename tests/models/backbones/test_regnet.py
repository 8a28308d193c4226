import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import models


def test_parameter_count_is_the_original_s():
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  (logits, features), variables = jax.eval_shape(
    models.create_model('regnety_160').init_with_output, jax.random.key(0), image
  )
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(variables['params'])) == 83_590_140
  assert logits.shape == (1, 1000)
  assert [features[f'stage_{s}'].shape[1:] for s in range(4)] == [
    (56, 56, 224),
    (28, 28, 448),
    (14, 14, 1232),
    (7, 7, 3024),
  ]


def test_a_small_one_answers_and_updates_its_statistics():
  model = models.create_model(
    'regnety_160', stem_width=8, widths=(16,), depths=(2,), group_width=8, num_classes=5
  )
  image = jnp.asarray(np.random.RandomState(0).standard_normal((2, 9, 12, 3)), jnp.float32)
  variables = jax.jit(model.init)(jax.random.key(0), image)
  (logits, _), updated = jax.jit(
    lambda v: model.apply(v, image, train=True, mutable=['batch_stats'])
  )(variables)
  assert logits.shape == (2, 5)
  moved = jax.tree.map(
    lambda new, old: bool(np.any(new != old)), updated['batch_stats'], variables['batch_stats']
  )
  assert set(jax.tree.leaves(moved)) == {True}


def test_a_loop_over_the_blocks_changes_no_answer_and_no_statistic():
  called = models.create_model(
    'regnety_160', stem_width=8, widths=(16,), depths=(4,), group_width=8, num_classes=5
  )
  scanned = called.clone(scan_blocks=True)
  image = jnp.asarray(np.random.RandomState(0).standard_normal((2, 9, 12, 3)), jnp.float32)
  variables = jax.jit(scanned.init)(jax.random.key(0), image)
  run = lambda model, v: model.apply(v, image, train=True, mutable=['batch_stats'])
  programs = [functools.partial(run, model) for model in (called, scanned)]
  assert ['scan[' in str(jax.make_jaxpr(p)(variables)) for p in programs] == [False, True]
  chex.assert_trees_all_close(
    *(jax.jit(program)(variables) for program in programs), rtol=1e-4, atol=1e-5
  )


def test_groups_must_divide_the_widths():
  with pytest.raises(ValueError, match=r'group_width=5 does not divide widths=\(16, 32\)'):
    models.create_model('regnety_160', widths=(16, 32), depths=(1, 1), group_width=5)
