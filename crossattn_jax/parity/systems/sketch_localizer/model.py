"""Cases of whole models."""

from collections.abc import Mapping
import functools
import re
from typing import Any

from crossattn_jax.conversion.mapping import prefixed
from crossattn_jax.conversion.systems import sketch_localizer as rules
from crossattn_jax.models import registry
from crossattn_jax.parity import adapters, arguments

Manifest = Mapping[str, Any]

_BACKBONES = {'swin_tiny': 'sketch_localizer_tiny', 'swin_small': 'sketch_localizer_small'}


def _variant(c: arguments.Arguments) -> tuple[str, dict[str, Any]]:
  """The model's name, and what differs from it."""
  if 'backbone' not in c:
    return 'sketch_localizer_tiny', {'depths': tuple(c['depths']), 'num_queries': c['det']}
  if c['backbone'] not in _BACKBONES:
    known = ', '.join(_BACKBONES)
    raise arguments.ArgumentError(f'backbone is {c["backbone"]!r}; known are {known}')
  return _BACKBONES[c['backbone']], {'num_queries': c.get('det', 100)}


@adapters.register_adapter('sketch_localizer', 'Locformer')
def _model(manifest: Manifest) -> adapters.Adapter:
  c, shapes = manifest['constructor'], manifest['inputs']
  name, fields = _variant(c)
  c.ignore('with_box_refine', 'aux_loss', only=(True,))
  c.ignore('num_sketches', only=(shapes['sketches']['shape'][1],))
  c.ignore('image_hw', only=([*shapes['image']['shape'][2:]],))
  c.ignore('valid_hw')  # The mask tells.
  module = registry.create_model(
    name,
    num_classes=c['num_classes'],
    det_stages=tuple(c['cross_indices']),
    sketch_fusion=c['sketch_fusion'],
    drop_path_rate=0.0,
    drop_rate=0.0,
    fusion_drop_rate=0.0,
    **fields,
  )

  return adapters.module_adapter(
    manifest,
    module,
    # In gradients the box heads have the decoder's keys.
    rules=[
      *rules.MODEL,
      *prefixed(rules.REGRESSOR, f'{rules.BOXES_OF_DECODER}bbox_embed.{{l}}.', 'boxes_{l}/'),
    ],
    call=functools.partial(rules.call_model, train=manifest['mode'] == 'train'),
    unused='|'.join(map(re.escape, rules.unused_shapes(module))),
    taps=rules.model_taps(module),
    statistic=lambda key: key.removeprefix('sketch_embedding.').replace('.', '_') + '_after',
  )
