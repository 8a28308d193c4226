import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax import parallel
from crossattn_jax.attention import bi_level_routing as routing_lib

Attention = routing_lib.BiLevelRoutingAttention


def _normal(*shape, seed=0):
  return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32)


def _module(**fields):
  return Attention(**{'num_heads': 2, 'regions_per_side': 2, 'top_k': 2, 'lepe_side': 3, **fields})


def _variables(module, x, scale=0.5):
  """Variables large enough that attention and routing are not uniform."""
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.RandomState(0)
  return tree.unflatten(
    [jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
  )


def _apply(module, variables, x, routing=None, with_attention=False):
  apply = functools.partial(module.apply, with_attention=with_attention)
  return jax.jit(apply)(variables, x, routing)


def _masked_dense(x, params, routing, grid, heads):
  """Attention over all tokens under the mask that the routing describes, in float64."""
  x = np.asarray(x, np.float64)
  batch, height, width, channels = x.shape
  kernel, bias = (np.asarray(params['qkv'][name], np.float64) for name in ('kernel', 'bias'))
  qkv = np.einsum('byxc,cphd->pbyxhd', x, kernel) + bias[:, None, None, None]
  query, key, value = qkv.reshape(3, batch, height * width, heads, -1)
  region = np.arange(height)[:, None] // (height // grid) * grid
  region = (region + np.arange(width) // (width // grid)).ravel()
  visible = np.stack([[np.isin(region, table[r]) for r in region] for table in np.asarray(routing)])
  scores = np.einsum('bqhd,bkhd->bhqk', query, key) * channels**-0.5
  scores = np.where(visible[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum('bhqk,bkhd->bqhd', weights, value)
  out = np.einsum('bqhd,hdc->bqc', out, params['out']['kernel']) + params['out']['bias']
  return out.reshape(x.shape)


def test_partition_goes_row_by_row_and_merge_undoes_it():
  x = jnp.arange(2 * 4 * 6).reshape(2, 4, 6, 1)
  regions = routing_lib.partition(x, (2, 3))
  assert regions.shape == (2, 6, 4, 1)
  np.testing.assert_array_equal(regions[0, 4, :, 0], [14, 15, 20, 21])  # row 1, column 1
  np.testing.assert_array_equal(routing_lib.merge(regions, (2, 3), (2, 2)), x)


def test_routing_takes_the_most_akin_regions_and_the_first_of_equal_ones():
  query = jnp.asarray([[[1.0], [-1.0]]])
  key = jnp.asarray([[[3.0], [5.0], [5.0], [-1.0]]])
  routing = routing_lib.route(query, key, 2, scale=0.5)
  np.testing.assert_array_equal(routing.regions, [[[1, 2], [3, 0]]])
  np.testing.assert_allclose(routing.logits[0, 0], [1.5, 2.5, 2.5, -0.5])
  np.testing.assert_allclose(routing.weights[0, 0], [0.5, 0.5])
  np.testing.assert_allclose(routing.weights[0, 1], np.exp([0.5, -1.5]) / np.exp([0.5, -1.5]).sum())


def test_routing_of_half_precision_is_computed_in_float32():
  means = [_normal(1, 49, 64, seed=seed).astype(jnp.bfloat16) for seed in (0, 1)]
  routing = routing_lib.route(*means, 4)
  assert routing.logits.dtype == jnp.float32
  exact = np.einsum('bqc,bkc->bqk', *(np.asarray(part, np.float64) for part in means))
  np.testing.assert_allclose(routing.logits, exact, atol=1e-5)
  np.testing.assert_array_equal(routing.regions, np.argsort(-exact, axis=-1)[..., :4])


def test_is_dense_attention_under_the_mask_of_its_routing():
  x = _normal(2, 8, 6, 4)
  module = _module(lepe_side=0)
  variables = _variables(module, x)
  out, routing = _apply(module, variables, x)
  expected = _masked_dense(x, variables['params'], routing.regions, 2, 2)
  np.testing.assert_allclose(out, expected, atol=2e-5)
  # Routing from the definition: means of queries and keys.
  kernel, bias = variables['params']['qkv']['kernel'], variables['params']['qkv']['bias']
  means = routing_lib.partition(x, (2, 2)).mean(axis=2)
  query, key, _ = np.moveaxis(np.einsum('brc,cphd->brphd', means, kernel) + bias, 2, 0)
  logits = np.einsum('bqhd,bkhd->bqk', query, key) * 4**-0.5
  np.testing.assert_allclose(routing.logits, logits, atol=1e-5)
  np.testing.assert_array_equal(routing.regions, np.argsort(-logits, axis=-1)[..., :2])


def test_imposed_routing_is_obeyed_whatever_its_order():
  x = _normal(1, 4, 4, 4)
  module = _module(lepe_side=0)
  variables = _variables(module, x)
  imposed = jnp.asarray([[[0, 1], [2, 3], [3, 0], [1, 2]]])
  out, routing = _apply(module, variables, x, imposed)
  np.testing.assert_array_equal(routing.regions, imposed)
  expected = _masked_dense(x, variables['params'], imposed, 2, 2)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  np.testing.assert_allclose(_apply(module, variables, x, imposed[..., ::-1])[0], out, atol=1e-6)


def test_local_enhancement_adds_a_convolution_of_the_values():
  x = _normal(1, 4, 4, 4)
  module = _module()
  variables = _variables(module, x)
  with_lepe, _ = _apply(module, variables, x)
  params = dict(variables['params'])
  lepe = params.pop('lepe')
  without, _ = _apply(_module(lepe_side=0), {'params': params}, x)
  kernel, bias = params['qkv']['kernel'], params['qkv']['bias']
  value = (np.einsum('byxc,chd->byxhd', x, kernel[:, 2]) + bias[2]).reshape(x.shape)
  value = np.pad(value, ((0, 0), (1, 1), (1, 1), (0, 0)))
  local = sum(
    value[:, i : i + 4, j : j + 4] * lepe['kernel'][i, j, 0] for i in range(3) for j in range(3)
  )
  out_kernel = params['out']['kernel'].reshape(4, 4)
  np.testing.assert_allclose(with_lepe - without, (local + lepe['bias']) @ out_kernel, atol=1e-5)


def _input_gradient(module, variables, x, **kwargs):
  return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(module.apply(variables, x, **kwargs)[0]))))(x)


def test_no_gradient_flows_through_hard_routing():
  x = _normal(1, 4, 4, 4)
  module = _module()
  variables = _variables(module, x)
  _, routing = _apply(module, variables, x)
  free = _input_gradient(module, variables, x)
  imposed = _input_gradient(module, variables, x, routing=routing.regions)
  np.testing.assert_allclose(free, imposed, atol=1e-6)
  logits = jax.jit(jax.grad(lambda x: module.apply(variables, x)[1].logits.sum()))(x)
  assert not np.any(logits)


def test_soft_routing_learns_only_where_it_is_asked_to():
  x = _normal(1, 4, 4, 4)

  def largest_gradients(kind):
    module = _module(routing=kind)
    loss = lambda variables: jnp.sum(module.apply(variables, x)[1].weights ** 2)
    gradient = jax.jit(jax.grad(loss))(_variables(module, x))
    return jax.tree.map(lambda g: np.abs(g).max(), gradient['params'])

  weights = {
    kind: largest_gradients(kind) for kind in ('soft', 'soft_differentiable', 'soft_parametric')
  }
  assert not any(jax.tree.leaves(weights['soft']))
  assert weights['soft_differentiable']['qkv']['kernel'] > 1e-3
  assert weights['soft_parametric']['router']['embedding']['kernel'] > 1e-3


@pytest.mark.parametrize('routing', ['hard', 'soft_differentiable'])
@pytest.mark.parametrize(
  'size', [(5, 7), pytest.param((3, 8), marks=pytest.mark.extended)], ids=str
)
def test_masked_padding_changes_nothing(routing, size):
  """A map in the corner of a larger one: 'masked' sees what is there, 'input' also what is not."""
  x = _normal(1, *size, 4)
  module = _module(regions_per_side=3, top_k=3, padding='masked', routing=routing)
  variables = _variables(module, x)
  out, chosen = _apply(module, variables, x)
  assert out.shape == x.shape
  _, region_size = routing_lib.region_grid(size, 3, 'masked')
  # By hand: attention of each token to the real tokens of the chosen regions.
  kernel, bias = variables['params']['qkv']['kernel'], variables['params']['qkv']['bias']
  query, key, value = np.moveaxis(np.einsum('yxc,cphd->yxphd', x[0], kernel) + bias, 2, 0)
  chosen = jax.device_get(chosen)
  regions = {r: [] for r in range(9)}
  for y in range(size[0]):
    for u in range(size[1]):
      regions[y // region_size[0] * 3 + u // region_size[1]].append((y, u))
  weights = np.ones((9, 3)) if routing == 'hard' else np.asarray(chosen.weights[0])
  expected = np.zeros((*size, 2, 2))
  for r, tokens in regions.items():
    keys = [
      (p, w) for j, w in zip(chosen.regions[0, r], weights[r], strict=True) for p in regions[int(j)]
    ]
    for y, u in tokens:
      for head in range(2):
        scores = np.array([query[y, u, head] @ key[p][head] * w * 4**-0.5 for p, w in keys])
        attention = np.exp(scores - scores.max())
        attention /= attention.sum()
        expected[y, u, head] = sum(
          a * value[p][head] * w for a, (p, w) in zip(attention, keys, strict=True)
        )
  params = dict(variables['params'])
  params.pop('lepe')
  bare, _ = _apply(module.clone(lepe_side=0), {'params': params}, x)
  flat = expected.reshape(*size, 4) @ params['out']['kernel'].reshape(4, 4) + params['out']['bias']
  np.testing.assert_allclose(bare[0], flat, atol=2e-5)


def test_regions_of_padding_only_are_never_chosen_when_masked():
  x = _normal(1, 5, 5, 4)  # 4 x 4 regions of 2 x 2: the last row and column hold nothing
  module = _module(regions_per_side=4, top_k=9, padding='masked')
  _, routing = _apply(module, _variables(module, x), x)
  real = {4 * row + column for row in range(3) for column in range(3)}
  assert set(np.ravel(routing.regions).tolist()) == real


def test_more_regions_than_real_ones_are_harmless_when_masked():
  x = _normal(1, 5, 5, 4)
  module = _module(regions_per_side=4, top_k=12, padding='masked', lepe_side=0)
  variables = _variables(module, x)
  out, _ = _apply(module, variables, x)
  everything, _ = _apply(_module(regions_per_side=1, top_k=1, lepe_side=0), variables, x)
  np.testing.assert_allclose(out, everything, atol=1e-5)


@pytest.mark.parametrize(
  ('size', 'padding', 'grid', 'region_size'),
  [
    ((14, 21), 'none', (7, 7), (2, 3)),
    ((13, 18), 'input', (7, 7), (2, 3)),
    ((50, 84), 'masked', (7, 7), (8, 12)),
    ((13, 18), 'qkv', (13, 9), (1, 2)),
    ((14, 21), 'qkv', (7, 7), (2, 3)),
  ],
  ids=str,
)
def test_region_grids(size, padding, grid, region_size):
  assert routing_lib.region_grid(size, 7, padding) == (grid, region_size)


def test_paddings_agree_where_there_is_nothing_to_pad():
  x = _normal(1, 4, 6, 4)
  variables = _variables(_module(), x)
  outputs = [_apply(_module(padding=padding), variables, x)[0] for padding in routing_lib.PADDINGS]
  for out in outputs[1:]:
    np.testing.assert_allclose(out, outputs[0], atol=1e-6)


def test_pooling_by_hand():
  region = jnp.arange(20.0).reshape(1, 1, 20, 1)  # 5 x 4 tokens
  pool = functools.partial(routing_lib.pool_regions, region, (5, 4))
  np.testing.assert_array_equal(pool('average', 2).ravel(), [2.5, 4.5, 10.5, 12.5])
  np.testing.assert_array_equal(pool('max', 3).ravel(), [10])
  np.testing.assert_array_equal(pool('adaptive_max', 2).ravel(), [9, 11, 17, 19])
  np.testing.assert_array_equal(pool('adaptive_average', 1).ravel(), [9.5])
  assert pool('none', 1) is region


def test_attention_weights_are_those_of_the_result():
  x = _normal(1, 4, 4, 4)
  module = _module(output_projection=False, lepe_side=0)
  variables = _variables(module, x)
  out, routing = _apply(module, variables, x, with_attention=True)
  assert routing.attention.shape == (1, 2, 4, 4, 2, 4)
  np.testing.assert_allclose(routing.attention.sum((-2, -1)), 1, rtol=1e-5)
  kernel, bias = variables['params']['qkv']['kernel'], variables['params']['qkv']['bias']
  value = jnp.einsum('byxc,chd->byxhd', x, kernel[:, 2]) + bias[2]
  values = routing_lib.gather_regions(routing_lib.partition(value, (2, 2)), routing.regions)
  expected = np.einsum('bhrnkm,brkmhd->brnhd', routing.attention, values)
  expected = routing_lib.merge(expected, (2, 2), (2, 2)).reshape(x.shape)
  np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
  'sizes', [pytest.param((8, 1, 1, 1), marks=pytest.mark.extended), (2, 2, 2, 1)], ids=str
)
def test_eight_devices_compute_what_one_does(sizes):
  x = _normal(8, 4, 4, 8)
  module = _module(num_heads=4)
  variables = _variables(module, x)

  def loss(variables, x):
    out, routing = _apply(module, variables, x)
    return jnp.sum(jnp.sin(out)), routing.regions

  gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  (expected, regions), grads = jax.jit(gradient)(variables, x)
  mesh = parallel.create_mesh(*sizes)
  with jax.set_mesh(mesh):
    step = jax.jit(
      gradient, in_shardings=(parallel.replicated(mesh), parallel.batch_sharding(mesh))
    )
    (actual, sharded_regions), sharded_grads = step(variables, x)
  np.testing.assert_array_equal(regions, sharded_regions)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(sharded_grads), jax.tree.leaves(grads), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-6)


def test_rematerialisation_keeps_the_routing():
  x = _normal(1, 4, 4, 4)
  module = _module()
  variables = _variables(module, x)
  policy = jax.checkpoint_policies.save_only_these_names(routing_lib.CHECKPOINT_NAME)
  function = jax.checkpoint(lambda x: module.apply(variables, x)[0], policy=policy)
  backward = str(jax.make_jaxpr(lambda x: jax.vjp(function, x)[1](jnp.ones(x.shape)))(x))
  assert backward.count('top_k[') == 1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_heads': 3}, r'num_heads=3 does not divide channels=4'),
    ({'qk_dim': 3}, r'num_heads=2 does not divide qk_dim=3'),
    ({'top_k': 5}, r'top_k=5 regions of 2 x 2 do not exist'),
    ({'routing': 'firm'}, r"routing='firm' is not one of hard, soft"),
    ({'padding': 'same'}, r"padding='same' is not one of none, input"),
    ({'kv_pooling': 'conv'}, r"kv_pooling='conv' is not one of none, average"),
    ({'padding': 'masked', 'kv_pooling': 'max'}, r'hides tokens, which kv_pooling'),
    ({'regions_per_side': 3}, r'4 x 6 does not divide into 3 x 3 regions; set padding='),
    ({'regions_per_side': 5, 'padding': 'qkv'}, r'4 x 6 is smaller than 5 x 5 regions'),
  ],
  ids=lambda x: str(x)[:40],
)
def test_what_does_not_fit_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_module(**fields).init, jax.random.key(0), jnp.zeros((1, 4, 6, 4)))
