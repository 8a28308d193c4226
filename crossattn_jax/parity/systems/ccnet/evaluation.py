"""Cases of CCNet's data and evaluation: augmentation, tiles, scales, metrics, palettes."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.conversion.layouts import channels_first, channels_last
from crossattn_jax.conversion.rules import affine
from crossattn_jax.data.segmentation import augmentation, taxonomies
from crossattn_jax.layers import convolution, resize
from crossattn_jax.metrics import segmentation as metrics
from crossattn_jax.parity import adapters
from crossattn_jax.tasks.segmentation import inference

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


class _StandIn(nn.Module):
  """The small network that the evaluation was recorded with."""

  classes: int

  @nn.compact
  def __call__(self, image):
    bands = image.shape[-1]
    x = convolution.convolution(bands, 8, 3, stride=2, padding=1, name='c1')(image)
    return convolution.convolution(8, self.classes, 3, stride=2, padding=1, name='c2')(nn.relu(x))


def _evaluation_adapter(
  manifest: Manifest, evaluate: Callable[[inference.Predict, jax.Array], jax.Array]
) -> adapters.Adapter:
  module = _StandIn(manifest['constructor']['classes'])
  adapter = adapters.module_adapter(
    manifest,
    module,
    rules=affine('{name:c1|c2}', '{name}', 'conv'),
    call=lambda network, inputs: {'scores': network(channels_last(inputs['image']))},
  )

  def run(variables, inputs):
    scores = evaluate(lambda x: module.apply(variables, x), channels_last(inputs['image']))
    return {'scores': scores}, {}

  return dataclasses.replace(adapter, run=run)


@adapters.register_adapter('ccnet', 'sliding')
def _sliding(manifest: Manifest) -> adapters.Adapter:
  c, size = manifest['constructor'], manifest['inputs']['image']['shape'][2:]
  tile, overlap = tuple(c['tile']), c.get('overlap', 1 / 3)
  stride = inference.tile_stride(tile[0], overlap)
  c.ignore('stride', only=(stride,))
  for name, length, side in zip(('tile_rows', 'tile_cols'), size, tile, strict=True):
    c.ignore(name, only=(len(inference.tile_starts(length, side, stride)),))

  def evaluate(predict: inference.Predict, images: jax.Array) -> jax.Array:
    scores = inference.sliding_window(predict, images, tile, overlap=overlap)
    # The original gives every image of a batch the scores of the first.
    return jnp.broadcast_to(scores[:1], scores.shape)

  return _evaluation_adapter(manifest, evaluate)


@adapters.register_adapter('ccnet', 'multiscale_flip')
def _multiscale(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('size', only=(list(manifest['inputs']['image']['shape'][2:]),))
  options = {'scales': c['scales'], 'flip': c.get('flip', True)}
  return _evaluation_adapter(
    manifest, lambda predict, images: inference.multi_scale(predict, images, **options)[0]
  )


@adapters.register_adapter('ccnet', 'zoom')
def _zoom(manifest: Manifest) -> adapters.Adapter:
  zooms = manifest['constructor']['zooms']

  def run(image: jax.Array, label: jax.Array) -> Arrays:
    outputs = {}
    for zoom in zooms:
      size = inference.zoomed_size(label.shape[1:], zoom)
      linear = resize.resize(channels_last(image), size, 'bilinear', align_corners=True)
      rows, columns = (
        resize.nearest_corner_aligned(length, short)
        for length, short in zip(label.shape[1:], size, strict=True)
      )
      reached = resize.reached_by_zoom(label.shape[1:], size)
      outputs[f'linear_{zoom}'] = channels_first(linear) * reached
      outputs[f'nearest_{zoom}'] = (label[:, rows][:, :, columns] * reached).astype(image.dtype)
    return outputs

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('ccnet', 'miou')
def _mean_iou(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  classes, ignored = c['classes'], c.get('ignore_index', taxonomies.IGNORE_LABEL)

  def run(gt: jax.Array, pred: jax.Array) -> dict[str, Any]:
    confusion = np.asarray(metrics.confusion_matrix(gt, pred, classes, ignore_label=ignored))
    iou = metrics.intersection_over_union(confusion)
    mean = metrics.mean_over_classes(iou, absent='zero')
    return {'confusion': confusion, 'iou': np.nan_to_num(iou), 'miou': np.array([mean])}

  return adapters.function_adapter(run, without_gradient=('iou', 'miou'))


@adapters.register_adapter('ccnet', 'palette')
def _palette(manifest: Manifest) -> adapters.Adapter:
  del manifest
  return adapters.function_adapter(lambda n: {'palette': taxonomies.voc_palette(int(n[0]))})


@adapters.register_adapter('ccnet', 'augment')
def _augment(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  c.ignore('opencv')
  draws, crop = c['draws'], c['crop']
  mean = np.array(c.get('mean', [104.00698793, 116.66876762, 122.67891434]), np.float32)
  ignored = c.get('ignore_label', taxonomies.IGNORE_LABEL)

  def run(image: jax.Array, label: jax.Array) -> dict[str, np.ndarray]:
    train_id = taxonomies.CITYSCAPES.to_classes(np.asarray(label))
    outputs = {'train_id': train_id}
    for scale, top, left, mirrored in draws:
      choice = augmentation.Draw(scale, top, left, bool(mirrored))
      pixels, labels = augmentation.apply(
        np.asarray(image), train_id, choice, crop, padding=mean, ignore_label=ignored
      )
      outputs[f'image_f{scale}'] = rearrange(pixels - mean, 'h w c -> c h w')
      outputs[f'label_f{scale}'] = labels
    return outputs

  # OpenCV rounds twice.
  tolerances = {name: 1.001 for name in manifest['shapes'] if name.startswith('out/image_f')}
  return adapters.function_adapter(run, tolerances=tolerances)
