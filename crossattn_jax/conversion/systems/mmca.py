"""MMCA, whose code was never published, its predecessor SAEM (yiling2018/saem), and BERT.

MMCA has the state dict of a PyTorch module that was written from its specification (docs/mmca.md).
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.conversion import correspondence, layouts
from crossattn_jax.conversion.mapping import Rule, prefixed
from crossattn_jax.conversion.rules import affine, norm
from crossattn_jax.models import bert, mmca

Arrays = dict[str, jax.Array]

# What scale and bias of a norm are called: by PyTorch, and by BERT's first authors and SAEM.
Names = tuple[str, str]
_TORCH, _GOOGLE = ('weight', 'bias'), ('gamma', 'beta')
# SAEM keeps a list of the image branch's and the text branch's state dict.
_SAEM_IMAGE, _SAEM_TEXT = '0.', '1.'

# (channels, 1, words, width) -> [words, width, channels].
_IMAGE_CONV = layouts.Layout(
  '2-D convolution',
  lambda shape: (shape[2], 1, *shape[:2]),
  lambda x, shape: x[:, 0].transpose(1, 2, 0).reshape(shape),
  lambda x, shape: x.transpose(2, 0, 1).reshape(shape),
)


# The correspondence of names, from the inside out.


def unit_rules() -> list[Rule]:
  """The rules of a transformer unit."""
  rules = affine('attn.o', 'out', 'linear_heads_in')
  for torch, flax in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    rules += affine(f'attn.{torch}', flax, 'linear_heads_out')
  return [
    *rules,
    *norm('ln{i:1|2}', 'norm{i}'),
    *affine('fc{i:1|2}', 'fc{i}', 'linear'),
  ]


def bert_unit_rules(norm_names: Names) -> list[Rule]:
  """The rules of a transformer unit as BERT and SAEM have it, norms in one of the spellings."""
  attention = 'attention.self.{name:query|key|value}'
  return [
    *affine(attention, '{name}', 'linear_heads_out'),
    *affine('attention.output.dense', 'out', 'linear_heads_in'),
    *norm('attention.output.LayerNorm', 'norm1', norm_names),
    *affine('intermediate.dense', 'fc1', 'linear'),
    *affine('output.dense', 'fc2', 'linear'),
    *norm('output.LayerNorm', 'norm2', norm_names),
  ]


def bert_rules(pooler: bool = True, spellings: Sequence[Names] = (_TORCH, _GOOGLE)) -> list[Rule]:
  """The rules of BERT, norms in either spelling; the heads of its pretraining are dropped."""
  rules = [
    *(
      Rule(f'embeddings.{torch}_embeddings.weight', f'{flax}_embedding/embedding')
      for torch, flax in (('word', 'word'), ('position', 'position'), ('token_type', 'segment'))
    ),
    *(affine('pooler.dense', 'pooler', 'linear') if pooler else [Rule('pooler.{any:.*}', None)]),
    Rule('embeddings.position_ids', None),
    Rule('cls.{any:.*}', None),
  ]
  for names in spellings:
    rules += norm('embeddings.LayerNorm', 'embedding_norm', names)
    rules += prefixed(bert_unit_rules(names), 'encoder.layer.{layer}.', 'layer_{layer}/')
  return rules


def phrase_cnn_rules() -> list[Rule]:
  """The rules of a phrase CNN."""
  return [*affine('convs.{i}', 'conv_{i}', 'conv'), *affine('fc', 'fc', 'linear')]


def saem_image_rules() -> list[Rule]:
  """The rules of SAEM's image branch."""
  units = [rule for names in (_GOOGLE, _TORCH) for rule in bert_unit_rules(names)]
  return [
    *affine('mapping', 'region_projection', 'linear'),
    *prefixed(units, 'layer.', 'image_unit_0/'),
  ]


def saem_text_rules(pooler: bool = True) -> list[Rule]:
  """The rules of SAEM's text branch."""
  return [
    *prefixed(bert_rules(pooler, (_GOOGLE, _TORCH)), 'bert.', 'bert/'),
    *affine('convs1.{i}', 'text_cnn/conv_{i}', _IMAGE_CONV, 'identity'),
    *affine('mapping', 'text_cnn/fc', 'linear'),
  ]


def saem_rules(pooler: bool = True) -> list[Rule]:
  """The rules of SAEM's checkpoints, of both branches."""
  image, text = saem_image_rules(), saem_text_rules(pooler)
  return [*prefixed(image, _SAEM_IMAGE), *prefixed(text, _SAEM_TEXT)]


def branch_rules() -> list[Rule]:
  """The rules of the branches that SAEM compares with; the names are this library's own."""
  gates = [
    rule
    for side, flax in (('img', 'image'), ('txt', 'text'))
    for rule in affine(
      f'{side}_gru.{{direction:forward|backward}}.{{gate:[ih][rzn]}}',
      f'{flax}_gru/{{direction}}/cell/{{gate}}',
      'linear',
    )
  ]
  return [
    *prefixed(phrase_cnn_rules(), 'img_cnn.', 'image_cnn/'),
    *affine('txt_map', 'text_projection', 'linear'),
    *prefixed(unit_rules(), 'txt_self.', 'text_unit_0/'),
    *gates,
  ]


def mmca_rules(image_units: int = 1, pooler: bool = True) -> list[Rule]:
  """The rules of MMCA with so many transformer units of the image, with or without BERT inside."""
  torch, flax = ('img_self.', '0') if image_units == 1 else ('img_self.{unit}.', '{unit}')
  return [
    *affine('img_fc', 'region_projection', 'linear'),
    *affine('txt_fc', 'word_projection', 'linear'),
    *prefixed(unit_rules(), torch, f'image_unit_{flax}/'),
    *prefixed(phrase_cnn_rules(), 'txt_cnn.', 'text_cnn/'),
    *prefixed(unit_rules(), 'cross.{unit}.', 'cross_unit_{unit}/'),
    *prefixed(phrase_cnn_rules(), 'cross_cnn.', 'cross_cnn/'),
    *branch_rules(),
    *prefixed(bert_rules(pooler), 'bert.', 'bert/'),
  ]


@correspondence.register_models('mmca', 'mmca*')
@correspondence.register_models('mmca', 'saem*')
def describe(module: mmca.MMCA) -> correspondence.Correspondence:
  """Says how a registered MMCA or SAEM corresponds to PyTorch; a BERT alone is part of either."""
  length, regions = module.max_words, module.num_regions
  words = jax.ShapeDtypeStruct((1, length, module.word_dim), jnp.float32)
  if module.text_layers:
    words = jax.ShapeDtypeStruct((1, length), jnp.int32)
  pooler = module.freeze_text_encoder
  own, other = mmca_rules(module.image_units, pooler), saem_rules(pooler)
  if not module.cross_attention:
    own, other = other, own
  return correspondence.Correspondence(
    rules=[*own, *other, *prefixed(bert_rules(pooler), flax='bert/')],
    call=lambda model, inputs: {'S': model(named(inputs))[0]},
    inputs={
      'regions': jax.ShapeDtypeStruct((1, regions, module.region_dim), jnp.float32),
      'words': words,
      'mask': jax.ShapeDtypeStruct((1, length), jnp.float32),
    },
  )


@correspondence.register_models('mmca', 'bert_*')
def describe_bert(module: bert.Bert) -> correspondence.Correspondence:
  """Says how a registered BERT corresponds to that of `transformers`, with or without its heads."""
  ids = jax.ShapeDtypeStruct((1, module.max_positions), jnp.int32)
  rules = bert_rules(module.pooler)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    words, features = model(inputs['input_ids'], inputs['attention_mask'] != 0)
    outputs = {'last_hidden_state': words}
    return outputs | ({'pooler_output': features['pooled']} if module.pooler else {})

  def fields(shapes: correspondence.Shapes) -> dict[str, Any]:
    bare = {key.removeprefix('bert.'): shape for key, shape in shapes.items()}
    tables = {
      'vocab_size': 'embeddings.word_embeddings.weight',
      'max_positions': 'embeddings.position_embeddings.weight',
      'num_segments': 'embeddings.token_type_embeddings.weight',
    }
    sizes = {field: bare[key][0] for field, key in tables.items() if key in bare}
    return sizes | {'pooler': 'pooler.dense.weight' in bare}

  return correspondence.Correspondence(
    rules=[*rules, *prefixed(rules, 'bert.')],
    call=call,
    inputs={'input_ids': ids, 'attention_mask': ids},
    fields=fields,
    config={
      'model_type': {'bert': {}},
      'hidden_act': {'gelu': {}},
      'layer_norm_eps': {1e-12: {}},
      'position_embedding_type': {'absolute': {}},
      'is_decoder': {False: {}},
    },
  )


def named(inputs: Arrays) -> Arrays:
  """The inputs of the original under this library's names."""
  return {
    'regions': inputs['regions'],
    'words': inputs['words'],
    'word_mask': inputs['mask'] != 0,
  }
