"""Cases of MMViT: blocks, whole models, losses, the metric and the front end of audio."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion.layouts import channels_last
from crossattn_jax.conversion.systems import mmvit as rules
from crossattn_jax.data.audio import spectrogram
from crossattn_jax.metrics import average_precision
from crossattn_jax.models import mmvit
from crossattn_jax.parity import adapters, arguments, classification_losses
from crossattn_jax.tasks import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

adapters.register_adapter('mmvit', 'loss_soft_ce')(classification_losses.soft_target_adapter)


def _strides(value: int | Sequence[int]) -> int | tuple[int, int]:
  """A stride in both directions, as a number or a pair: a number where they are equal."""
  rows, columns = (value, value) if isinstance(value, int) else value
  return rows if rows == columns else (rows, columns)


def _stride(name: str, value: int | Sequence[int]) -> int:
  """The same stride in both directions."""
  stride = _strides(value)
  if not isinstance(stride, int):
    raise arguments.ArgumentError(f'{name} is {value}; rows and columns have the same stride here')
  return stride


def _check_tokens(tokens: int, grid: Sequence[int], class_token: bool) -> None:
  if tokens != class_token + math.prod(grid):
    raise arguments.ArgumentError(
      f'a grid of {" x ".join(map(str, grid))} with{"" if class_token else "out"} a class token '
      f'has not {tokens} tokens; the case says its own as `grid` or `grids`, and `cls`'
    )


# Blocks.


def _options(c: arguments.Arguments) -> mmvit.Options:
  c.ignore_rates('drop_path', 'drop_path_rate', 'drop_rate')
  c.ignore('qkv_bias', only=(True,))
  return mmvit.Options(mlp_ratio=c.get('mlp_ratio', 4))


@adapters.register_adapter('mmvit', 'mvit_block')
def _mvit_block(manifest: Manifest) -> adapters.Adapter:
  """A block of facebookresearch/mvit."""
  c = manifest['constructor']
  grid = tuple(c.get('grid', (9, 6)))
  _check_tokens(manifest['inputs']['x']['shape'][1], grid, c.get('cls', True))
  scale = c['dim_out'] != c['dim']
  if c['dim_out'] not in (c['dim'], 2 * c['dim']):
    raise arguments.ArgumentError(f'dim_out is {c["dim_out"]}, neither dim {c["dim"]} nor twice it')
  if _stride('q_stride', c.get('q_stride', 1 + scale)) != 1 + scale:
    raise arguments.ArgumentError('q_stride is 2 where dim_out is twice dim, and else 1')
  block = mmvit.PoolingBlock(c['heads'], _strides(c['kv_stride']), 0.0, _options(c), scale)
  return adapters.module_adapter(
    manifest,
    block,
    rules=rules.MVIT_BLOCK,
    call=lambda module, inputs: {'out': module(inputs['x'], grid)},
  )


@adapters.register_adapter('mmvit', 'cross_block')
def _cross_block(manifest: Manifest) -> adapters.Adapter:
  """A block of attention across the views, which are x1, x2, ... from fine to coarse."""
  c, names = manifest['constructor'], sorted(manifest['inputs'])
  grids = tuple(map(tuple, c.get('grids', ((8, 6), (4, 3)))))
  class_token = c.get('cls', True)
  for v, (name, grid) in enumerate(zip(names, grids, strict=True)):
    _check_tokens(manifest['inputs'][name]['shape'][1], grid, class_token and v == 0)
  c.ignore('dim', only=(manifest['inputs'][names[0]]['shape'][2],))
  strides = tuple(map(_strides, c['kv_strides']))
  block = mmvit.CrossViewBlock(
    c['heads'], strides if c.get('pool', True) else None, 0.0, False, _options(c)
  )

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    views, _ = module(tuple(inputs[name] for name in names), grids)
    return {f'out{v}': x for v, x in enumerate(views, start=1)}

  return adapters.module_adapter(manifest, block, rules=rules.CROSS_BLOCK, call=call)


# Whole models.

# (kernel, stride, padding) of the patches of each view.
_VIEWS = ((7, 4, 3), (15, 8, 7))


def _view(view: Sequence[int] | Mapping[str, int]) -> tuple[int, int, int]:
  """Kernel, stride and padding of a view, which may be named, and silent about the padding."""
  if isinstance(view, Mapping):
    view = [view[name] for name in ('kernel', 'stride', 'padding') if name in view]
  kernel, stride, *padding = view
  return kernel, stride, padding[0] if padding else kernel // 2


def _model(c: arguments.Arguments) -> mmvit.MMViT:
  c.ignore_rates('drop_path', 'drop_path_rate', 'drop_rate')
  c.ignore('cross_zero_init')
  c.ignore('qkv_bias', only=(True,))
  given = c.get('views', _VIEWS)
  views = [_view(view) for view in (_VIEWS[:given] if isinstance(given, int) else given)]
  for kernel, _, padding in views:
    if padding != kernel // 2:
      raise arguments.ArgumentError(
        f'views has a kernel of {kernel} with padding {padding}; half of the kernel is replayed'
      )
  depths = tuple(c.get('n_self', (1, 1, 10, 1)))
  return mmvit.MMViT(
    num_classes=c.get('num_classes', 1000),
    image_size=tuple(c.get('input_size', (224, 224))),
    embed_dim=c.get('embed_dim', 96),
    depths=depths,
    num_heads=c.get('heads', 1),
    patch_sizes=tuple(kernel for kernel, _, _ in views),
    patch_strides=tuple(stride for _, stride, _ in views),
    kv_strides=tuple(
      _stride('kv_strides', value) for value in c.get('kv_strides', (4, 2)[: len(views)])
    ),
    cross_stages=tuple(c.get('cross_stages', range(len(depths)))),
    cross_pool=c.get('cross_pool', True),
    positions=c.get('pos', 'joint'),
    global_pool={'cls': 'token', 'mean': 'avg'}[c.get('head_pool', 'cls')],
    mlp_ratio=c.get('mlp_ratio', 4),
    num_channels=c.get('in_chans', 3),
    scan_blocks=True,
  )


@adapters.register_adapter('mmvit', 'MMViT')
@adapters.register_adapter('mmvit', 'MMViT+loss')
def _whole_model(manifest: Manifest) -> adapters.Adapter:
  """A whole model, and its loss where there are labels."""
  train = manifest['mode'] == 'train'

  def call(module: nn.Module, inputs: Arrays) -> Arrays:
    logits, features = module(channels_last(inputs['x']), train)
    outputs = {'logits': logits, 'feature': features['feature']}
    for name, x in features.items():
      step, *place = name.split('/')
      if step == 'embedded':
        outputs[f'embed_view{place[0]}'] = x
      elif step in ('self', 'cross', 'scaled'):
        outputs[f'stage{place[0]}_{step}_view{place[1]}'] = x
    if 'y' in inputs:
      outputs['loss'] = losses.soft_target_cross_entropy(logits, inputs['y']).mean()
    return outputs

  model = _model(manifest['constructor'])
  return adapters.module_adapter(manifest, model, rules=rules.MODEL, call=call)


# Functions.


@adapters.register_adapter('mmvit', 'loss_bce_multilabel')
def _multi_label_loss(manifest: Manifest) -> adapters.Adapter:
  del manifest
  return adapters.function_adapter(
    lambda logits, target: {'loss': losses.multi_label_cross_entropy(logits, target).mean()}
  )


@adapters.register_adapter('mmvit', 'metric_map')
def _average_precision(manifest: Manifest) -> adapters.Adapter:
  """Average precision of each class, recorded as 0 where a class has no positive, and its mean."""
  del manifest

  def run(scores: jax.Array, labels: jax.Array) -> Arrays:
    precisions = average_precision.average_precision(np.asarray(scores), np.asarray(labels))
    mean = average_precision.mean_average_precision(np.asarray(scores), np.asarray(labels))
    return {'ap': jnp.nan_to_num(precisions), 'map': jnp.asarray([mean])}

  return adapters.function_adapter(run)


@adapters.register_adapter('mmvit', 'audio_frontend')
def _front_end(manifest: Manifest) -> adapters.Adapter:
  """From a waveform to the model's input."""
  c = manifest['constructor']
  bins = c.get('num_mel_bins', 128)
  frames = c.get('target_length', manifest['shapes'].get('out/input', (1024,))[-1])
  statistics = c.get('mean', spectrogram.MEAN), c.get('std', spectrogram.STD)

  def run(wave: jax.Array) -> Arrays:
    log_mel = spectrogram.log_mel(np.asarray(wave), bins)
    image = spectrogram.normalize(spectrogram.fit(log_mel, frames), *statistics)
    return {'log_mel': jnp.asarray(log_mel), 'input': jnp.asarray(image)[None]}

  return adapters.function_adapter(run)
