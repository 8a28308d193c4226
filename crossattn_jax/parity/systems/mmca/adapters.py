"""MMCA, whose code was never published, its predecessor SAEM (yiling2018/saem), and BERT.

MMCA has the state dict of a PyTorch module that was written from its specification (docs/mmca.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import joint_attention
from crossattn_jax.layers import similarity
from crossattn_jax.metrics import retrieval as metrics
from crossattn_jax.models import bert, mmca
from crossattn_jax.parity import adapters, layouts
from crossattn_jax.parity.mapping import Rule, prefixed
from crossattn_jax.parity.rules import affine, norm
from crossattn_jax.tasks.retrieval import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]

# What scale and bias of a norm are called: by PyTorch, and by BERT's first authors and SAEM.
Names = tuple[str, str]
_TORCH, _GOOGLE = ('weight', 'bias'), ('gamma', 'beta')
# SAEM keeps a list of the image branch's and the text branch's state dict.
_SAEM_IMAGE, _SAEM_TEXT = '0.', '1.'
# Of cases that do not say it, by their width.
_HEADS = {32: 4}

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


@adapters.register_models('mmca', 'mmca*')
@adapters.register_models('mmca', 'saem*')
def describe(module: mmca.MMCA) -> adapters.ModelParity:
  """Says how a registered MMCA or SAEM corresponds to PyTorch; a BERT alone is part of either."""
  length, regions = module.max_words, module.num_regions
  words = jax.ShapeDtypeStruct((1, length, module.word_dim), jnp.float32)
  if module.text_layers:
    words = jax.ShapeDtypeStruct((1, length), jnp.int32)
  pooler = module.freeze_text_encoder
  own, other = mmca_rules(module.image_units, pooler), saem_rules(pooler)
  if not module.cross_attention:
    own, other = other, own
  return adapters.ModelParity(
    rules=[*own, *other, *prefixed(bert_rules(pooler), flax='bert/')],
    call=lambda model, inputs: {'S': model(_named(inputs))[0]},
    inputs={
      'regions': jax.ShapeDtypeStruct((1, regions, module.region_dim), jnp.float32),
      'words': words,
      'mask': jax.ShapeDtypeStruct((1, length), jnp.float32),
    },
  )


@adapters.register_models('mmca', 'bert_*')
def describe_bert(module: bert.Bert) -> adapters.ModelParity:
  """Says how a registered BERT corresponds to that of `transformers`, with or without its heads."""
  ids = jax.ShapeDtypeStruct((1, module.max_positions), jnp.int32)
  rules = bert_rules(module.pooler)

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    words, features = model(inputs['input_ids'], inputs['attention_mask'] != 0)
    outputs = {'last_hidden_state': words}
    return outputs | ({'pooler_output': features['pooled']} if module.pooler else {})

  return adapters.ModelParity(
    rules=[*rules, *prefixed(rules, 'bert.')],
    call=call,
    inputs={'input_ids': ids, 'attention_mask': ids},
  )


def _named(inputs: Arrays) -> Arrays:
  """The inputs of a reference case under this library's names."""
  return {
    'regions': inputs['regions'],
    'words': inputs['words'],
    'word_mask': inputs['mask'] != 0,
  }


# Whole models.


def _model(manifest: Manifest) -> mmca.MMCA:
  """The model of a reference case: sizes by its state dict, options by its constructor."""
  arguments = manifest['constructor']
  shapes = {entry['key'].removeprefix('net.'): tuple(entry['shape']) for entry in manifest['state']}
  width, region_dim = shapes['img_fc.weight']
  return mmca.MMCA(
    region_dim=region_dim,
    word_dim=shapes['txt_fc.weight'][1],
    width=width,
    num_heads=arguments.get('heads', _HEADS.get(width, mmca.MMCA.num_heads)),
    mlp_dim=shapes['img_self.fc1.weight'][0],
    cross_units=arguments.get('cross_layers', 1),
    cross_input=arguments.get('cross_input', 'projected'),
    conv_channels=shapes['txt_cnn.convs.0.weight'][0],
    cross_conv_channels=shapes['cross_cnn.convs.0.weight'][0],
    mask_padding=arguments.get('mask_padding', True),
    alpha=arguments.get('alpha', 1.0),
    drop_rate=0.0,
  )


@adapters.register_adapter('mmca', 'MMCA')
def model_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole model: all pairs of its images and sentences."""

  def call(model: mmca.MMCA, inputs: Arrays) -> Arrays:
    images = model.encode_images(inputs['regions'])
    texts = model.encode_texts(inputs['words'], inputs['mask'] != 0)
    paired_images, paired_texts, _ = model.embed_pairs(
      jax.tree.map(lambda x: x[:, None], images), jax.tree.map(lambda x: x[None], texts)
    )
    self_scores = images['embedding'] @ texts['embedding'].T
    cross_scores = jnp.sum(paired_images * paired_texts, axis=-1)
    return {
      'S': self_scores + model.alpha * cross_scores,
      'S_self': self_scores,
      'S_cross': cross_scores,
      'i0': images['embedding'],
      'c0': texts['embedding'],
      'i1': paired_images,
      'c1': paired_texts,
    }

  return adapters.module_adapter(
    manifest,
    _model(manifest),
    rules=mmca_rules(),
    call=call,
    taps={
      'img_fc': 'region_projection',
      'img_self': 'image_unit_0',
      'txt_fc': 'word_projection',
      'txt_cnn': 'text_cnn',
    },
  )


@adapters.register_adapter('mmca', 'MMCA+loss')
def training_adapter(manifest: Manifest) -> adapters.Adapter:
  """A whole model in training mode and its loss; pairs in chunks, as it is trained."""

  def call(model: mmca.MMCA, inputs: Arrays) -> Arrays:
    scores, _ = model(_named(inputs), train=True, chunk=2)
    return {'S': scores, 'loss': losses.triplet_loss(scores).sum()}

  return adapters.module_adapter(
    manifest, _model(manifest), rules=prefixed(mmca_rules(), 'net.'), call=call
  )


@adapters.register_adapter('mmca', 'cross_pair')
def cross_pair_adapter(manifest: Manifest) -> adapters.Adapter:
  """The cross-attention module on matching pairs; the other parameters have no gradient."""
  module = _model(manifest)

  def call(model: mmca.MMCA, inputs: Arrays) -> Arrays:
    if model.is_initializing():
      # Creates what the pairs do not use.
      model.encode_images(jnp.zeros((1, 1, module.region_dim)))
      model.encode_texts(jnp.zeros((1, max(module.kernel_sizes), module.word_dim)))
    mask = jnp.ones(inputs['r'].shape[:2], bool)
    image, text, _ = model.embed_pairs(
      {'candidates': inputs['r'], 'mask': mask},
      {'candidates': inputs['e'], 'mask': inputs['mask'] != 0},
    )
    return {'i1': image, 'c1': text}

  return adapters.module_adapter(manifest, module, rules=mmca_rules(), call=call)


# Parts of a model.


@adapters.register_adapter('mmca', 'transformer_unit')
def unit_adapter(manifest: Manifest) -> adapters.Adapter:
  """A transformer unit."""
  arguments = manifest['constructor']
  return adapters.module_adapter(
    manifest,
    joint_attention.PostNormUnit(arguments['d'], arguments['heads'], arguments['ffn']),
    rules=unit_rules(),
    call=lambda unit, inputs: {'out': unit(inputs['x'], inputs['mask'] != 0)},
  )


@adapters.register_adapter('mmca', 'phrase_cnn')
def phrase_cnn_adapter(manifest: Manifest) -> adapters.Adapter:
  """A phrase CNN."""
  arguments = manifest['constructor']

  def call(cnn: mmca.embeddings.PhraseCNN, inputs: Arrays) -> Arrays:
    mask = inputs.get('mask', jnp.ones(inputs['x'].shape[:2]))
    return {'out': cnn(inputs['x'], mask != 0)}

  return adapters.module_adapter(
    manifest,
    mmca.embeddings.PhraseCNN(arguments['dout'], tuple(arguments['kernels']), arguments['ch']),
    rules=phrase_cnn_rules(),
    call=call,
  )


@adapters.register_adapter('mmca', 'saem_image_branch')
def saem_image_adapter(manifest: Manifest) -> adapters.Adapter:
  """SAEM's image branch."""
  arguments = manifest['constructor']
  module = mmca.MMCA(
    region_dim=arguments['img_dim'],
    width=arguments['d'],
    num_heads=arguments['heads'],
    mlp_dim=arguments['ffn'],
    cross_attention=False,
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=saem_image_rules(),
    call=lambda model, inputs: {'i0': model.encode_images(inputs['regions'])['embedding']},
  )


@adapters.register_adapter('mmca', 'saem_text_branch')
def saem_text_adapter(manifest: Manifest) -> adapters.Adapter:
  """SAEM's text branch, BERT inside and frozen; all segments are 0."""
  arguments = manifest['constructor']
  module = mmca.MMCA(
    width=arguments['final'],
    word_dim=arguments['d'],
    cross_attention=False,
    mask_padding=False,
    text_layers=arguments['L'],
    vocab_size=arguments['vocab'],
    text_heads=arguments['h'],
    text_mlp_dim=arguments['f'],
    max_positions=arguments['maxp'],
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=saem_text_rules(),
    call=lambda model, inputs: {
      'c0': model.encode_texts(inputs['ids'], inputs['mask'] != 0)['embedding']
    },
  )


@adapters.register_adapter('mmca', 'bert_tiny')
def bert_adapter(manifest: Manifest) -> adapters.Adapter:
  """BERT."""
  arguments = manifest['constructor']
  module = bert.Bert(
    vocab_size=arguments['vocab'],
    width=arguments['d'],
    num_layers=arguments['L'],
    num_heads=arguments['h'],
    mlp_dim=arguments['f'],
    max_positions=arguments['maxp'],
  )

  def call(model: bert.Bert, inputs: Arrays) -> Arrays:
    _, features = model(inputs['ids'], inputs['mask'] != 0, inputs['types'])
    return {name.replace('layer_', 'layer'): x for name, x in features.items()}

  return adapters.module_adapter(manifest, module, rules=bert_rules(), call=call)


# Losses and metrics.


@adapters.register_adapter('mmca', 'loss_triplet')
def triplet_adapter(manifest: Manifest) -> adapters.Adapter:
  """The triplet loss; which negatives count is said by the case's name only."""
  hardest = manifest['case'] != 'loss_triplet_sum'

  def run(S: jax.Array, ids: jax.Array | None = None) -> Arrays:
    return {'loss': losses.triplet_loss(S, hardest=hardest, image_ids=ids).sum()}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('mmca', 'saem_contrastive_loss')
def contrastive_adapter(manifest: Manifest) -> adapters.Adapter:
  """SAEM's triplet loss, of cosines of embeddings of any length."""
  del manifest

  def run(im: jax.Array, s: jax.Array) -> Arrays:
    images, texts = similarity.l2_normalize(im), similarity.l2_normalize(s)
    return {'loss': losses.triplet_loss(images @ texts.T).sum()}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('mmca', 'saem_angular_loss')
def angular_adapter(manifest: Manifest) -> adapters.Adapter:
  """SAEM's angular loss."""
  del manifest
  return adapters.function_adapter(
    lambda im, s: {'loss': losses.angular_loss(im, s).sum()}, jit=True
  )


@adapters.register_adapter('mmca', 'recall_metrics')
@adapters.register_adapter('mmca', 'recall_folds')
def recall_adapter(manifest: Manifest) -> adapters.Adapter:
  """The recalls of all images, or means over five folds."""
  folds = 5 if manifest['module'] == 'recall_folds' else 1

  def run(S: jax.Array) -> dict[str, np.ndarray]:
    table = metrics.retrieval_metrics(np.asarray(S), folds=folds)
    return {name: np.array([value]) for name, value in table.items()}

  return adapters.function_adapter(run)
