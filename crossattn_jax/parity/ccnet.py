"""CCNet, PSPNet and DeepLabv3 and their PyTorch original: speedinghzl/CCNet."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from einops import rearrange
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from crossattn_jax.attention import criss_cross
from crossattn_jax.data import cityscapes, segmentation_augmentation
from crossattn_jax.heads import aspp, pyramid_pooling, rcca
from crossattn_jax.heads import style as style_lib
from crossattn_jax.kernels.criss_cross import api, reference
from crossattn_jax.layers import batch_norm, conv_norm, convolution, resize
from crossattn_jax.metrics import segmentation as metrics
from crossattn_jax.models import ccnet, resnet
from crossattn_jax.parity import adapters, cases
from crossattn_jax.parity import mapping as mapping_lib
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.tasks import segmentation_inference as inference
from crossattn_jax.tasks import segmentation_losses as losses
from crossattn_jax.training import optimizers, schedules

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

_STYLE = style_lib.Style(corner_aligned=True, activated_norm=True, dropout_rate=0.0)
_UNIT = functools.partial(conv_norm.ConvNorm, absolute_scale=True)


def _channels_last(x: jax.Array) -> jax.Array:
  return jnp.moveaxis(x, 1, -1)


def _channels_first(x: jax.Array) -> jax.Array:
  return jnp.moveaxis(x, -1, 1)


@functools.cache
def _pointwise(rank: int) -> mapping_lib.Layout:
  """The layout of a linear map that the original keeps as a convolution of `rank` axes."""
  ones = (1,) * rank
  return mapping_lib.Layout(
    f'pointwise convolution of {rank} axes',
    lambda shape: shape if len(shape) == 1 else (*shape[::-1], *ones),
    lambda x, shape: x.reshape(shape[::-1]).T,
    lambda x, shape: x.T.reshape(shape),
  )


def criss_cross_rules(rank: int) -> list[Rule]:
  """The rules of `CrissCrossAttention` on maps of `rank` axes, inside the original's module."""
  layout = _pointwise(rank)
  return [
    Rule('gamma', 'gate', 'unbatched'),
    Rule('{map:query|key|value}_conv.weight', '{map}/kernel', layout),
    Rule('{map:query|key|value}_conv.bias', '{map}/bias', layout),
  ]


def attention_adapter(
  manifest: Manifest, implementation: str = 'auto', interpret: bool = False
) -> adapters.Adapter:
  """The attention alone, by one of its implementations."""

  def run(q: jax.Array, k: jax.Array, v: jax.Array) -> Arrays:
    q, k, v = (_channels_last(x) for x in (q, k, v))
    out = api.attention(q, k, v, implementation, interpret=interpret)
    scores = reference.criss_cross_scores(q, k)
    return {
      'out': _channels_first(out),
      'lse': nn.logsumexp(scores, axis=-1),
      'attention': nn.softmax(scores),
    }

  recorded = {name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')}
  return adapters.function_adapter(
    lambda **inputs: {name: x for name, x in run(**inputs).items() if name in recorded},
    without_gradient=recorded - {'out'},
    jit=True,
  )


@adapters.register_adapter('ccnet', 'criss_cross_attention')
def _criss_cross_attention(manifest: Manifest) -> adapters.Adapter:
  return attention_adapter(manifest)


def _module(manifest: Manifest, rank: int) -> adapters.Adapter:
  c = manifest['constructor']

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    x, outputs = _channels_last(inputs['x']), {}
    for r in range(c['recurrence']):
      x = module(x)
      outputs[f'r{r + 1}'] = _channels_first(x)
    return outputs

  return adapters.module_adapter(
    manifest,
    # Once at a time: the case recorded the map after each.
    criss_cross.CrissCrossAttention(recurrence=1, reduction=c['in_dim'] // c['key_dim']),
    rules=mapping_lib.prefixed(criss_cross_rules(rank), 'cca.', ''),
    call=call,
  )


@adapters.register_adapter('ccnet', 'CrissCrossAttention')
def _criss_cross_module(manifest: Manifest) -> adapters.Adapter:
  return _module(manifest, rank=2)


@adapters.register_adapter('ccnet', 'CrissCrossAttention3D')
def _criss_cross_module_3d(manifest: Manifest) -> adapters.Adapter:
  return _module(manifest, rank=3)


@adapters.register_adapter('ccnet', 'cca3d_branch_as_is')
def _community_module_3d(manifest: Manifest) -> adapters.Adapter:
  """The file of the branch pure-python, whose mistakes are repeated here and nowhere else."""

  class Module(nn.Module):
    @nn.compact
    def __call__(self, x):
      channels = x.shape[-1]
      q = nn.Dense(channels // 8, name='query')(x)
      k = nn.Dense(channels // 8, name='key')(x)
      v = nn.Dense(channels, name='value')(x)
      batch, height, width, depth = x.shape[:4]
      itself = jnp.eye(height, dtype=bool)[:, None, None]
      scores = [
        jnp.where(itself, -jnp.inf, jnp.einsum('bhwdc,bgwdc->bhwdg', q, k)),
        jnp.einsum('bhwdc,bhudc->bhwdu', q, k),
        # The pixel itself a second time.
        jnp.einsum('bhwdc,bhwec->bhwde', q, k),
      ]
      weights = nn.softmax(jnp.concatenate(scores, axis=-1))
      column, row, line = jnp.split(weights, [height, height + width], axis=-1)
      # Axes in an order that the reshaping does not expect.
      row = row.transpose(0, 1, 4, 2, 3).reshape(batch, height, depth, width, width)
      out = jnp.einsum('bhwdg,bgwdc->bhwdc', column, v)
      out += jnp.einsum('bhdwu,bhudc->bhwdc', row, v)
      out += jnp.einsum('bhwde,bhwec->bhwdc', line, v)
      return self.param('gate', nn.initializers.zeros, ()) * out + x

  return adapters.module_adapter(
    manifest,
    Module(),
    rules=criss_cross_rules(3),
    call=lambda module, inputs: {'y': _channels_first(module(_channels_last(inputs['x'])))},
  )


# The correspondence of names, from the inside out.


def norm_rules(torch: str, flax: str) -> list[Rule]:
  """The rules of a batch norm, activated or not."""
  return [
    Rule(f'{torch}.weight', f'{flax}/scale'),
    Rule(f'{torch}.bias', f'{flax}/bias'),
    Rule(f'{torch}.running_mean', f'{flax}/mean', collection='batch_stats'),
    Rule(f'{torch}.running_var', f'{flax}/var', collection='batch_stats'),
    Rule(f'{torch}.num_batches_tracked', None),
  ]


def conv_rules(torch: str, flax: str) -> list[Rule]:
  """The rules of a convolution."""
  return [
    Rule(f'{torch}.weight', f'{flax}/kernel', 'conv'),
    Rule(f'{torch}.bias', f'{flax}/bias'),
  ]


def unit_rules(conv: str, norm: str, flax: str) -> list[Rule]:
  """The rules of a convolution with its norm."""
  return [*conv_rules(conv, f'{flax}/conv'), *norm_rules(norm, f'{flax}/norm')]


STEM = [rule for i in range(3) for rule in unit_rules(f'conv{i + 1}', f'bn{i + 1}', f'conv_{i}')]
BOTTLENECK = [
  *(rule for i in range(3) for rule in unit_rules(f'conv{i + 1}', f'bn{i + 1}', f'conv_{i}')),
  *unit_rules('downsample.0', 'downsample.1', 'shortcut'),
]


def backbone_rules(stages: int) -> list[Rule]:
  """The rules of a ResNet without its classifier."""
  rules = prefixed(STEM, '', 'stem/')
  for s in range(stages):
    rules += prefixed(BOTTLENECK, f'layer{s + 1}.{{b}}.', f'stage_{s}/block_{{b}}/')
  return rules


RESNET_HEAD = [Rule('fc.weight', 'head/kernel', 'linear'), Rule('fc.bias', 'head/bias')]
RCCA = [
  *unit_rules('conva.0', 'conva.1', 'reduction'),
  *prefixed(criss_cross_rules(2), 'cca.', 'attention/'),
  *unit_rules('convb.0', 'convb.1', 'output'),
  *unit_rules('bottleneck.0', 'bottleneck.1', 'fusion'),
  *conv_rules('bottleneck.3', 'classifier'),
]
PSP = [
  *(
    rule
    for i, scale in enumerate(pyramid_pooling.SCALES)
    for rule in unit_rules(f'stages.{i}.1', f'stages.{i}.2', f'pool_{scale}')
  ),
  *unit_rules('bottleneck.0', 'bottleneck.1', 'fusion'),
]
ASPP = [
  *unit_rules('conv1.1', 'conv1.2', 'image'),
  *unit_rules('conv2.0', 'conv2.1', 'pixel'),
  *(
    rule
    for i, dilation in enumerate((12, 24, 36))
    for rule in unit_rules(f'conv{i + 3}.0', f'conv{i + 3}.1', f'dilation_{dilation}')
  ),
  *unit_rules('bottleneck.0', 'bottleneck.1', 'fusion'),
]
_HEADS = {
  'rcca': RCCA,
  'psp': [*prefixed(PSP, '0.', 'pooling/'), *conv_rules('1', 'classifier')],
  'aspp': [*prefixed(ASPP, '0.', 'pooling/'), *conv_rules('1', 'classifier')],
}


def model_rules(module: ccnet.CCNet) -> list[Rule]:
  """The rules of a whole network."""
  return [
    *prefixed(backbone_rules(len(module.depths)), '', 'backbone/'),
    *prefixed(_HEADS[module.context], 'head.', 'head/'),
    *unit_rules('dsn.0', 'dsn.1', 'auxiliary_head/conv'),
    *conv_rules('dsn.3', 'auxiliary_head/classifier'),
    # The paper's, in no official checkpoint.
    *conv_rules('head.embedding', 'head/embedding'),
  ]


def _first(result: Any) -> jax.Array:
  return _channels_first(result[0] if isinstance(result, tuple) else result)


RCCA_TAPS = {
  'conva': ('reduction', _first),
  'cca': ('attention', _first),
  'convb': ('output', _first),
  'bottleneck.1': ('fusion', _first),
}


def model_taps(module: ccnet.CCNet) -> dict[str, adapters.TapLike | None]:
  """The taps of a whole network."""
  taps: dict[str, adapters.TapLike | None] = {'maxpool': ('backbone/stem', _first)}
  for s in range(len(module.depths)):
    taps[f'layer{s + 1}'] = (f'backbone/stage_{s}', _first)
  if module.auxiliary:
    taps['dsn.1'] = ('auxiliary_head/conv', _first)
  if module.context == 'rcca':
    for name, (path, to_original) in RCCA_TAPS.items():
      if name != 'cca' or module.recurrence:
        taps[f'head.{name}'] = (f'head/{path}', to_original)
  else:
    taps['head.0'] = ('head/pooling', _first)
  return taps


@adapters.register_models('ccnet', 'ccnet*_resnet*')
@adapters.register_models('ccnet', 'pspnet_resnet*')
@adapters.register_models('ccnet', 'deeplabv3_resnet*')
def describe(module: ccnet.CCNet) -> adapters.ModelParity:
  """Says how a registered network corresponds to the official one.

  Official images are blue, green, red in 0..255 minus their means.
  """

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    logits, features = model(_channels_last(inputs['image']))
    outputs = {'logits': _channels_first(logits)}
    if model.auxiliary:
      outputs['dsn_logits'] = _channels_first(features['auxiliary_logits'])
    return outputs

  return adapters.ModelParity(
    rules=model_rules(module),
    call=call,
    inputs={'image': jax.ShapeDtypeStruct((1, module.num_channels, 97, 97), jnp.float32)},
    taps=model_taps(module),
    heads=('head/classifier', 'auxiliary_head/classifier'),
  )


@adapters.register_models('ccnet', 'resnet*_deep_stem')
def describe_resnet(module: resnet.ResNet) -> adapters.ModelParity:
  """Says how a ResNet corresponds to the classifier that the official networks start from."""
  shape = (1, module.num_channels, *module.image_size)
  taps = {f'layer{s + 1}': (f'stage_{s}', _first) for s in range(len(module.depths))}
  return adapters.ModelParity(
    rules=[*backbone_rules(len(module.depths)), *RESNET_HEAD],
    call=lambda model, inputs: {'logits': model(_channels_last(inputs['image']))[0]},
    inputs={'image': jax.ShapeDtypeStruct(shape, jnp.float32)},
    taps={'maxpool': ('stem', _first), **taps},
    heads=('head',) if module.num_classes else (),
  )


# Recorded modules.


@adapters.register_adapter('ccnet', 'abn')
def _activated_norm(manifest: Manifest) -> adapters.Adapter:
  train = manifest['mode'] == 'train'

  class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
      leaky = batch_norm.BatchNorm(absolute_scale=True, name='leaky')(x, train)
      identity = batch_norm.BatchNorm(absolute_scale=True, name='identity')(x, train)
      return nn.leaky_relu(leaky, manifest['constructor']['slope']), identity

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    leaky, identity = module(_channels_last(inputs['x']))
    outputs = {'leaky': _channels_first(leaky), 'identity': _channels_first(identity)}
    if train:
      for name, value in module.variables['batch_stats']['leaky'].items():
        outputs[f'new_running_{name}'] = value
    return outputs

  return adapters.module_adapter(
    manifest,
    Norms(),
    rules=norm_rules('{norm:leaky|identity}', '{norm}'),
    call=call,
    mutable=('batch_stats',) if train else (),
    without_gradient=('new_running_mean', 'new_running_var'),
  )


def _map_adapter(
  manifest: Manifest,
  module: nn.Module,
  rules: list[Rule],
  taps: Mapping[str, adapters.TapLike] | None = None,
  output: str = 'y',
) -> adapters.Adapter:
  """The adapter of a module that maps a map 'x' to another."""
  train = manifest['mode'] == 'train'
  return adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=lambda module, inputs: {output: _first(module(_channels_last(inputs['x']), train))},
    taps=taps,
    mutable=('batch_stats',) if train else (),
  )


@adapters.register_adapter('ccnet', 'bottleneck')
def _bottleneck(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  dilation = c['dilation'] * c['multi_grid']
  module = resnet.Bottleneck(c['planes'], c['stride'], dilation, c['downsample'], _UNIT)
  return _map_adapter(manifest, module, prefixed(BOTTLENECK, 'b.'))


@adapters.register_adapter('ccnet', 'stem')
def _stem(manifest: Manifest) -> adapters.Adapter:
  module = resnet.DeepStem((64, 64, 128), True, _UNIT)

  def call(stem: nn.Module, inputs: Arrays) -> Arrays:
    return {'after_pool': _channels_first(stem(_channels_last(inputs['image'])))}

  adapter = adapters.module_adapter(manifest, module, rules=STEM, call=call)

  def run(variables, inputs):
    outputs, taps = adapters.run_with_taps(
      module, variables, inputs, call=call, taps={'before_pool': ('conv_2', _first)}
    )
    return {**outputs, **taps}, {}

  return adapters.Adapter(run=run, template=adapter.template, mapping=adapter.mapping)


@adapters.register_adapter('ccnet', 'rcca_module')
def _rcca(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  module = rcca.RCCAHead(
    c['num_classes'], _STYLE, fused=c['out_channels'], recurrence=c['recurrence']
  )
  return _map_adapter(manifest, module, RCCA, RCCA_TAPS, 'logits')


@adapters.register_adapter('ccnet', 'psp_module')
def _psp(manifest: Manifest) -> adapters.Adapter:
  width = manifest['constructor']['out_features']
  module = pyramid_pooling.PyramidPooling(width, width, pooled_first=True, style=_STYLE)
  return _map_adapter(manifest, module, PSP)


@adapters.register_adapter('ccnet', 'aspp_module')
def _aspp(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  module = aspp.AtrousSpatialPyramidPooling(c['inner_features'], c['out_features'], _STYLE)
  return _map_adapter(manifest, module, ASPP)


# Whole networks.


def _network(manifest: Manifest, context: str = 'rcca') -> ccnet.CCNet:
  c = manifest['constructor']
  return ccnet.CCNet(
    num_classes=c['num_classes'],
    depths=tuple(c['layers']),
    context=context,
    recurrence=c['recurrence'] if isinstance(c['recurrence'], int) else max(c['recurrence']),
    dropout_rate=0.0,
    # At the official size the activations of all blocks are 14 GB in float64.
    remat=max(shape[-1] for shape in manifest['shapes'].values()) > 600,
  )


def _criterion(
  name: str, c: Mapping[str, Any], pred: jax.Array, pred_dsn: jax.Array, target: jax.Array
) -> jax.Array:
  """One of the original's criteria, on NCHW logits of any size."""
  main, auxiliary = (
    resize.resize(_channels_last(x), target.shape[1:], 'bilinear', align_corners=True)
    for x in (pred, pred_dsn)
  )
  if name == 'CriterionOhemDSN2':
    return losses.cross_entropy(main, target) + losses.lovasz_softmax(main, target)
  if name == 'CriterionOhemDSN':
    loss = losses.ohem_cross_entropy(main, target, threshold=c['thresh'], min_kept=c['min_kept'])
  else:
    loss = losses.cross_entropy(main, target)
  return loss + 0.4 * losses.cross_entropy(auxiliary, target)


def _statistics(module: nn.Module, rules: list[Rule]) -> Arrays:
  """Running statistics after the call, by the original's keys."""
  flat = traverse_util.flatten_dict(dict(module.variables['batch_stats']), sep='/')
  statistics = [rule for rule in rules if rule.collection == 'batch_stats']
  return {
    next(key for rule in statistics if (key := rule.key_of(path))): value
    for path, value in flat.items()
  }


def _network_adapter(manifest: Manifest, context: str) -> adapters.Adapter:
  module, train = _network(manifest, context), manifest['mode'] == 'train'
  rules = model_rules(module)

  def call(network: nn.Module, inputs: Arrays) -> Arrays:
    logits, features = network(_channels_last(inputs['image']), train)
    outputs = {
      'logits': _channels_first(logits),
      'dsn_logits': _channels_first(features['auxiliary_logits']),
    }
    c = manifest['constructor']
    if c['criterion']:
      outputs['loss'] = _criterion(
        c['criterion'], c, outputs['logits'], outputs['dsn_logits'], inputs['target']
      )
    if train:
      for key, value in _statistics(network, rules).items():
        norm, _, name = key.rpartition('.')
        if f'out/new_{name}/{norm}' in manifest['shapes']:
          outputs[f'new_{name}/{norm}'] = value
    return outputs

  return adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=call,
    taps=model_taps(module),
    mutable=('batch_stats',) if train else (),
    without_gradient=[
      name.removeprefix('out/') for name in manifest['shapes'] if '/new_running_' in name
    ],
  )


@adapters.register_adapter('ccnet', 'CCNet')
def _ccnet(manifest: Manifest) -> adapters.Adapter:
  if isinstance(manifest['constructor']['recurrence'], int):
    return _network_adapter(manifest, 'rcca')
  return _recurrences(manifest)


@adapters.register_adapter('ccnet', 'PSPNet')
def _pspnet(manifest: Manifest) -> adapters.Adapter:
  return _network_adapter(manifest, 'psp')


@adapters.register_adapter('ccnet', 'DeepLabV3')
def _deeplab(manifest: Manifest) -> adapters.Adapter:
  return _network_adapter(manifest, 'aspp')


def _recurrences(manifest: Manifest) -> adapters.Adapter:
  """One backbone with heads of several recurrences; taps come from the first head that has them."""
  module = _network(manifest)
  adapter = adapters.module_adapter(
    manifest,
    module,
    rules=model_rules(module),
    call=lambda network, inputs: {'logits': network(_channels_last(inputs['image']))[0]},
  )
  plain = module.clone(recurrence=0)

  def call(network: nn.Module, inputs: Arrays) -> tuple[Arrays, jax.Array]:
    logits, features = network(_channels_last(inputs['image']))
    outputs = {
      'logits_r0': _channels_first(logits),
      'dsn_logits': _channels_first(features['auxiliary_logits']),
    }
    return outputs, features['stage_3']

  def run(variables, inputs):
    (outputs, x), taps = adapters.run_with_taps(
      plain, variables, inputs, call=call, taps=model_taps(plain)
    )
    part = {name: tree['head'] for name, tree in variables.items()}
    for r in manifest['constructor']['recurrence'][1:]:
      outputs[f'logits_r{r}'], first = adapters.run_with_taps(
        module.clone(recurrence=r).attention_head(),
        part,
        {'x': x},
        call=lambda head, inputs: _channels_first(head(inputs['x'])[0]),
        taps={'head.cca': RCCA_TAPS['cca']},
      )
      if r == 1:
        taps |= first
    return outputs, taps

  return adapters.Adapter(run=run, template=adapter.template, mapping=adapter.mapping)


@adapters.register_adapter('ccnet', 'CCNet.train_steps')
def _train_steps(manifest: Manifest) -> adapters.Adapter:
  """Three steps of the recipe: statistics, loss, schedule, SGD."""
  c, module = manifest['constructor'], _network(manifest)
  rules = model_rules(module)
  adapter = adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=lambda network, inputs: {'logits': network(_channels_last(inputs['image0']))[0]},
  )
  schedule_config = schedules.default_config()
  schedule_config.name, schedule_config.power = 'polynomial', c['power']
  schedule = schedules.create_schedule(
    schedule_config, base_lr=c['base_lr'], total_steps=c['max_iter'], steps_per_epoch=1
  )
  optimizer_config = optimizers.default_config()
  optimizer_config.name, optimizer_config.momentum = 'sgd', c['momentum']
  optimizer_config.weight_decay, optimizer_config.decay_vectors = c['weight_decay'], True

  def run(variables, inputs):
    initial = params = variables['params']
    model_state = {'batch_stats': variables['batch_stats']}
    optimizer = optimizers.create_optimizer(optimizer_config, schedule, params)
    state = optimizer.init(params)

    def loss_of(params, model_state, image, target):
      (logits, features), updated = module.apply(
        {'params': params, **model_state},
        _channels_last(image),
        train=True,
        mutable=['batch_stats'],
      )
      maps = (_channels_first(x) for x in (logits, features['auxiliary_logits']))
      return _criterion(c['loss'], c, *maps, target), updated

    @jax.jit
    def train_step(params, model_state, state, image, target):
      (loss, model_state), gradients = jax.value_and_grad(loss_of, has_aux=True)(
        params, model_state, image, target
      )
      updates, state = optimizer.update(gradients, state, params)
      return optax.apply_updates(params, updates), model_state, state, loss

    values = []
    for step in range(c['steps']):
      params, model_state, state, loss = train_step(
        params, model_state, state, inputs[f'image{step}'], inputs[f'target{step}']
      )
      values.append(loss)

    parameters = adapter.mapping.only('params')
    change = parameters.to_torch({'params': jax.tree.map(jnp.subtract, params, initial)})
    final = adapter.mapping.to_torch({'params': params, **model_state})
    logits, features = jax.jit(module.apply)(
      {'params': params, **model_state}, _channels_last(inputs['image0'])
    )
    order = c['parameter_order']
    outputs = {
      'losses': jnp.stack(values),
      'learning_rates': jnp.stack([schedule(step) for step in range(c['steps'])]),
      'delta_norm': jnp.stack([jnp.sqrt(jnp.sum(change[key] ** 2)) for key in order]),
      'delta_probe': jnp.stack(
        [
          jnp.sum(change[key] * cases.generate(manifest['seed'], f'probe/{key}', change[key].shape))
          for key in order
        ]
      ),
      'gamma': final['head.cca.gamma'],
      'eval_logits': _channels_first(logits),
      'eval_dsn_logits': _channels_first(features['auxiliary_logits']),
    }
    for name in manifest['shapes']:
      key = name.removeprefix('out/')
      if key in final:
        outputs[key] = final[key]
    return outputs, {}

  # One step is compiled, and run three times.
  return adapters.Adapter(run=run, template=adapter.template, mapping=adapter.mapping, jit=False)


# Losses.


@adapters.register_adapter('ccnet', 'loss_dsn')
@adapters.register_adapter('ccnet', 'loss_ohem')
@adapters.register_adapter('ccnet', 'loss_ce_lovasz')
def _loss(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  return adapters.function_adapter(
    lambda **inputs: {'loss': _criterion(c['criterion'], c, **inputs)}, jit=True
  )


@adapters.register_adapter('ccnet', 'CategoryConsistentLoss')
def _category_consistent_loss(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']

  def terms(embeddings: jax.Array, target: jax.Array) -> Arrays:
    loss = losses.category_consistency(
      embeddings,
      target,
      num_classes=19,
      inner=c['delta_v'],
      outer=c['delta_d'],
      piecewise=c['variant'] == 'piecewise',
    )
    total = loss.total(c['alpha'], c['beta'], c['gamma'])
    return {'var': loss.variance, 'dis': loss.distance, 'reg': loss.norm, 'total': total}

  if 'e' in manifest['inputs']:
    return adapters.function_adapter(lambda e, target: terms(_channels_last(e), target), jit=True)
  return adapters.module_adapter(
    manifest,
    convolution.convolution(manifest['inputs']['h']['shape'][1], c['channels'], 1),
    rules=[Rule('reduce.weight', 'kernel', 'conv'), Rule('reduce.bias', 'bias')],
    call=lambda conv, inputs: terms(conv(_channels_last(inputs['h'])), inputs['target']),
  )


# Evaluation.


class _StandIn(nn.Module):
  """The small network that the evaluation was recorded with."""

  classes: int

  @nn.compact
  def __call__(self, image):
    x = convolution.convolution(3, 8, 3, stride=2, padding=1, name='c1')(image)
    return convolution.convolution(8, self.classes, 3, stride=2, padding=1, name='c2')(nn.relu(x))


def _evaluation_adapter(
  manifest: Manifest, evaluate: Callable[[inference.Predict, jax.Array], jax.Array]
) -> adapters.Adapter:
  module = _StandIn(manifest['constructor']['classes'])
  adapter = adapters.module_adapter(
    manifest,
    module,
    rules=conv_rules('{name:c1|c2}', '{name}'),
    call=lambda network, inputs: {'scores': network(_channels_last(inputs['image']))},
  )

  def run(variables, inputs):
    scores = evaluate(lambda x: module.apply(variables, x), _channels_last(inputs['image']))
    return {'scores': scores}, {}

  return adapters.Adapter(run=run, template=adapter.template, mapping=adapter.mapping)


@adapters.register_adapter('ccnet', 'sliding')
def _sliding(manifest: Manifest) -> adapters.Adapter:
  tile = tuple(manifest['constructor']['tile'])

  def evaluate(predict: inference.Predict, images: jax.Array) -> jax.Array:
    scores = inference.sliding_window(predict, images, tile)
    # The original gives every image of a batch the scores of the first.
    return jnp.broadcast_to(scores[:1], scores.shape)

  return _evaluation_adapter(manifest, evaluate)


@adapters.register_adapter('ccnet', 'multiscale_flip')
def _multiscale(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  return _evaluation_adapter(
    manifest,
    lambda predict, images: inference.multi_scale(
      predict, images, scales=c['scales'], flip=c['flip']
    )[0],
  )


@adapters.register_adapter('ccnet', 'zoom')
def _zoom(manifest: Manifest) -> adapters.Adapter:
  def run(image: jax.Array, label: jax.Array) -> Arrays:
    outputs = {}
    for zoom in manifest['constructor']['zooms']:
      size = inference.zoomed_size(label.shape[1:], zoom)
      linear = resize.resize(_channels_last(image), size, 'bilinear', align_corners=True)
      rows, columns = (
        resize.nearest_corner_aligned(length, short)
        for length, short in zip(label.shape[1:], size, strict=True)
      )
      outputs[f'linear_{zoom}'] = _channels_first(linear)
      outputs[f'nearest_{zoom}'] = label[:, rows][:, :, columns].astype(image.dtype)
    return outputs

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('ccnet', 'miou')
def _miou(manifest: Manifest) -> adapters.Adapter:
  def run(gt: jax.Array, pred: jax.Array) -> dict[str, Any]:
    confusion = np.asarray(metrics.confusion_matrix(gt, pred, manifest['constructor']['classes']))
    iou = metrics.intersection_over_union(confusion)
    mean = metrics.mean_over_classes(iou, absent='zero')
    return {'confusion': confusion, 'iou': np.nan_to_num(iou), 'miou': np.array([mean])}

  return adapters.function_adapter(run, without_gradient=('iou', 'miou'))


@adapters.register_adapter('ccnet', 'palette')
def _palette(manifest: Manifest) -> adapters.Adapter:
  del manifest
  return adapters.function_adapter(lambda n: {'palette': cityscapes.voc_palette(int(n[0]))})


@adapters.register_adapter('ccnet', 'augment')
def _augment(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  mean = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)

  def run(image: jax.Array, label: jax.Array) -> dict[str, np.ndarray]:
    train_id = cityscapes.to_train_ids(np.asarray(label))
    outputs = {'train_id': train_id}
    for scale, top, left, mirrored in c['draws']:
      choice = segmentation_augmentation.Draw(scale, top, left, bool(mirrored))
      pixels, labels = segmentation_augmentation.apply(
        np.asarray(image), train_id, choice, c['crop'], padding=mean
      )
      outputs[f'image_f{scale}'] = rearrange(pixels - mean, 'h w c -> c h w')
      outputs[f'label_f{scale}'] = labels
    return outputs

  # OpenCV rounds twice.
  tolerances = {name: 1.001 for name in manifest['shapes'] if name.startswith('out/image_f')}
  return adapters.function_adapter(run, tolerances=tolerances)
