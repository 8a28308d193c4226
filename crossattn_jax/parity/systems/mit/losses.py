"""Cases of the losses, of pseudo labels and of the metrics."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.metrics import segmentation as metrics
from crossattn_jax.models.mit import heads
from crossattn_jax.parity import adapters
from crossattn_jax.tasks.scene_labels import losses, pseudo_labels
from crossattn_jax.tasks.segmentation import losses as segmentation_losses

Manifest = Mapping[str, Any]
Arrays = dict[str, jax.Array]


def _mean(values: jax.Array) -> jax.Array:
  """Over all scenes, with an axis as PyTorch's scalars were recorded."""
  return values.mean()[None]


@adapters.register_adapter('mit', 'loss_multilabel_soft_margin')
def _soft_margin(manifest: Manifest) -> adapters.Adapter:
  del manifest

  def run(logits: jax.Array, labels: jax.Array) -> Arrays:
    return {'loss': _mean(losses.scene_losses({'scene_logits': logits}, labels)['scene'])}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('mit', 'loss_bce_clamp')
def _clamped(manifest: Manifest) -> adapters.Adapter:
  del manifest

  def run(prob: jax.Array, labels: jax.Array) -> Arrays:
    return {'loss': _mean(losses.binary_cross_entropy(prob, labels))}

  return adapters.function_adapter(run, jit=True)


def _probabilities(logits: jax.Array) -> jax.Array:
  """Of a scene, from class activations `[batch, classes, supervoxels]`."""
  return nn.softmax(logits, axis=1).mean(axis=2)


@adapters.register_adapter('mit', 'loss_bce_cam3d')
def _activations(manifest: Manifest) -> adapters.Adapter:
  del manifest

  def run(voxel_cam_logits: jax.Array, labels: jax.Array) -> Arrays:
    prob = _probabilities(voxel_cam_logits)
    return {'prob': prob, 'loss': _mean(losses.binary_cross_entropy(prob, labels))}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('mit', 'loss_token_npair')
def _token_similarity(manifest: Manifest) -> adapters.Adapter:
  classes = manifest['constructor']['classes']

  def run(**maps: jax.Array) -> Arrays:
    scenes: dict[str, list[jax.Array]] = {}
    for name, logits in maps.items():  # map_SCENE_LAYER
      scenes.setdefault(name.split('_')[1], []).append(logits)
    values = [heads.token_similarity(layers, classes) for layers in scenes.values()]
    return {'loss': _mean(jnp.concatenate(values))}

  return adapters.function_adapter(run, jit=True)


# Our names of the losses, by the original's.
_NAMES = {
  'cross_mct': 'cross',
  'mct_2d': 'view_class',
  'mct_3d': 'voxel_class',
  'cam_2d': 'view_cam',
  'cam_3d': 'voxel_cam',
}


@adapters.register_adapter('mit', 'loss_stage1_total')
def _total(manifest: Manifest) -> adapters.Adapter:
  alpha = manifest['constructor']['alpha']

  def run(
    labels: jax.Array,
    cam_3d_logits: jax.Array,
    token_sim: jax.Array,
    consistency: jax.Array,
    **logits: jax.Array,
  ) -> Arrays:
    outputs = {f'{_NAMES[name]}_logits': x for name, x in logits.items()}
    outputs['voxel_cam_probabilities'] = _probabilities(cam_3d_logits)
    # Means over the scenes, given as they are.
    outputs |= {'token_similarity': token_sim, 'consistency': consistency}
    parts = {name: _mean(x) for name, x in losses.scene_losses(outputs, labels).items()}
    weights = dict.fromkeys(parts, 1.0) | {'consistency': alpha}
    named = {name: parts[ours] for name, ours in _NAMES.items() if ours in parts}
    return named | {'loss': losses.total(parts, weights)}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('mit', 'loss_stage2_ce')
def _cross_entropy(manifest: Manifest) -> adapters.Adapter:
  ignored = manifest['constructor']['ignore_label']

  def run(logits: jax.Array, target: jax.Array) -> Arrays:
    loss = segmentation_losses.cross_entropy(logits, target, ignore_label=ignored)
    return {'loss': loss[None]}

  return adapters.function_adapter(run, jit=True)


@adapters.register_adapter('mit', 'eval_pseudo_labels')
def _pseudo_labels(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  threshold, ignored = c['threshold'], c['ignore_label']

  def run(labels: np.ndarray, **inputs: np.ndarray) -> Arrays:
    present = [np.flatnonzero(tags) for tags in np.asarray(labels)]
    forms = {'official': [np.concatenate(present)] * len(labels), 'per_scene': present}
    results = {}
    for form, forced in forms.items():
      for scene, tags in enumerate(labels):
        scores = np.asarray(nn.softmax(inputs[f'cam_logits_{scene}'], axis=1))
        found = pseudo_labels.supervoxel_labels(scores, tags, threshold, forced[scene])
        found = np.where(found == pseudo_labels.ABSENT, ignored, found)
        results[f'{form}_{scene}'] = found[np.asarray(inputs[f'supervoxel_{scene}'])]
    return results

  return adapters.function_adapter(run)


@adapters.register_adapter('mit', 'eval_miou')
def _metrics(manifest: Manifest) -> adapters.Adapter:
  """The metric of the test, and the meter of the training, to which no class is a wrong one."""
  c = manifest['constructor']
  classes, ignored = c['classes'], c['ignore_label']

  def run(gt: jax.Array, pred: jax.Array, pred_with_ignore: jax.Array) -> dict[str, np.ndarray]:
    def confusion(predictions, classes):
      return np.asarray(metrics.confusion_matrix(gt, predictions, classes, ignore_label=ignored))

    tested = confusion(pred, classes)
    iou = metrics.intersection_over_union(tested)
    # A class more, that is none.
    none = jnp.where(pred_with_ignore == ignored, classes, pred_with_ignore)
    seen = confusion(none, classes + 1)
    both, true = np.diag(seen)[:-1], seen.sum(1)[:-1]
    means = {
      'miou_meter': metrics.mean_over_classes(metrics.intersection_over_union(seen)[:-1], 'zero'),
      'macc_meter': metrics.mean_over_classes(metrics.class_accuracy(seen)[:-1], 'zero'),
      'allacc_meter': metrics.pixel_accuracy(seen),
    }
    return {
      'confusion_pred_by_gt': tested.T,
      'iou': iou,
      'miou': np.array([metrics.mean_over_classes(iou, 'zero')]),
      'intersection': both,
      'union': true + seen.sum(0)[:-1] - both,
      'target': true,
      **{name: np.array([value]) for name, value in means.items()},
    }

  return adapters.function_adapter(run)
