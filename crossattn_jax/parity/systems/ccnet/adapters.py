"""CCNet, PSPNet and DeepLabv3 and their PyTorch original: speedinghzl/CCNet."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from crossattn_jax.heads.segmentation import pyramid_pooling
from crossattn_jax.models import ccnet
from crossattn_jax.models.backbones import resnet
from crossattn_jax.parity import adapters, cases, layouts
from crossattn_jax.parity.layouts import channels_first, channels_last, first_map
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.parity.rules import affine, conv_norm
from crossattn_jax.parity.systems.mmsegmentation import losses as segmentation_losses
from crossattn_jax.training import optimizers, schedules

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


# The correspondence of names, from the inside out.


def criss_cross_rules(rank: int) -> list[Rule]:
  """The rules of `CrissCrossAttention` on maps of `rank` axes, inside the original's module."""
  return [
    Rule('gamma', 'gate', 'unbatched'),
    *affine('{map:query|key|value}_conv', '{map}', layouts.pointwise('linear', rank)),
  ]


STEM = [rule for i in range(3) for rule in conv_norm(f'conv{i + 1}', f'bn{i + 1}', f'conv_{i}')]
BOTTLENECK = [
  *(rule for i in range(3) for rule in conv_norm(f'conv{i + 1}', f'bn{i + 1}', f'conv_{i}')),
  *conv_norm('downsample.0', 'downsample.1', 'shortcut'),
]


def backbone_rules(stages: int) -> list[Rule]:
  """The rules of a ResNet without its classifier."""
  rules = prefixed(STEM, '', 'stem/')
  for s in range(stages):
    rules += prefixed(BOTTLENECK, f'layer{s + 1}.{{b}}.', f'stage_{s}/block_{{b}}/')
  return rules


RESNET_HEAD = [Rule('fc.weight', 'head/kernel', 'linear'), Rule('fc.bias', 'head/bias')]
RCCA = [
  *conv_norm('conva.0', 'conva.1', 'reduction'),
  *prefixed(criss_cross_rules(2), 'cca.', 'attention/'),
  *conv_norm('convb.0', 'convb.1', 'output'),
  *conv_norm('bottleneck.0', 'bottleneck.1', 'fusion'),
  *affine('bottleneck.3', 'classifier', 'conv'),
]
PSP = [
  *(
    rule
    for i, scale in enumerate(pyramid_pooling.SCALES)
    for rule in conv_norm(f'stages.{i}.1', f'stages.{i}.2', f'pool_{scale}')
  ),
  *conv_norm('bottleneck.0', 'bottleneck.1', 'fusion'),
]
ASPP = [
  *conv_norm('conv1.1', 'conv1.2', 'image'),
  *conv_norm('conv2.0', 'conv2.1', 'pixel'),
  *(
    rule
    for i, dilation in enumerate((12, 24, 36))
    for rule in conv_norm(f'conv{i + 3}.0', f'conv{i + 3}.1', f'dilation_{dilation}')
  ),
  *conv_norm('bottleneck.0', 'bottleneck.1', 'fusion'),
]
_HEADS = {
  'rcca': RCCA,
  'psp': [*prefixed(PSP, '0.', 'pooling/'), *affine('1', 'classifier', 'conv')],
  'aspp': [*prefixed(ASPP, '0.', 'pooling/'), *affine('1', 'classifier', 'conv')],
}


def model_rules(module: ccnet.CCNet) -> list[Rule]:
  """The rules of a whole network."""
  return [
    *prefixed(backbone_rules(len(module.depths)), '', 'backbone/'),
    *prefixed(_HEADS[module.context], 'head.', 'head/'),
    *conv_norm('dsn.0', 'dsn.1', 'auxiliary_head/conv'),
    *affine('dsn.3', 'auxiliary_head/classifier', 'conv'),
    # The paper's, in no official checkpoint.
    *affine('head.embedding', 'head/embedding', 'conv'),
  ]


RCCA_TAPS = {
  'conva': ('reduction', first_map),
  'cca': ('attention', first_map),
  'convb': ('output', first_map),
  'bottleneck.1': ('fusion', first_map),
}


def model_taps(module: ccnet.CCNet) -> dict[str, adapters.TapLike | None]:
  """The taps of a whole network."""
  taps: dict[str, adapters.TapLike | None] = {'maxpool': ('backbone/stem', first_map)}
  for s in range(len(module.depths)):
    taps[f'layer{s + 1}'] = (f'backbone/stage_{s}', first_map)
  if module.auxiliary:
    taps['dsn.1'] = ('auxiliary_head/conv', first_map)
  if module.context == 'rcca':
    for name, (path, to_original) in RCCA_TAPS.items():
      if name != 'cca' or module.recurrence:
        taps[f'head.{name}'] = (f'head/{path}', to_original)
  else:
    taps['head.0'] = ('head/pooling', first_map)
  return taps


@adapters.register_models('ccnet', 'ccnet*_resnet*')
@adapters.register_models('ccnet', 'pspnet_resnet*')
@adapters.register_models('ccnet', 'deeplabv3_resnet*')
def describe(module: ccnet.CCNet) -> adapters.ModelParity:
  """Says how a registered network corresponds to the official one.

  Official images are blue, green, red in 0..255 minus their means.
  """

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    logits, features = model(channels_last(inputs['image']))
    outputs = {'logits': channels_first(logits)}
    if model.auxiliary:
      outputs['dsn_logits'] = channels_first(features['auxiliary_logits'])
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
  taps = {f'layer{s + 1}': (f'stage_{s}', first_map) for s in range(len(module.depths))}
  return adapters.ModelParity(
    rules=[*backbone_rules(len(module.depths)), *RESNET_HEAD],
    call=lambda model, inputs: {'logits': model(channels_last(inputs['image']))[0]},
    inputs={'image': jax.ShapeDtypeStruct(shape, jnp.float32)},
    taps={'maxpool': ('stem', first_map), **taps},
    heads=('head',) if module.num_classes else (),
  )


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


def _statistic(key: str) -> str:
  """The output's name of a running statistic: the original's names its norm last."""
  norm, _, name = key.rpartition('.')
  return f'new_{name}/{norm}'


def _network_adapter(manifest: Manifest, context: str) -> adapters.Adapter:
  module, train = _network(manifest, context), manifest['mode'] == 'train'
  rules = model_rules(module)

  def call(network: nn.Module, inputs: Arrays) -> Arrays:
    logits, features = network(channels_last(inputs['image']), train)
    outputs = {
      'logits': channels_first(logits),
      'dsn_logits': channels_first(features['auxiliary_logits']),
    }
    c = manifest['constructor']
    if c['criterion']:
      outputs['loss'] = segmentation_losses.criterion(
        c['criterion'], c, outputs['logits'], outputs['dsn_logits'], inputs['target']
      )
    return outputs

  return adapters.module_adapter(
    manifest,
    module,
    rules=rules,
    call=call,
    taps=model_taps(module),
    statistic=_statistic,
    # XLA:CPU merges what is computed again with what was computed before, and stores it.
    jit=not module.remat,
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
    call=lambda network, inputs: {'logits': network(channels_last(inputs['image']))[0]},
  )
  plain = module.clone(recurrence=0)

  def call(network: nn.Module, inputs: Arrays) -> tuple[Arrays, jax.Array]:
    logits, features = network(channels_last(inputs['image']))
    outputs = {
      'logits_r0': channels_first(logits),
      'dsn_logits': channels_first(features['auxiliary_logits']),
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
        call=lambda head, inputs: channels_first(head(inputs['x'])[0]),
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
    call=lambda network, inputs: {'logits': network(channels_last(inputs['image0']))[0]},
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
        channels_last(image),
        train=True,
        mutable=['batch_stats'],
      )
      maps = (channels_first(x) for x in (logits, features['auxiliary_logits']))
      return segmentation_losses.criterion(c['loss'], c, *maps, target), updated

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
      {'params': params, **model_state}, channels_last(inputs['image0'])
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
      'eval_logits': channels_first(logits),
      'eval_dsn_logits': channels_first(features['auxiliary_logits']),
    }
    for name in manifest['shapes']:
      key = name.removeprefix('out/')
      if key in final:
        outputs[key] = final[key]
    return outputs, {}

  # One step is compiled, and run three times.
  return adapters.Adapter(run=run, template=adapter.template, mapping=adapter.mapping, jit=False)
