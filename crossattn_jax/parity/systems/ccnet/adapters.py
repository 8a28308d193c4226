"""Cases of whole networks of speedinghzl/CCNet: CCNet, PSPNet, DeepLabv3, and training steps."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.systems import ccnet as rules
from crossattn_jax.models import ccnet
from crossattn_jax.parity import adapters, arguments, cases
from crossattn_jax.parity.systems.ccnet import losses
from crossattn_jax.training import optimizers, schedules

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def network(c: arguments.Arguments, context: str = 'rcca', **fields: Any) -> ccnet.CCNet:
  """The network of an official constructor, without dropout."""
  c.ignore('network')
  return ccnet.CCNet(
    num_classes=c.get('num_classes', 19),
    depths=tuple(c.get('layers', (3, 4, 23, 3))),
    multi_grid=tuple(c.get('multi_grid', (1,))),
    context=context,
    dropout_rate=0.0,
    **fields,
  )


def _recurrences(c: arguments.Arguments) -> list[int]:
  """How often attention is applied: once for all, or by several heads on one backbone."""
  given = c.get('recurrence', 2)
  return [given] if isinstance(given, int) else list(given)


@adapters.register_adapter('ccnet', 'CCNet')
def _ccnet(manifest: Manifest) -> adapters.Adapter:
  return _network_adapter(manifest, 'rcca', _recurrences(manifest['constructor']))


@adapters.register_adapter('ccnet', 'PSPNet')
def _pspnet(manifest: Manifest) -> adapters.Adapter:
  manifest['constructor'].ignore('recurrence')
  return _network_adapter(manifest, 'psp')


@adapters.register_adapter('ccnet', 'DeepLabV3')
def _deeplab(manifest: Manifest) -> adapters.Adapter:
  manifest['constructor'].ignore('recurrence')
  return _network_adapter(manifest, 'aspp')


def _network_adapter(
  manifest: Manifest, context: str, recurrences: list[int] | None = None
) -> adapters.Adapter:
  """A network with its loss, or one backbone with heads of several recurrences."""
  c, train = manifest['constructor'], manifest['mode'] == 'train'
  first, *others = recurrences or [0]
  criterion = losses.make_criterion(c.get('criterion'), c)
  # At the official size the activations of all blocks are 14 GB in float64.
  remat = max(shape[-1] for shape in manifest['shapes'].values()) > 600
  module = network(c, context, recurrence=first, remat=remat)

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    logits, features = module(channels_last(inputs['image']), train)
    logits, auxiliary = channels_first(logits), channels_first(features['auxiliary_logits'])
    outputs = {'logits': logits, f'logits_r{first}': logits, 'dsn_logits': auxiliary}
    if criterion:
      outputs['loss'] = criterion(logits, auxiliary, inputs['target'])
    return outputs | {'stage_3': features['stage_3']}

  adapter = adapters.module_adapter(
    manifest,
    module,
    # The original holds the parameters of the attention however often it applies it.
    parameters_of=module.clone(recurrence=max(1, first, *others)),
    rules=rules.model_rules(module),
    call=call,
    taps=rules.model_taps(module),
    statistic=rules.statistic,
    # XLA:CPU merges what is computed again with what was computed before, and stores it.
    jit=not remat,
  )
  if not others:
    return adapter

  def run(variables: Mapping[str, Any], inputs: Arrays) -> tuple[Arrays, Arrays]:
    outputs, taps = adapter.run(variables, inputs)
    heads = {name: tree['head'] for name, tree in variables.items()}
    for r in others:
      outputs[f'logits_r{r}'], found = adapters.run_with_taps(
        module.clone(recurrence=r).attention_head(),
        heads,
        outputs,
        call=lambda head, maps: channels_first(head(maps['stage_3'], train)[0]),
        taps={'head.cca': rules.RCCA_TAPS['cca']} if r else {},
        mutable=('batch_stats',) if train else (),
      )
      taps = found | taps
    return outputs, taps

  return dataclasses.replace(adapter, run=run)


@adapters.register_adapter('ccnet', 'CCNet.train_steps')
def _train_steps(manifest: Manifest) -> adapters.Adapter:
  """Steps of the recipe: statistics, loss, schedule, SGD."""
  c = manifest['constructor']
  module = network(c, recurrence=c.get('recurrence', 2))
  adapter = adapters.module_adapter(
    manifest,
    module,
    rules=rules.model_rules(module),
    call=lambda network, inputs: {'logits': network(channels_last(inputs['image0']))[0]},
  )
  criterion, steps = losses.make_criterion(c.get('loss', 'CriterionDSN'), c), c.get('steps', 3)
  parameters = adapter.mapping.only('params')
  order = c.get('parameter_order', [entry.torch_key for entry in parameters.entries])
  schedule_config = schedules.default_config()
  schedule_config.name, schedule_config.power = 'polynomial', c.get('power', 0.9)
  schedule = schedules.create_schedule(
    schedule_config,
    base_lr=c.get('base_lr', 0.002),
    total_steps=c.get('max_iter', 10),
    steps_per_epoch=1,
  )
  optimizer_config = optimizers.default_config()
  optimizer_config.name, optimizer_config.momentum = 'sgd', c.get('momentum', 0.9)
  optimizer_config.weight_decay = c.get('weight_decay', 1e-4)
  optimizer_config.decay_vectors = True

  def run(variables: Mapping[str, Any], inputs: Arrays) -> tuple[Arrays, Arrays]:
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
      return criterion(*maps, target), updated

    @jax.jit
    def train_step(params, model_state, state, image, target):
      (loss, model_state), gradients = jax.value_and_grad(loss_of, has_aux=True)(
        params, model_state, image, target
      )
      updates, state = optimizer.update(gradients, state, params)
      return optax.apply_updates(params, updates), model_state, state, loss

    values = []
    for step in range(steps):
      params, model_state, state, loss = train_step(
        params, model_state, state, inputs[f'image{step}'], inputs[f'target{step}']
      )
      values.append(loss)

    change = parameters.to_torch({'params': jax.tree.map(jnp.subtract, params, initial)})
    final = adapter.mapping.to_torch({'params': params, **model_state})
    probes = {
      key: cases.generate(manifest['seed'], f'probe/{key}', change[key].shape) for key in order
    }
    logits, features = jax.jit(module.apply)(
      {'params': params, **model_state}, channels_last(inputs['image0'])
    )
    return final | {
      'losses': jnp.stack(values),
      'learning_rates': jnp.stack([schedule(step) for step in range(steps)]),
      'delta_norm': jnp.stack([jnp.sqrt(jnp.sum(change[key] ** 2)) for key in order]),
      'delta_probe': jnp.stack([jnp.sum(change[key] * probes[key]) for key in order]),
      'gamma': final['head.cca.gamma'],
      'eval_logits': channels_first(logits),
      'eval_dsn_logits': channels_first(features['auxiliary_logits']),
    }, {}

  # One step is compiled, and run several times.
  return dataclasses.replace(adapter, run=run, jit=False)
