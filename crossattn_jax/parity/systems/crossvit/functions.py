"""Recorded cases of CrossViT's functions: resizing, targets, losses, learning rates."""

from collections.abc import Mapping
from typing import Any

import jax

from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.data.classification import mixing
from crossattn_jax.layers import resize
from crossattn_jax.parity import adapters, classification_losses, epoch_schedules

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

_CUBIC = 'cubic coefficient -0.75, half-pixel centres, no antialias, border replicate'


def _outputs(manifest: Manifest) -> dict[str, tuple[int, ...]]:
  """Shapes of a case's outputs, in its order."""
  return {
    name.removeprefix('out/'): tuple(shape)
    for name, shape in manifest['shapes'].items()
    if name.startswith('out/')
  }


@adapters.register_adapter('crossvit', 'resize_bicubic')
def _resize(manifest: Manifest) -> adapters.Adapter:
  """Input and output names correspond in order."""
  manifest['constructor'].ignore('a', only=(_CUBIC, -0.75))
  outputs = _outputs(manifest)

  def run(**images: jax.Array) -> Arrays:
    return {
      result: channels_first(resize.resize(channels_last(images[name]), shape[2:]))
      for name, (result, shape) in zip(manifest['inputs'], outputs.items(), strict=True)
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('crossvit', 'pos_embed_resize')
def _position_embeddings(manifest: Manifest) -> adapters.Adapter:
  """Input and output names correspond in order; each pair goes from one grid to another."""
  grids = manifest['constructor'].get('grids', {'p': [[20, 20], [34, 34]], 'q': [[3, 5], [4, 7]]})
  if not isinstance(grids, Mapping):
    grids = dict(zip(manifest['inputs'], grids, strict=True))
  grids = {name: tuple(map(tuple, pair)) for name, pair in grids.items()}

  def run(**embeddings: jax.Array) -> Arrays:
    return {
      result: resize.resize_position_embedding(embeddings[name], *grids[name])
      for name, result in zip(manifest['inputs'], _outputs(manifest), strict=True)
    }

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('crossvit', 'mixup_target')
def _mixup_targets(manifest: Manifest) -> adapters.Adapter:
  """Smoothed targets of a batch mixed with its reverse."""
  c = manifest['constructor']
  mixed = c.get('num_classes', 10), c.get('lam', 0.3), c.get('smoothing', 0.1)
  return adapters.function_adapter(lambda labels: {'target': mixing.mixup_targets(labels, *mixed)})


adapters.register_adapter('crossvit', 'loss_soft_target_ce')(
  classification_losses.soft_target_adapter
)
adapters.register_adapter('crossvit', 'loss_label_smoothing_ce')(
  classification_losses.label_smoothing_adapter
)
adapters.register_adapter('crossvit', 'lr_schedule')(
  epoch_schedules.adapter_of(
    {
      'paper': {'lr': 0.004, 'warmup_epochs': 30},
      'default_b4096': {'lr': 5e-4 * 4096 / 512},
      'default_b2048': {'lr': 5e-4 * 2048 / 512},
    }
  )
)
