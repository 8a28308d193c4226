"""Evaluation of segmentation as recorded: tiles, scales, metrics, palettes, augmentation."""

from collections.abc import Callable, Mapping
from typing import Any

from einops import rearrange
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.data.segmentation import augmentation as segmentation_augmentation
from crossattn_jax.data.segmentation import taxonomies
from crossattn_jax.layers import convolution, resize
from crossattn_jax.metrics import segmentation as metrics
from crossattn_jax.parity import adapters
from crossattn_jax.parity.layouts import channels_first, channels_last
from crossattn_jax.parity.rules import affine
from crossattn_jax.tasks.segmentation import inference

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


class _StandIn(nn.Module):
  """The small network that the evaluation was recorded with."""

  classes: int

  @nn.compact
  def __call__(self, image):
    x = convolution.convolution(3, 8, 3, stride=2, padding=1, name='c1')(image)
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

  return adapters.Adapter(run=run, template=adapter.template, mapping=adapter.mapping)


@adapters.register_adapter('ccnet', 'sliding')
def _sliding(manifest: Manifest) -> adapters.Adapter:
  tile = tuple(manifest['constructor']['tile'])

  def evaluate(predict: inference.Predict, images: jax.Array) -> jax.Array:
    scores = inference.sliding_window(predict, images, tile)
    # The original gives every image of a batch the scores of the first.
    return jnp.broadcast_to(scores[:1], scores.shape)

  return _evaluation_adapter(manifest, evaluate)


@adapters.register_adapter('ccnet', 'multiscale_flip')
def _multiscale(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  return _evaluation_adapter(
    manifest,
    lambda predict, images: inference.multi_scale(
      predict, images, scales=c['scales'], flip=c['flip']
    )[0],
  )


@adapters.register_adapter('ccnet', 'zoom')
def _zoom(manifest: Manifest) -> adapters.Adapter:
  def run(image: jax.Array, label: jax.Array) -> Arrays:
    outputs = {}
    for zoom in manifest['constructor']['zooms']:
      size = inference.zoomed_size(label.shape[1:], zoom)
      linear = resize.resize(channels_last(image), size, 'bilinear', align_corners=True)
      rows, columns = (
        resize.nearest_corner_aligned(length, short)
        for length, short in zip(label.shape[1:], size, strict=True)
      )
      outputs[f'linear_{zoom}'] = channels_first(linear)
      outputs[f'nearest_{zoom}'] = label[:, rows][:, :, columns].astype(image.dtype)
    return outputs

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('ccnet', 'miou')
def _ccnet_miou(manifest: Manifest) -> adapters.Adapter:
  def run(gt: jax.Array, pred: jax.Array) -> dict[str, Any]:
    confusion = np.asarray(metrics.confusion_matrix(gt, pred, manifest['constructor']['classes']))
    iou = metrics.intersection_over_union(confusion)
    mean = metrics.mean_over_classes(iou, absent='zero')
    return {'confusion': confusion, 'iou': np.nan_to_num(iou), 'miou': np.array([mean])}

  return adapters.function_adapter(run, without_gradient=('iou', 'miou'))


@adapters.register_adapter('crossformer', 'seg_miou')
def _mmsegmentation_miou(manifest: Manifest) -> adapters.Adapter:
  classes = manifest['shapes']['out/IoU'][0]

  def run(pred: jax.Array, label: jax.Array) -> dict[str, np.ndarray]:
    confusion = np.asarray(metrics.confusion_matrix(label, pred, classes))
    iou = metrics.intersection_over_union(confusion)
    # The original averages in float32.
    return {
      'aAcc': np.array([metrics.pixel_accuracy(confusion)], np.float32),
      'IoU': np.nan_to_num(iou, nan=-1),
      'Acc': np.nan_to_num(metrics.class_accuracy(confusion), nan=-1),
      'mIoU': np.array([metrics.mean_over_classes(iou, absent='skip')], np.float32),
    }

  names = [name.removeprefix('out/') for name in manifest['shapes']]
  return adapters.function_adapter(run, without_gradient=names)


@adapters.register_adapter('ccnet', 'palette')
def _palette(manifest: Manifest) -> adapters.Adapter:
  del manifest
  return adapters.function_adapter(lambda n: {'palette': taxonomies.voc_palette(int(n[0]))})


@adapters.register_adapter('ccnet', 'augment')
def _augment(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  mean = np.array([104.00698793, 116.66876762, 122.67891434], np.float32)

  def run(image: jax.Array, label: jax.Array) -> dict[str, np.ndarray]:
    train_id = taxonomies.CITYSCAPES.to_classes(np.asarray(label))
    outputs = {'train_id': train_id}
    for scale, top, left, mirrored in c['draws']:
      choice = segmentation_augmentation.Draw(scale, top, left, bool(mirrored))
      pixels, labels = segmentation_augmentation.apply(
        np.asarray(image), train_id, choice, c['crop'], padding=mean
      )
      outputs[f'image_f{scale}'] = rearrange(pixels - mean, 'h w c -> c h w')
      outputs[f'label_f{scale}'] = labels
    return outputs

  # OpenCV rounds twice.
  tolerances = {name: 1.001 for name in manifest['shapes'] if name.startswith('out/image_f')}
  return adapters.function_adapter(run, tolerances=tolerances)
