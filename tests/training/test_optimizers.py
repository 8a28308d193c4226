"""Optimizers against the update equations of PyTorch's documentation, in NumPy float64."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from crossattn_jax import parallel
from crossattn_jax.training import optimizers

LEARNING_RATE = 0.1
SHAPES = {
  'block': {
    'qkv': {'kernel': (8, 3, 2, 4), 'bias': (3, 2, 4)},
    'fc1': {'kernel': (8, 16)},
    'norm': {'scale': (8,)},
  },
  'pos_embed_0': (1, 5, 8),
  'gate': (),
}


def make_config(**keys):
  config = optimizers.default_config()
  config.update(keys)
  return config


def make_tree(seed, dtype=None):
  """Returns a tree of `SHAPES` with standard normal values, by default in the default dtype."""
  dtype = dtype or jnp.result_type(float)
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.asarray(generator.standard_normal(shape), dtype),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def run(config, steps=4, params=None, schedule=lambda step: LEARNING_RATE):
  """Returns the parameters after `steps` updates with the gradients `make_tree(1)`, ..."""
  params = make_tree(0) if params is None else params
  optimizer = optimizers.create_optimizer(config, schedule, params)
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for step in range(steps):
    gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), make_tree(step + 1), params)
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  return params


def flat(tree):
  return {
    parallel.parameters.path_string(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def decays(path):
  return path in ('block/qkv/kernel', 'block/fc1/kernel', 'pos_embed_0')


def adam(param, gradients, decay=0.0, l2=0.0, lamb=False):
  """torch.optim.AdamW (decay), torch.optim.Adam (l2) and LAMB (You et al. 2019, algorithm 2)."""
  first = second = np.zeros_like(param)
  for t, gradient in enumerate(gradients, 1):
    gradient = gradient + l2 * param
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    direction = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8) + decay * param
    if lamb:
      direction *= np.linalg.norm(param) / np.linalg.norm(direction)
    param = param - LEARNING_RATE * direction
  return param


def sgd(param, gradients, l2=0.0, decay=0.0, nesterov=False):
  """torch.optim.SGD with momentum 0.9, and the same with decoupled decay."""
  buffer = np.zeros_like(param)
  for gradient in gradients:
    gradient = gradient + l2 * param
    buffer = 0.9 * buffer + gradient
    direction = gradient + 0.9 * buffer if nesterov else buffer
    param = param - LEARNING_RATE * (direction + decay * param)
  return param


@pytest.mark.parametrize(
  ('keys', 'expected'),
  [
    ({'name': 'adamw'}, lambda p, g, wd: adam(p, g, decay=wd)),
    ({'name': 'adam'}, lambda p, g, wd: adam(p, g, l2=wd)),
    ({'name': 'lamb'}, lambda p, g, wd: adam(p, g, decay=wd, lamb=True)),
    ({'name': 'sgd'}, lambda p, g, wd: sgd(p, g, l2=wd)),
    ({'name': 'sgd', 'nesterov': True}, lambda p, g, wd: sgd(p, g, l2=wd, nesterov=True)),
    (
      {'name': 'sgd', 'nesterov': True, 'decoupled_weight_decay': True},
      lambda p, g, wd: sgd(p, g, decay=wd, nesterov=True),
    ),
  ],
  ids=['adamw', 'adam', 'lamb', 'sgd', 'sgd_nesterov', 'sgd_decoupled'],
)
def test_follows_its_documented_equations_and_decays_matrices_only(keys, expected):
  with jax.enable_x64(True):
    result = flat(run(make_config(weight_decay=0.05, **keys)))
    params, gradients = flat(make_tree(0)), [flat(make_tree(step)) for step in range(1, 5)]
    for path, value in result.items():
      wanted = expected(params[path], [g[path] for g in gradients], 0.05 * decays(path))
      np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-14, err_msg=path)


def orthogonalized(matrix):
  """Five steps of Muon's iteration, and the root mean square of AdamW's steps."""
  x = matrix / (np.linalg.norm(matrix) + 1e-8)
  x = x if x.shape[0] <= x.shape[1] else x.T
  for _ in range(5):
    gram = x @ x.T
    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
  return (x if x.shape == matrix.shape else x.T) * 0.2 * np.sqrt(max(matrix.shape))


def test_muon_takes_each_matrix_whole_and_leaves_the_rest_to_adamw():
  keys = {'name': 'muon', 'momentum': 0.95, 'weight_decay': 0.05}
  with jax.enable_x64(True):
    result = flat(run(make_config(**keys), steps=1))
    excluded = flat(run(make_config(muon_exclude=('block/fc1/.*',), **keys), steps=1))
    params, gradients = flat(make_tree(0)), flat(make_tree(1))
  for path, param in params.items():
    gradient, decay = gradients[path], 0.05 * decays(path)
    expected = adam(param, [gradient], decay)
    if path == 'block/fc1/kernel':
      np.testing.assert_allclose(excluded[path], expected, rtol=1e-10)
      expected = param - LEARNING_RATE * (orthogonalized(gradient) + decay * param)
    elif path == 'block/qkv/kernel':
      parts = [orthogonalized(gradient[:, i].reshape(8, 8)).reshape(8, 2, 4) for i in range(3)]
      expected = param - LEARNING_RATE * (np.stack(parts, axis=1) + decay * param)
    np.testing.assert_allclose(result[path], expected, rtol=1e-10, err_msg=path)


def test_muon_sees_a_convolution_as_the_matrix_of_its_windows():
  with jax.enable_x64(True):
    gradients = {
      name: {'kernel': jax.random.normal(jax.random.key(0), (3, 3, channels, 8))}
      for name, channels in (('conv', 4), ('depthwise', 1))
    }
    config = make_config(name='muon', momentum=0.95)
    optimizer = optimizers.create_optimizer(config, lambda step: 1.0, gradients)
    updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
  expected = -orthogonalized(np.asarray(gradients['conv']['kernel']).reshape(36, 8))
  np.testing.assert_allclose(updates['conv']['kernel'].reshape(36, 8), expected, rtol=1e-5)
  signs = np.sign(gradients['depthwise']['kernel'])
  np.testing.assert_allclose(updates['depthwise']['kernel'], -signs, rtol=1e-5)


def test_lamb_is_optax_lamb():
  with jax.enable_x64(True):
    result = run(make_config(name='lamb', weight_decay=0.05, decay_vectors=True, epsilon=1e-6))
    params = make_tree(0)
    reference = optax.lamb(LEARNING_RATE, weight_decay=0.05)
    state, update = reference.init(params), jax.jit(reference.update)
    for step in range(4):
      updates, state = update(make_tree(step + 1), state, params)
      params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), result, params)


def test_decay_patterns_exclude_and_include():
  config = make_config(decay_exclude=('pos_embed_.*',), decay_include=('gate', '.*/norm/scale'))
  settings = optimizers.parameter_settings(config, make_tree(0))
  assert [path for path, s in settings.items() if s.decayed] == [
    'block/fc1/kernel',
    'block/norm/scale',
    'block/qkv/kernel',
    'gate',
  ]
  settings = optimizers.parameter_settings(make_config(decay_vectors=True), make_tree(0))
  assert all(s.decayed for s in settings.values())


def test_the_first_matching_multiplier_scales_rate_and_decay():
  multipliers = (('block/fc1/.*', 0.5), ('block/.*', 2.0))
  with jax.enable_x64(True):
    config = make_config(weight_decay=0.05, multipliers=multipliers)
    plain, scaled = (flat(run(c, steps=1)) for c in (make_config(weight_decay=0.05), config))
    start = flat(make_tree(0))
    for path, factor in {'block/fc1/kernel': 0.5, 'block/norm/scale': 2.0, 'gate': 1.0}.items():
      np.testing.assert_allclose(
        scaled[path] - start[path], factor * (plain[path] - start[path]), rtol=1e-12
      )


def test_frozen_parameters_stay_have_no_state_and_no_part_in_the_norm():
  config = make_config(weight_decay=0.05, multipliers=(('block/.*', 0),), clip_norm=0.1)
  params = make_tree(0)
  optimizer = optimizers.create_optimizer(config, lambda step: LEARNING_RATE, params)
  assert not any('block' in path for path in flat(optimizer.init(params)))
  result = flat(run(config, params=params))
  for path, value in flat(params).items():
    assert path.startswith('block') == bool(np.array_equal(value, result[path]))
  rest = {name: params[name] for name in ('pos_embed_0', 'gate')}
  optimizer = optimizers.create_optimizer(
    make_config(weight_decay=0.05, clip_norm=0.1), lambda step: LEARNING_RATE, rest
  )
  state, update = optimizer.init(rest), jax.jit(optimizer.update)
  for step in range(4):
    gradients = make_tree(step + 1)
    gradients = {name: gradients[name] for name in rest}
    updates, state = update(gradients, state, rest)
    rest = optax.apply_updates(rest, updates)
  np.testing.assert_allclose(result['pos_embed_0'], rest['pos_embed_0'], rtol=1e-6, atol=1e-6)


def test_clips_to_the_global_norm_or_to_a_value():
  with jax.enable_x64(True):
    sgd_once = {'name': 'sgd', 'momentum': 0.0}
    start, gradients = flat(make_tree(0)), flat(make_tree(1))
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    by_norm = flat(run(make_config(clip_norm=0.5, **sgd_once), steps=1))
    by_value = flat(run(make_config(clip_value=0.5, **sgd_once), steps=1))
    for path, gradient in gradients.items():
      np.testing.assert_allclose(
        by_norm[path], start[path] - LEARNING_RATE * gradient * 0.5 / norm, rtol=1e-12
      )
      np.testing.assert_allclose(
        by_value[path], start[path] - LEARNING_RATE * np.clip(gradient, -0.5, 0.5), rtol=1e-12
      )


@pytest.mark.extended
def test_a_loss_far_above_the_last_one_that_was_used_updates_nothing():
  params = make_tree(0)
  schedule = lambda step: LEARNING_RATE
  optimizer = optimizers.create_optimizer(make_config(max_loss_ratio=4.0), schedule, params)
  plain = optimizers.create_optimizer(make_config(), schedule, params)
  state, expected_state, expected = optimizer.init(params), plain.init(params), params
  update = jax.jit(optimizer.update)
  for step, (loss, used) in enumerate([(9.0, True), (1.0, True), (4.0, False), (3.9, True)]):
    updates, state = update(make_tree(step + 1), state, params, value=jnp.float32(loss))
    params = optax.apply_updates(params, updates)
    if used:
      updates, expected_state = plain.update(make_tree(step + 1), expected_state, expected)
      expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(flat(params)['gate'], flat(expected)['gate'], rtol=1e-6)
  assert state.last_loss == pytest.approx(3.9)


def test_adaptive_clipping_has_the_units_of_torch_layouts():
  # timm's rule on the same arrays in PyTorch's layout: a unit per index of the first dimension.
  to_torch = {
    'block/qkv/kernel': lambda x: x.reshape(8, 24).T,
    'block/qkv/bias': lambda x: x.reshape(24),
    'block/fc1/kernel': lambda x: x.T,
  }
  with jax.enable_x64(True):
    fraction = 0.01
    config = make_config(
      name='sgd', momentum=0.0, clip_adaptive=fraction, clip_adaptive_elements=('.*/norm/scale',)
    )
    result, start, gradients = flat(run(config, steps=1)), flat(make_tree(0)), flat(make_tree(1))
  for path in start:
    layout = to_torch.get(path, lambda x: x[:, None] if x.shape == (8,) else x)
    p, g, r = (layout(tree[path]) for tree in (start, gradients, result))
    axes = tuple(range(1, p.ndim)) if p.ndim > 1 else None
    norms = [np.sqrt(np.sum(x**2, axis=axes, keepdims=True)) for x in (p, g)]
    limit = fraction * np.maximum(norms[0], 1e-3)
    clipped = np.where(norms[1] < limit, g, g * limit / np.maximum(norms[1], 1e-6))
    np.testing.assert_allclose(r, p - LEARNING_RATE * clipped, rtol=1e-10, err_msg=path)


def test_moments_of_bfloat16_parameters_are_float32():
  params = make_tree(0, jnp.bfloat16)
  optimizer = optimizers.create_optimizer(make_config(), lambda step: LEARNING_RATE, params)
  state = jax.jit(optimizer.init)(params)
  updates, state = jax.jit(optimizer.update)(params, state, params)
  assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state))
  assert {leaf.dtype for leaf in jax.tree.leaves(optax.apply_updates(params, updates))} == {
    jnp.dtype(jnp.bfloat16)
  }


@pytest.mark.parametrize(
  ('name', 'frozen'),
  [
    ('adamw', False),
    ('sgd', True),
    ('lamb', False),
    ('adam', True),
    ('muon', False),
    ('muon', True),
  ],
)
def test_state_takes_the_shardings_of_the_parameters(name, frozen):
  mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
  params = make_tree(0)
  shardings = jax.tree.map(
    lambda p: NamedSharding(mesh, PartitionSpec(*['fsdp'] * (p.shape[:1] == (8,)))), params
  )
  config = make_config(
    name=name,
    weight_decay=0.05,
    multipliers=(('pos_embed_0', 0),) if frozen else (),
  )
  optimizer = optimizers.create_optimizer(config, lambda step: LEARNING_RATE, params)
  everywhere = NamedSharding(mesh, PartitionSpec())
  state_shardings = optax.tree_map_params(
    optimizer,
    lambda leaf, sharding: leaf if isinstance(leaf, optax.MaskedNode) else sharding,
    jax.eval_shape(optimizer.init, params),
    shardings,
    transform_non_params=lambda _: everywhere,
    is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
  )
  state = jax.jit(optimizer.init, out_shardings=state_shardings)(params)
  kernels = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if 'fc1/kernel' in parallel.parameters.path_string(path)
  ]
  assert len(kernels) == (1 if name in ('sgd', 'muon') else 2)
  assert all(leaf.addressable_shards[0].data.shape == (1, 16) for leaf in kernels)
  sharded = jax.device_put(params, shardings)
  update = jax.jit(optimizer.update, out_shardings=(shardings, state_shardings))
  updates, _ = update(sharded, state, sharded)
  expected, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), updates, expected
  )


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    ({'name': 'adamv'}, "unknown optimizer 'adamv'; did you mean 'adam'"),
    ({'name': 'adam', 'decoupled_weight_decay': True}, "name='adamw'"),
    ({'clip_norm': 1.0, 'clip_value': 1.0}, 'clip_norm and clip_value'),
    ({'decay_exclude': ('pos_embed',)}, "'pos_embed' matches none.*'pos_embed_0'"),
    ({'decay_include': ('gates',)}, "decay_include.*'gates' matches none.*'gate'"),
    ({'multipliers': (('blocks/.*', 0.1),)}, "multipliers.*'blocks/.*' matches none"),
    ({'clip_adaptive_elements': ('scale',)}, 'clip_adaptive_elements'),
    ({'warmup_starts': (('biases', 0.1),)}, "warmup_starts.*'biases' matches none"),
    ({'warmup_momentum': 0.8}, "warmup_momentum is of name='sgd', not 'adamw'"),
    ({'nominal_batch_size': 0}, 'nominal_batch_size=0 must be positive'),
  ],
)
def test_unknown_names_patterns_without_a_match_and_contradictions_are_refused(keys, message):
  with pytest.raises(ValueError, match=message):
    optimizers.create_optimizer(make_config(**keys), lambda step: 0.1, make_tree(0))


def test_layer_decay_multiplies_rates_from_the_last_layer_down():
  params = {name: jnp.zeros(2) for name in ('stem', 'layer_0', 'layer_1', 'head')}
  params = {name: {'kernel': value} for name, value in params.items()}
  config = make_config(layer_decay=0.5, multipliers=((r'layer_1/kernel', 10.0),))
  settings = optimizers.parameter_settings(config, params, freeze=('stem/.*',))
  assert {path: setting.multiplier for path, setting in settings.items()} == {
    'stem/kernel': 0.0,
    'layer_0/kernel': 0.25,
    'layer_1/kernel': 5.0,
    'head/kernel': 1.0,
  }


def test_frozen_parameters_stay_and_a_pattern_that_freezes_nothing_is_refused():
  params = make_tree(0)
  optimizer = optimizers.create_optimizer(
    make_config(), lambda step: LEARNING_RATE, params, freeze=('block/.*',)
  )
  updates, _ = optimizer.update(make_tree(1), optimizer.init(params), params)
  updates = flat(updates)
  assert {path for path, update in updates.items() if np.any(update)} == {'pos_embed_0', 'gate'}
  with pytest.raises(ValueError, match=r"freeze: the pattern 'blocks/\.\*' matches none.*block/"):
    optimizers.parameter_settings(make_config(), params, freeze=('blocks/.*',))
