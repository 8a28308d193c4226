"""Optimizers from the config: AdamW, Adam, SGD, LAMB and Muon, weight decay and rates by parameter.

Parameters are named by their Flax path joined by '/', such as
'encoder_0/branch_1/block_0/mlp/fc1/kernel'; a pattern is a regular expression that matches the
whole path (`re.fullmatch`).

The order of the operations is PyTorch's: gradients are clipped,
L2-regularised where the decay is coupled, turned into a direction, decayed where it is decoupled,
then multiplied by the parameter's multiplier and by minus the learning rate. Everything is
computed, and every moment kept, in at least float32, whatever the parameters' dtype.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import optax
from optax import contrib

from crossattn_jax.parallel import parameters
from crossattn_jax.training import accumulation, layer_depth, patterns, schedules

OPTIMIZERS = ('adamw', 'adam', 'sgd', 'lamb', 'muon')

# Kernels of projections into heads have several output dimensions, all but the first.
_HEADS_KERNEL = r'(.*/)?(qkv|query|key|value)/kernel'


@dataclasses.dataclass(frozen=True)
class ParameterSettings:
  """How one parameter is trained.

  Attributes:
    decayed: whether weight decay applies to it.
    multiplier: of its learning rate; 0 freezes it.
    warmup_start: the learning rate that its warm-up starts from; None: the schedule's.
  """

  decayed: bool
  multiplier: float
  warmup_start: float | None = None


def default_config() -> ml_collections.ConfigDict:
  """Returns every key of `config.optimizer` with its default.

  Keys:
    name: 'adamw', 'adam', 'sgd', 'lamb' or 'muon', which trains matrices (see `scale_by_muon`) and
      leaves the other parameters to adamw.
    beta1, beta2, epsilon: of adamw, adam and lamb.
    momentum, nesterov: of sgd and muon.
    warmup_momentum: of sgd: the momentum of step 0, which rises linearly to `momentum` while the
      learning rate warms up. None: no warm-up.
    muon_exclude: patterns of matrices that muon leaves to adamw too, such as a classifier's.
    weight_decay: adamw and muon decay the weights themselves, by learning rate * weight_decay *
      weight a step; lamb does so inside its trust ratio; adam and sgd add weight_decay * weight to
      the gradient (L2), as PyTorch's optimizers of these names do.
    decoupled_weight_decay: of sgd: decays as adamw does instead.
    decay_vectors: whether parameters of at most one dimension and biases of any rank (the last name
      of the path is 'bias') are decayed.
    decay_exclude: patterns of further parameters that are not decayed, such as
      ('pos_embed_.*', 'cls_token_.*').
    decay_include: patterns of parameters that are decayed whatever the other two say.
    multipliers: ordered (pattern, factor) pairs; the first match multiplies the learning rate, and
      with it the decay. Factor 0 freezes: no state, no part in the norm for clipping.
    warmup_starts: ordered (pattern, learning rate) pairs; the first match replaces
      `schedule.warmup_start`.
    layer_decay: layer-wise decay of the rate: a layer has this many times the rate of the one after
      it, the last one the full rate (see `layer_depth.layers`); multiplied with `multipliers`.
    clip_norm, clip_value, clip_adaptive: clips gradients to a global norm, to [-value, value], or
      unit by unit to a fraction of the weights' norm (see `adaptive_clip`); at most one.
    clip_adaptive_elements: patterns of parameters that `clip_adaptive` treats element by element,
      such as layer scales.
    max_loss_ratio: updates nothing on a batch whose loss is this many times that of the last one
      that was used, or more (see `skip_large_losses`).
    nominal_batch_size: makes an update of the sum of the gradients of as many steps as make a batch
      of this size, of one step when the warm-up begins (YOLOv5; see `accumulation`). `weight_decay`
      is for exactly this size, others decay in proportion. None: every step is an update.
  """
  config = ml_collections.ConfigDict()
  config.name = 'adamw'
  config.beta1 = 0.9
  config.beta2 = 0.999
  config.epsilon = 1e-8
  config.momentum = 0.9
  config.nesterov = False
  config.warmup_momentum = config_dict.placeholder(float)
  config.muon_exclude = ()
  config.weight_decay = 0.0
  config.decoupled_weight_decay = False
  config.decay_vectors = False
  config.decay_exclude = ()
  config.decay_include = ()
  config.multipliers = ()
  config.warmup_starts = ()
  config.layer_decay = 1.0
  config.clip_norm = config_dict.placeholder(float)
  config.clip_value = config_dict.placeholder(float)
  config.clip_adaptive = config_dict.placeholder(float)
  config.clip_adaptive_elements = ()
  config.max_loss_ratio = config_dict.placeholder(float)
  config.nominal_batch_size = config_dict.placeholder(int)
  return config


def parameter_settings(
  config: ml_collections.ConfigDict, params: optax.Params, freeze: Sequence[str] = ()
) -> dict[str, ParameterSettings]:
  """Returns how each parameter is trained, by path, in the order of the tree.

  Args:
    config: as `default_config` documents.
    params: arrays or `jax.ShapeDtypeStruct`s.
    freeze: patterns of parameters that are not trained, whatever the multipliers say.

  Raises:
    ValueError: a pattern matches no parameter, and the message names it and the nearest path; or
      the model has no layers to decay.
  """
  leaves = parameters.leaves_by_path(params)
  for key in ('decay_exclude', 'decay_include', 'muon_exclude', 'clip_adaptive_elements'):
    patterns.check(f'optimizer.{key}', config[key], leaves)
  for key in ('multipliers', 'warmup_starts'):
    patterns.check(f'optimizer.{key}', [pattern for pattern, _ in config[key]], leaves)
  patterns.check('freeze', freeze, leaves)
  rates = dict.fromkeys(leaves, 1.0)
  if config.layer_decay != 1:
    layers = layer_depth.layers(leaves)
    last = max(layers.values())
    rates = {path: config.layer_decay ** (last - layer) for path, layer in layers.items()}

  settings = {}
  for path, leaf in leaves.items():
    is_vector = leaf.ndim <= 1 or path.rpartition('/')[2] == 'bias'
    excluded = patterns.matches(config.decay_exclude, path)
    excluded |= is_vector and not config.decay_vectors
    frozen = patterns.matches(freeze, path)
    settings[path] = ParameterSettings(
      decayed=not excluded or patterns.matches(config.decay_include, path),
      multiplier=0.0 if frozen else _first_match(config.multipliers, path, 1.0) * rates[path],
      warmup_start=_first_match(config.warmup_starts, path),
    )
  return settings


def _first_match(
  pairs: Iterable[tuple[str, float]], path: str, default: float | None = None
) -> float | None:
  """The number of the first pair whose pattern matches the path."""
  return next((value for pattern, value in pairs if re.fullmatch(pattern, path)), default)


def create_optimizer(
  config: ml_collections.ConfigDict,
  schedule: optax.Schedule,
  params: optax.Params,
  freeze: Sequence[str] = (),
  batch_size: int = 1,
) -> optax.GradientTransformationExtraArgs:
  """Builds the optimizer of a run.

  Args:
    config: as `default_config` documents.
    schedule: from the index of the step to the learning rate; without a warm-up where it does not
      know one.
    params: arrays or `jax.ShapeDtypeStruct`s; only their paths and shapes are used.
    freeze: patterns of parameters that are not trained.
    batch_size: examples of a step, for `nominal_batch_size`.

  Returns:
    A transformation whose `update` needs `params`, and takes the loss as `value`. Trees in its
    state that mirror the parameters hold `optax.MaskedNode` in place of frozen ones: give
    `optax.tree_map_params` `is_leaf=lambda x: isinstance(x, optax.MaskedNode)` if there are any.

  Raises:
    ValueError: for an unknown name, contradictory values, or a pattern that matches no parameter.
  """
  _check(config)
  settings = parameter_settings(config, params, freeze)
  warmup_steps = getattr(schedule, 'warmup_steps', 0)

  # By path, not by a tree of the parameters' structure: the trees may lack the frozen ones.
  def per_parameter(name: str, tree: optax.Params) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: getattr(settings[parameters.path_string(path)], name), tree
    )

  def multiply(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    del params
    return jax.tree.map(lambda u, factor: u * factor, updates, per_parameter('multiplier', updates))

  weight_decay, step_of = config.weight_decay, lambda update: update
  if config.nominal_batch_size is not None:
    batches = config.nominal_batch_size / batch_size
    weight_decay *= max(round(batches), 1) / batches
    step_of = accumulation.step_of_update(batches, warmup_steps)
  momentum = momentum_schedule(config, warmup_steps)
  direction = _direction(config, lambda update: momentum(step_of(update)))
  decay = optax.add_decayed_weights(weight_decay, mask=lambda tree: per_parameter('decayed', tree))
  coupled = config.name in ('adam', 'sgd') and not config.decoupled_weight_decay
  parts = _clipping(config)
  parts += [decay, direction] if coupled else [direction, decay]
  if config.name == 'lamb':
    parts.append(optax.scale_by_trust_ratio())
  parts.append(optax.stateless(multiply))
  parts.append(_descent(schedule, step_of, settings))
  optimizer = optax.chain(*parts)
  if config.nominal_batch_size is not None:
    optimizer = accumulation.accumulate(optimizer, step_of)
  optimizer = _in_float32(optimizer)
  if not all(setting.multiplier for setting in settings.values()):
    labels = jax.tree.map(
      lambda factor: 'trained' if factor else 'frozen', per_parameter('multiplier', params)
    )
    optimizer = optax.partition({'trained': optimizer, 'frozen': optax.set_to_zero()}, labels)
  if config.max_loss_ratio is not None:
    return skip_large_losses(optimizer, config.max_loss_ratio)
  return optax.with_extra_args_support(optimizer)


def _check(config: ml_collections.ConfigDict) -> None:
  """Refuses names that are not known, and values that contradict each other or cannot be."""
  schedules.check_choice('optimizer', config.name, OPTIMIZERS)
  if config.decoupled_weight_decay and config.name == 'adam':
    raise ValueError("optimizer.decoupled_weight_decay: adam's decoupled form is name='adamw'")
  if config.warmup_momentum is not None and config.name != 'sgd':
    raise ValueError(f"optimizer.warmup_momentum is of name='sgd', not {config.name!r}")
  if config.nominal_batch_size is not None and config.nominal_batch_size <= 0:
    raise ValueError(f'optimizer.nominal_batch_size={config.nominal_batch_size} must be positive')


class SkipLargeLossesState(NamedTuple):
  """State of `skip_large_losses`.

  Attributes:
    last_loss: of the last batch that was used, float32.
    inner: state of the optimizer.
  """

  last_loss: jax.Array
  inner: optax.OptState


def skip_large_losses(
  optimizer: optax.GradientTransformation, ratio: float
) -> optax.GradientTransformationExtraArgs:
  """Updates nothing, moments included, on a batch whose loss is far above the last one's.

  Part of ATFuse's training (its code).

  Args:
    optimizer: whose updates these are.
    ratio: a loss of at least this many times that of the last batch that was used is too large.

  Returns:
    A transformation whose `update` needs the loss as `value`.
  """

  def init(params: optax.Params) -> SkipLargeLossesState:
    return SkipLargeLossesState(jnp.full((), jnp.inf, jnp.float32), optimizer.init(params))

  def update(
    updates: optax.Updates,
    state: SkipLargeLossesState,
    params: optax.Params | None = None,
    *,
    value: jax.Array,
    **unused: Any,
  ) -> tuple[optax.Updates, SkipLargeLossesState]:
    del unused
    used = value < ratio * state.last_loss
    updates, inner = optimizer.update(updates, state.inner, params)
    updates = jax.tree.map(lambda u: jnp.where(used, u, 0), updates)
    new = SkipLargeLossesState(value.astype(jnp.float32), inner)
    return updates, jax.tree.map(lambda new, old: jnp.where(used, new, old), new, state)

  return optax.GradientTransformationExtraArgs(init, update)


def adaptive_clip(
  fraction: float, elements: Iterable[str] = (), epsilon: float = 1e-3
) -> optax.GradientTransformation:
  """Clips each unit's gradient to a fraction of its weights' norm.

  Brock et al. 2021 (arXiv 2102.06171), section 4. A unit is what it is in timm, an index of the
  first dimension of the tensor in PyTorch's layout: an output feature of a kernel, a whole vector
  or bias.

  Args:
    fraction: of max(norm of the weights, `epsilon`) that the gradient's norm may reach.
    elements: patterns of parameters in which every element is a unit.
    epsilon: lets weights that are zero leave it.

  Returns:
    A stateless transformation whose `update` needs `params`.
  """

  def clip(path: tuple[Any, ...], gradient: jax.Array, param: jax.Array) -> jax.Array:
    axes = _unit_axes(parameters.path_string(path), gradient.ndim, elements)
    norm = jnp.sqrt(jnp.sum(jnp.square(gradient), axis=axes, keepdims=True))
    limit = jnp.sqrt(jnp.sum(jnp.square(param), axis=axes, keepdims=True))
    limit = fraction * jnp.maximum(limit, epsilon)
    return jnp.where(norm < limit, gradient, gradient * (limit / jnp.maximum(norm, 1e-6)))

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(clip, updates, params)
  )


def _unit_axes(path: str, ndim: int, elements: Iterable[str]) -> tuple[int, ...]:
  """Returns the axes of one unit of adaptive clipping; the others count the units."""
  name = path.rpartition('/')[2]
  if patterns.matches(elements, path):
    return ()
  if ndim <= 1 or name == 'bias':
    return tuple(range(ndim))
  if re.fullmatch(_HEADS_KERNEL, path):
    return (0,)
  if name == 'kernel':
    return tuple(range(ndim - 1))
  return tuple(range(1, ndim))


def _clipping(config: ml_collections.ConfigDict) -> list[optax.GradientTransformation]:
  """Returns the configured gradient clipping, nothing or one transformation."""
  kinds = {
    'clip_norm': optax.clip_by_global_norm,
    'clip_value': optax.clip,
    'clip_adaptive': lambda value: adaptive_clip(value, config.clip_adaptive_elements),
  }
  given = {name: config[name] for name in kinds if config[name] is not None}
  if len(given) > 1:
    raise ValueError(f'optimizer: {" and ".join(given)} are both set; keep one of them')
  return [kinds[name](value) for name, value in given.items()]


def scale_by_muon(
  momentum: float, nesterov: bool, others: optax.GradientTransformation, exclude: Iterable[str] = ()
) -> optax.GradientTransformation:
  """Makes the momentum of matrices nearly orthogonal, so that all its directions count alike.

  Jordan et al. 2024 (Muon, kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025
  (arXiv 2502.16982, section 2.2): steps are as large as AdamW's, so that its learning rates and
  decay hold. Matrices are the kernels of dense layers and convolutions, whose inputs are a window's
  channels; query, key and value are three. Depthwise kernels are none.

  Args:
    momentum: of the average of gradients.
    nesterov: whether the newest gradient counts once more.
    others: what makes the direction of all other parameters.
    exclude: patterns of matrices that belong to the others.

  Returns:
    The transformation.
  """

  def dimensions(path: tuple[Any, ...], param: jax.Array) -> contrib.MuonDimensionNumbers | None:
    name, axes = parameters.path_string(path), tuple(range(param.ndim))
    if param.ndim < 2 or not name.endswith('kernel') or patterns.matches(exclude, name):
      return None
    if re.fullmatch(_HEADS_KERNEL, name):
      return contrib.MuonDimensionNumbers((0,), axes[1:][-2:])
    depthwise = param.ndim == 4 and param.shape[2] == 1
    return None if depthwise else contrib.MuonDimensionNumbers(axes[:-1], axes[-1:])

  def all_dimensions(params: optax.Params) -> Any:
    return jax.tree_util.tree_map_with_path(dimensions, params)

  def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
    inputs, outputs = (
      math.prod(update.shape[axis] for axis in axes) for axes in dimensions(path, update)
    )
    return update * (0.2 * math.sqrt(max(inputs, outputs)))

  muon = optax.chain(
    contrib.scale_by_muon(
      beta=momentum, nesterov=nesterov, weight_dimension_numbers=all_dimensions
    ),
    optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates)),
  )
  return optax.partition(
    {'muon': muon, 'others': others},
    lambda params: jax.tree_util.tree_map_with_path(
      lambda path, param: 'others' if dimensions(path, param) is None else 'muon', params
    ),
  )


def momentum_schedule(config: ml_collections.ConfigDict, warmup_steps: int) -> optax.Schedule:
  """Returns the momentum by step, which rises while the learning rate warms up, if configured."""
  if config.warmup_momentum is None or not warmup_steps:
    return optax.constant_schedule(config.momentum)
  return optax.linear_schedule(config.warmup_momentum, config.momentum, warmup_steps)


def _direction(
  config: ml_collections.ConfigDict, momentum: optax.Schedule
) -> optax.GradientTransformation:
  """Returns what turns gradients into the direction of the step; `momentum` is by update."""
  if config.name == 'muon':
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    return scale_by_muon(config.momentum, config.nesterov, adam, config.muon_exclude)
  if config.name != 'sgd':
    return optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
  if config.warmup_momentum is not None:
    return optax.inject_hyperparams(optax.trace)(momentum, config.nesterov)
  if config.momentum:
    return optax.trace(config.momentum, config.nesterov)
  return optax.identity()


def _descent(
  schedule: optax.Schedule,
  step_of: Callable[[jax.Array], jax.Array],
  settings: Mapping[str, ParameterSettings],
) -> optax.GradientTransformation:
  """Returns what multiplies by minus the learning rate: of each parameter, with its warm-up."""

  def descent(*start: float) -> optax.GradientTransformation:
    return optax.scale_by_learning_rate(lambda update: schedule(step_of(update), *start))

  def labels(tree: optax.Params) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: str(settings[parameters.path_string(path)].warmup_start), tree
    )

  starts = {setting.warmup_start for setting in settings.values()} - {None}
  if not starts:
    return descent()
  groups = {str(start): descent(start) for start in starts}
  return optax.partition({'None': descent(), **groups}, labels)


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Gives `inner` gradients and parameters of at least float32."""

  def widen(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)

  def init(params: optax.Params) -> optax.OptState:
    return inner.init(widen(params))

  def update(
    updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    return inner.update(widen(updates), state, widen(params))

  return optax.GradientTransformation(init, update)
