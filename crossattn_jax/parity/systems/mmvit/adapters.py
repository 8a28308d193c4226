"""MMViT and what it was built from in PyTorch: a module after its specification, and MViT's blocks.

There is no official code and no published checkpoint. The rules name the keys of the module that
the recorded cases are of. Checkpoints of facebookresearch/mvit start the fine view (`warm_start`).
"""

from collections.abc import Mapping
import math
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.data.audio import spectrogram
from crossattn_jax.layers import resize
from crossattn_jax.metrics import average_precision
from crossattn_jax.models import mmvit, registry
from crossattn_jax.parity import adapters, convert
from crossattn_jax.parity import mapping as mapping_lib
from crossattn_jax.parity.layouts import channels_last
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.parity.rules import affine, norm
from crossattn_jax.tasks import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


# The correspondence of names, from the inside out.


def _block(attention: str, skip: str, pool: tuple[str, str], view: str = '') -> list[Rule]:
  """The rules of a block.

  Args:
    attention: prefix of the keys of the attention's projections.
    skip: the linear map of the skip path.
    pool: templates of the keys of a pooling's convolution and norm.
    view: appended to the paths of the poolings.
  """
  rules = [
    *norm('norm{n:1|2}', 'norm{n}'),
    *affine(f'{attention}qkv', 'attention/qkv', 'qkv'),
    *affine(f'{attention}proj', 'attention/out', 'linear_heads_in'),
    *affine('mlp.fc{n:1|2}', 'mlp/fc{n}'),
    *affine(skip, 'skip'),
  ]
  for short, long in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    conv, of_norm = (template.replace('*', short) for template in pool)
    path = f'attention/pool_{long}{view}'
    rules += [Rule(f'{conv}.weight', f'{path}/kernel', 'conv'), *norm(of_norm, f'{path}/norm')]
  return rules


BLOCK = _block('', 'skip', ('pool_*.conv', 'pool_*.norm'))
CROSS_BLOCK = _block('', 'skip', ('pool_*.{v}.conv', 'pool_*.{v}.norm'), view='_{v}')
# By the keys of facebookresearch/mvit.
MVIT_BLOCK = _block('attn.', 'proj', ('attn.pool_*', 'attn.norm_*'))
MODEL = [
  Rule('cls_token', 'embedding_0/class_token', 'unbatched'),
  Rule('pos{v}', 'embedding_{v}/positions', 'unbatched'),
  Rule('pos{v}_h', 'embedding_{v}/rows'),
  Rule('pos{v}_w', 'embedding_{v}/columns'),
  Rule('pos{v}_cls', 'embedding_{v}/class_position', 'unbatched'),
  *affine('patch.{v}', 'patches_{v}', 'conv'),
  *prefixed(BLOCK, 'stages.{s}.blocks.{b}.{view}.', 'stage_{s}/block_{b}/view_{view}/'),
  *prefixed(CROSS_BLOCK, 'stages.{s}.cross.', 'cross_{s}/'),
  *prefixed(BLOCK, 'stages.{s}.scale.{view}.', 'scale_{s}/view_{view}/'),
  *norm('norm', 'norm'),
  *affine('head', 'head'),
]


@adapters.register_models('mmvit', 'mmvit_*')
def describe(module: mmvit.MMViT) -> adapters.ModelParity:
  """Says how a registered MMViT corresponds to the module of the specification."""
  image = jax.ShapeDtypeStruct((1, module.num_channels, *module.image_size), jnp.float32)
  positions = {f'embedding_{v}/positions': v for v in range(len(module.patch_sizes))}
  return adapters.ModelParity(
    rules=MODEL,
    call=lambda model, inputs: {'logits': model(channels_last(inputs['image']))[0]},
    inputs={'image': image},
    heads=('head',) if module.num_classes else (),
    position_embeddings=positions if module.positions == 'joint' else {},
  )


# The recorded cases.


@adapters.register_adapter('mmvit', 'mvit_block')
def mvit_block_adapter(manifest: Manifest) -> adapters.Adapter:
  """A block of facebookresearch/mvit."""
  arguments = manifest['constructor']
  scale = arguments['dim_out'] != arguments['dim']
  block = mmvit.PoolingBlock(
    arguments['heads'], arguments['kv_stride'][0], 0.0, mmvit.Options(), scale
  )
  return adapters.module_adapter(
    manifest,
    block,
    rules=MVIT_BLOCK,
    call=lambda module, inputs: {'out': module(inputs['x'], _RECORDED_GRID)},
  )


# What the notes of the block cases say: the constructors do not name the grids.
_RECORDED_GRID = (9, 6)
_RECORDED_CROSS_GRIDS = ((8, 6), (4, 3))


@adapters.register_adapter('mmvit', 'cross_block')
def cross_block_adapter(manifest: Manifest) -> adapters.Adapter:
  """A block of attention across the views."""
  arguments = manifest['constructor']
  strides = tuple(stride for stride, _ in arguments['kv_strides'])
  pool = arguments.get('pool', True)
  block = mmvit.CrossViewBlock(
    arguments['heads'], strides if pool else None, 0.0, False, mmvit.Options()
  )

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    (fine, coarse), _ = module((inputs['x1'], inputs['x2']), _RECORDED_CROSS_GRIDS)
    return {'out1': fine, 'out2': coarse}

  return adapters.module_adapter(manifest, block, rules=CROSS_BLOCK, call=call)


@adapters.register_adapter('mmvit', 'MMViT')
@adapters.register_adapter('mmvit', 'MMViT+loss')
def model_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole model, in training mode with its loss."""
  arguments = manifest['constructor']
  model = mmvit.MMViT(
    num_classes=arguments.get('num_classes', 1000),
    image_size=tuple(arguments.get('input_size', (224, 224))),
    embed_dim=arguments.get('embed_dim', 96),
    depths=tuple(arguments.get('n_self', (1, 1, 10, 1))),
    num_heads=arguments.get('heads', 1),
    cross_pool=arguments.get('cross_pool', True),
    positions=arguments.get('pos', 'joint'),
    global_pool={'cls': 'token', 'mean': 'avg'}[arguments.get('head_pool', 'cls')],
    num_channels=arguments.get('in_chans', 3),
    scan_blocks=True,
  )
  wanted = {name.removeprefix('out/') for name in manifest['shapes'] if name.startswith('out/')}

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    logits, features = module(channels_last(inputs['x']), manifest['mode'] == 'train')
    outputs = {'logits': logits, 'feature': features['feature']}
    for name, x in features.items():
      step, *place = name.split('/')
      if step == 'embedded':
        outputs[f'embed_view{place[0]}'] = x
      elif step in ('self', 'cross', 'scaled'):
        outputs[f'stage{place[0]}_{step}_view{place[1]}'] = x
    if 'y' in inputs:
      loss = losses.soft_target_cross_entropy(logits, inputs['y'])
      outputs['loss'] = loss.mean(keepdims=True)
    return {name: x for name, x in outputs.items() if name in wanted}

  return adapters.module_adapter(manifest, model, rules=MODEL, call=call)


@adapters.register_adapter('mmvit', 'loss_soft_ce')
def soft_target_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Cross entropy against mixed labels."""
  del manifest
  return adapters.function_adapter(
    lambda logits, target: {
      'loss': losses.soft_target_cross_entropy(logits, target).mean(keepdims=True)
    }
  )


@adapters.register_adapter('mmvit', 'loss_bce_multilabel')
def multi_label_loss_adapter(manifest: Manifest) -> adapters.Adapter:
  """Binary cross entropy."""
  del manifest
  return adapters.function_adapter(
    lambda logits, target: {
      'loss': losses.multi_label_cross_entropy(logits, target).mean(keepdims=True)
    }
  )


@adapters.register_adapter('mmvit', 'metric_map')
def average_precision_adapter(manifest: Manifest) -> adapters.Adapter:
  """Average precision of each class, recorded as 0 where a class has no positive, and its mean."""
  del manifest

  def run(scores: jax.Array, labels: jax.Array) -> Arrays:
    precisions = average_precision.average_precision(np.asarray(scores), np.asarray(labels))
    mean = average_precision.mean_average_precision(np.asarray(scores), np.asarray(labels))
    return {'ap': jnp.nan_to_num(precisions), 'map': jnp.asarray([mean])}

  return adapters.function_adapter(run)


@adapters.register_adapter('mmvit', 'audio_frontend')
def front_end_adapter(manifest: Manifest) -> adapters.Adapter:
  """From a waveform to the model's input."""
  frames = manifest['shapes']['out/input'][-1]

  def run(wave: jax.Array) -> Arrays:
    log_mel = spectrogram.log_mel(np.asarray(wave))
    image = spectrogram.normalize(spectrogram.fit(log_mel, frames))
    return {'log_mel': jnp.asarray(log_mel), 'input': jnp.asarray(image)[None]}

  return adapters.function_adapter(run)


# Weights of other models to start from.


def _mvit_rules(depths: tuple[int, ...]) -> list[Rule]:
  """The rules between a checkpoint of facebookresearch/mvit and the fine view."""
  paths = []
  for s, depth in enumerate(depths):
    paths += [(f'stage_{s}/block_{b}', False) for b in range(depth)]
    paths += [(f'scale_{s}', True)] if s < len(depths) - 1 else []
  rules = [
    *affine('patch_embed.proj', 'patches_0', 'conv'),
    Rule('cls_token', 'embedding_0/class_token', 'unbatched'),
    *norm('norm', 'norm'),
    *affine('head.projection', 'head'),
    Rule('blocks.{i}.attn.rel_pos_{axis:h|w|t}', None),
  ]
  for i, (path, scaled) in enumerate(paths):
    if not scaled:
      # MViTv2 pools the queries of every block; here only where the map shrinks.
      rules += [
        Rule(f'blocks.{i}.attn.pool_q.weight', None),
        Rule(f'blocks.{i}.attn.norm_q.{{leaf:weight|bias}}', None),
      ]
    rules += prefixed(MVIT_BLOCK, f'blocks.{i}.', f'{path}/view_0/')
  return rules


def warm_start(
  name: str, state: Mapping[str, np.ndarray], seed: int = 0, **overrides: Any
) -> convert.Conversion:
  """Starts the fine view of an MMViT from a checkpoint of facebookresearch/mvit.

  Blocks at which MViTv2 changes the stage become the scaled blocks. Its relative positions and the
  pooling of queries in other blocks have no place here and are dropped; the coarse view and the
  blocks across the views are initialised, and change nothing at the start (`cross_zero_init`).

  Args:
    name: of a registered model as wide and as deep as the checkpoint: a `depths` of n numbers has
      sum(depths) + n - 1 blocks.
    state: as `convert.read_checkpoint` reads it.
    seed: of the initialisation.
    **overrides: of `create_model`. A classifier with another number of classes is initialised.

  Returns:
    A conversion; its `save` writes a file for `config.weights`.

  Raises:
    MappingError: the checkpoint is not of MViT or has other widths or depths, by key.
  """
  overrides = {'cross_zero_init': True, **overrides}
  module = registry.create_model(name, **overrides)
  flat = _shapes(module)
  rules = _mvit_rules(module.depths)
  given, lines, problems = {}, {}, []
  for key, value in state.items():
    rule = next((rule for rule in rules if rule.drops(key) or rule.path_of(key)), None)
    path = None if rule is None else rule.path_of(key)
    shape = tuple(np.shape(value))
    if rule is None or (path is not None and path not in flat):
      problems.append(f'unexpected: {key} {shape}')
      continue
    wanted = None if path is None else tuple(rule.layout.torch_shape(flat[path].shape))
    if path is None or (path.startswith('head/') and shape != wanted):
      lines[key] = convert.Line(key, shape, '', (), 'dropped')
    elif shape != wanted:
      problems.append(f'misshapen: {key} is {shape}, expected {wanted}')
    else:
      given[path] = np.asarray(rule.layout.to_flax(value, flat[path].shape), flat[path].dtype)
      lines[path] = convert.Line(key, shape, path, flat[path].shape, rule.layout.name)
  for rule_path in ('patches_0/kernel', *(path for path in flat if '/view_0/' in path)):
    if rule_path not in lines:
      problems.append(f'missing: a key for {rule_path}')
  if problems:
    raise mapping_lib.MappingError(
      f'the checkpoint does not fit the fine view of {name} ({len(problems)} problems):\n  '
      + '\n  '.join(problems)
    )
  for path, leaf in flat.items():
    if path not in given:
      lines[path] = convert.Line('', (), path, leaf.shape, 'new: freshly initialised')
  params = traverse_util.unflatten_dict(_initial(module, seed) | given, sep='/')
  return convert.Conversion(name, overrides, {'params': params}, tuple(lines.values()))


def _shapes(module: mmvit.MMViT) -> dict[str, jax.ShapeDtypeStruct]:
  image = jax.ShapeDtypeStruct((1, *module.image_size, module.num_channels), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), image)
  return traverse_util.flatten_dict(variables['params'], sep='/')


def _initial(module: mmvit.MMViT, seed: int) -> dict[str, np.ndarray]:
  image = jnp.zeros((1, *module.image_size, module.num_channels))
  variables = jax.device_get(jax.jit(module.init)(jax.random.key(seed), image))
  return traverse_util.flatten_dict(variables['params'], sep='/')


def audio_start(
  name: str, image_model: mmvit.MMViT, variables: Mapping[str, Any], seed: int = 0, **overrides: Any
) -> convert.Conversion:
  """Starts an audio model from an image model of the same width and depth.

  Patch filters are summed over the colours. Positions are resized to the spectrogram's grid; where
  they become separable, a row's vector is the mean of its places, and a column's is that less the
  mean of all. A classifier with another number of classes is initialised.

  Args:
    name: of a registered model.
    image_model: with joint positions.
    variables: of it.
    seed: of the initialisation.
    **overrides: of `create_model`.

  Returns:
    A conversion; its `save` writes a file for `config.weights`.

  Raises:
    MappingError: the models differ in more than input, positions and classes, by path.
  """
  module = registry.create_model(name, **overrides)
  source = traverse_util.flatten_dict(dict(jax.device_get(variables['params'])), sep='/')
  for v in range(len(image_model.patch_sizes)):
    kernel = source[f'patches_{v}/kernel']
    if module.num_channels == 1:
      source[f'patches_{v}/kernel'] = kernel.sum(axis=2, keepdims=True)
    path = f'embedding_{v}'
    grids = image_model.grids()[v], module.grids()[v]
    table = np.asarray(resize.resize_position_embedding(source.pop(f'{path}/positions'), *grids))
    if module.positions == 'joint':
      source[f'{path}/positions'] = table
      continue
    extra = len(table) - math.prod(grids[1])
    places = table[extra:].reshape(*grids[1], -1)
    source[f'{path}/rows'] = places.mean(axis=1)
    source[f'{path}/columns'] = places.mean(axis=0) - places.mean(axis=(0, 1))
    if extra:
      source[f'{path}/class_position'] = table[:1]
  lines, problems, adapted, fresh = [], [], {}, []
  for path, leaf in _shapes(module).items():
    given = source.pop(path, None)
    if path.startswith('head/') and (given is None or given.shape != leaf.shape):
      fresh.append(path)
      lines.append(convert.Line('', (), path, leaf.shape, 'new: freshly initialised'))
      continue
    if given is None or given.shape != leaf.shape:
      had = 'nothing' if given is None else given.shape
      problems.append(f'{path}: {leaf.shape} is wanted, the image model has {had}')
      continue
    adapted[path] = np.asarray(given, leaf.dtype)
    lines.append(convert.Line('', (), path, leaf.shape, 'from the image model'))
  problems += [f'{path}: the audio model has none' for path in source]
  if problems:
    raise mapping_lib.MappingError(
      f'the image model does not fit {name}:\n  ' + '\n  '.join(problems)
    )
  if fresh:
    initial = _initial(module, seed)
    adapted |= {path: initial[path] for path in fresh}
  params = traverse_util.unflatten_dict(adapted, sep='/')
  return convert.Conversion(name, overrides, {'params': params}, tuple(lines))
