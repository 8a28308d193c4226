"""Recorded cases of MMCA, SAEM and BERT: models, their parts, losses and metrics."""

from collections.abc import Mapping
import re
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.attention import joint_attention
from crossattn_jax.conversion.mapping import prefixed
from crossattn_jax.conversion.systems import mmca as mmca_rules
from crossattn_jax.layers import similarity
from crossattn_jax.metrics import retrieval as metrics
from crossattn_jax.models import bert, mmca
from crossattn_jax.parity import adapters, arguments
from crossattn_jax.tasks.retrieval import losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
  """Shapes of the state, which tells the sizes of a constructor that does not."""
  return {entry['key'].removeprefix('net.'): tuple(entry['shape']) for entry in manifest['state']}


# Whole models.


def _model(manifest: Manifest, num_heads: int = 16) -> mmca.MMCA:
  """The model of a constructor, with `num_heads` where it does not say it."""
  c, shapes = manifest['constructor'], _shapes(manifest)
  width, region_dim = shapes['img_fc.weight']
  c.ignore_rates('dropout')
  return mmca.MMCA(
    region_dim=c.get('region_dim', region_dim),
    word_dim=c.get('word_dim', shapes['txt_fc.weight'][1]),
    width=c.get('d', width),
    num_heads=c.get('heads', num_heads),
    mlp_dim=c.get('ffn', shapes['cross.0.fc1.weight'][0]),
    image_units=len([key for key in shapes if re.fullmatch(r'img_self\..*fc1\.bias', key)]),
    cross_units=c.get('cross_layers', 1),
    cross_input=c.get('cross_input', 'projected'),
    kernel_sizes=tuple(c.get('kernels', (1, 2, 3))),
    conv_channels=c.get('conv_channels', shapes['txt_cnn.convs.0.weight'][0]),
    cross_conv_channels=c.get('cross_conv_channels', shapes['cross_cnn.convs.0.weight'][0]),
    mask_padding=c.get('mask_padding', True),
    alpha=c.get('alpha', 1.0),
    drop_rate=0.0,
  )


def _all_pairs(model: mmca.MMCA, inputs: Arrays) -> Arrays:
  """Scores and embeddings of all pairs of images and sentences."""
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


@adapters.register_adapter('mmca', 'MMCA')
def _mmca(manifest: Manifest) -> adapters.Adapter:
  model = _model(manifest)
  taps = {
    'img_fc': 'region_projection',
    'img_self': f'image_unit_{model.image_units - 1}',
    'txt_fc': 'word_projection',
    'txt_cnn': 'text_cnn',
  }
  taps |= {f'img_self.{unit}': f'image_unit_{unit}' for unit in range(model.image_units)}
  return adapters.module_adapter(
    manifest, model, rules=mmca_rules.mmca_rules(model.image_units), call=_all_pairs, taps=taps
  )


def _triplet_arguments(c: arguments.Arguments, hardest: bool = True) -> dict[str, Any]:
  return {'margin': c.get('margin', 0.2), 'hardest': c.get('hardest', hardest)}


@adapters.register_adapter('mmca', 'MMCA+loss')
def _mmca_and_loss(manifest: Manifest) -> adapters.Adapter:
  """With scores of pairs in chunks, as it is trained."""
  model, triplets = _model(manifest, num_heads=4), _triplet_arguments(manifest['constructor'])

  def call(model: mmca.MMCA, inputs: Arrays) -> Arrays:
    scores, _ = model(mmca_rules.named(inputs), train=manifest['mode'] == 'train', chunk=2)
    loss = losses.triplet_loss(scores, image_ids=inputs.get('ids'), **triplets).sum()
    return {**_all_pairs(model, inputs), 'S': scores, 'loss': loss}

  return adapters.module_adapter(
    manifest, model, rules=prefixed(mmca_rules.mmca_rules(model.image_units), 'net.'), call=call
  )


@adapters.register_adapter('mmca', 'cross_pair')
def _cross_pair(manifest: Manifest) -> adapters.Adapter:
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

  rules = mmca_rules.mmca_rules(module.image_units)
  return adapters.module_adapter(manifest, module, rules=rules, call=call)


# Parts of a model.


def _mask(inputs: Arrays, name: str) -> jax.Array:
  """The case's mask, or one that has all of the input `name`."""
  return inputs['mask'] != 0 if 'mask' in inputs else jnp.ones(inputs[name].shape[:2], bool)


@adapters.register_adapter('mmca', 'transformer_unit')
def _transformer_unit(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore_rates('dropout')
  taps = {'attn.o': 'out', 'ln1': 'norm1', 'fc1': 'fc1', 'fc2': 'fc2', 'ln2': 'norm2'}
  for torch, flax in (('q', 'query'), ('k', 'key'), ('v', 'value')):
    taps[f'attn.{torch}'] = (flax, lambda x: rearrange(x, '... h d -> ... (h d)'))
  return adapters.module_adapter(
    manifest,
    joint_attention.PostNormUnit(c['d'], c['heads'], c['ffn']),
    rules=mmca_rules.unit_rules(),
    call=lambda unit, inputs: {'out': unit(inputs['x'], _mask(inputs, 'x'))},
    taps=taps,
  )


@adapters.register_adapter('mmca', 'phrase_cnn')
def _phrase_cnn(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('din')
  c.ignore_rates('dropout')
  masked = c.get('mask_padding', True)

  def call(cnn: mmca.embeddings.PhraseCNN, inputs: Arrays) -> Arrays:
    mask = _mask(inputs, 'x')
    return {'out': cnn(inputs['x'], mask if masked else jnp.ones_like(mask))}

  return adapters.module_adapter(
    manifest,
    mmca.embeddings.PhraseCNN(c['dout'], tuple(c['kernels']), c['ch']),
    rules=mmca_rules.phrase_cnn_rules(),
    call=call,
    taps={'fc': 'fc'},
  )


@adapters.register_adapter('mmca', 'saem_image_branch')
def _saem_image_branch(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore_rates('dropout')
  module = mmca.MMCA(
    region_dim=c['img_dim'],
    width=c['d'],
    num_heads=c['heads'],
    mlp_dim=c['ffn'],
    cross_attention=False,
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=mmca_rules.saem_image_rules(),
    call=lambda model, inputs: {'i0': model.encode_images(inputs['regions'])['embedding']},
    taps={'mapping': 'region_projection', 'layer': 'image_unit_0'},
  )


@adapters.register_adapter('mmca', 'saem_text_branch')
def _saem_text_branch(manifest: Manifest) -> adapters.Adapter:
  """BERT inside and frozen; all segments are 0, whatever the case's types are."""
  c = manifest['constructor']
  c.ignore_rates('dropout')
  module = mmca.MMCA(
    width=c['final'],
    word_dim=c['d'],
    cross_attention=False,
    kernel_sizes=tuple(c.get('kernels', (1, 2, 3))),
    conv_channels=c.get('ch', _shapes(manifest)['convs1.0.weight'][0]),
    mask_padding=False,
    text_layers=c['L'],
    vocab_size=c['vocab'],
    text_heads=c['h'],
    text_mlp_dim=c['f'],
    max_positions=c['maxp'],
  )
  return adapters.module_adapter(
    manifest,
    module,
    rules=mmca_rules.saem_text_rules(),
    call=lambda model, inputs: {
      'c0': model.encode_texts(inputs['ids'], inputs['mask'] != 0)['embedding']
    },
  )


@adapters.register_adapter('mmca', 'bert_tiny')
def _bert(manifest: Manifest) -> adapters.Adapter:
  """Every layer, the last one and the summary, also by the names of `transformers`."""
  c = manifest['constructor']
  c.ignore_rates('dropout')
  module = bert.Bert(
    vocab_size=c['vocab'],
    width=c['d'],
    num_layers=c['L'],
    num_heads=c['h'],
    mlp_dim=c['f'],
    max_positions=c['maxp'],
    num_segments=c.get('types', 2),
    pooler='pooler.dense.weight' in _shapes(manifest),
  )

  def call(model: nn.Module, inputs: Arrays) -> Arrays:
    last, features = model(inputs['ids'], _mask(inputs, 'ids'), inputs.get('types'))
    outputs = {f'layer{i}': features[f'layer_{i}'] for i in range(module.num_layers)}
    outputs['last_hidden_state'] = last
    if module.pooler:
      outputs['pooled'] = outputs['pooler_output'] = features['pooled']
    return outputs

  taps = {'embeddings': 'embedding_norm'}
  taps |= {f'encoder.layer.{i}': f'layer_{i}' for i in range(module.num_layers)}
  return adapters.module_adapter(
    manifest, module, rules=mmca_rules.bert_rules(module.pooler), call=call, taps=taps
  )


# Losses and metrics.


@adapters.register_adapter('mmca', 'loss_triplet')
def _triplet_loss(manifest: Manifest) -> adapters.Adapter:
  """Of the hardest negatives, or of all: public cases of all say so by their names only."""
  summed = 'sum' in manifest['case'].split('_')
  triplets = _triplet_arguments(manifest['constructor'], hardest=not summed)

  def run(S: jax.Array, ids: jax.Array | None = None) -> Arrays:
    return {'loss': losses.triplet_loss(S, image_ids=ids, **triplets).sum()}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('mmca', 'saem_contrastive_loss')
def _contrastive_loss(manifest: Manifest) -> adapters.Adapter:
  """SAEM's triplet loss, of cosines of embeddings of any length."""
  c = manifest['constructor']
  c.ignore('measure', only=('cosine',))
  margin, hardest = c.get('margin', 0.2), c.get('max_violation', True)

  def run(im: jax.Array, s: jax.Array) -> Arrays:
    scores = similarity.l2_normalize(im) @ similarity.l2_normalize(s).T
    return {'loss': losses.triplet_loss(scores, margin=margin, hardest=hardest).sum()}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('mmca', 'saem_angular_loss')
def _angular_loss(manifest: Manifest) -> adapters.Adapter:
  """`angle_bound` is the squared tangent of the angle."""
  bound = manifest['constructor'].get('angle_bound', 1.0)
  return adapters.function_adapter(
    lambda im, s: {'loss': losses.angular_loss(im, s, tan_squared=bound).sum()}, jit=True
  )


@adapters.register_adapter('mmca', 'recall_metrics')
@adapters.register_adapter('mmca', 'recall_folds')
def _recalls(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  folds = c.get('folds', 5 if manifest['module'] == 'recall_folds' else 1)
  images, captions = manifest['inputs']['S']['shape']
  captions = c.get('captions_per_image', captions // images)

  def run(S: jax.Array) -> dict[str, np.ndarray]:
    table = metrics.retrieval_metrics(np.asarray(S), captions, folds)
    return {name: np.array([value]) for name, value in table.items()}

  return adapters.function_adapter(run)
