"""Cases of the preparation of points: voxels and tables of neighbours."""

from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from crossattn_jax.data.scene_points import augmentation
from crossattn_jax.geometry import points as points_lib
from crossattn_jax.parity import adapters
from crossattn_jax.parity.systems.mit import scenes as scenes_lib

Manifest = Mapping[str, Any]
Arrays = dict[str, np.ndarray]


@adapters.register_adapter('mit', 'data_voxelize')
def _voxelize(manifest: Manifest) -> adapters.Adapter:
  del manifest

  def run(points, colors, angles, order, scale, labels, segs) -> Arrays:
    rotation = points_lib.rotation(np.asarray(angles), np.asarray(order))
    voxels = points_lib.voxelize(np.asarray(points), rotation * np.asarray(scale), hashed=True)
    attributes = {'colors': colors, 'labels': labels, 'segs': segs}
    return {
      'rot': rotation,
      'coords': voxels.cells,
      **{name: np.asarray(values)[voxels.first] for name, values in attributes.items()},
      'inverse': voxels.inverse,
    }

  return adapters.function_adapter(run)


@adapters.register_adapter('mit', 'data_rulebook')
def _tables(manifest: Manifest) -> adapters.Adapter:
  """Which levels and windows a case has is in the names of its outputs."""
  names = [name.removeprefix('out/') for name in manifest['shapes']]
  strides = [int(stride) for name in names for stride in re.findall(r'_s(\d+)', name)]

  def table(scenes: scenes_lib.Scenes, name: str) -> np.ndarray:
    kind, stride = name.split('_s')[:2]
    level = int(stride).bit_length() - 1
    cells, _, link = scenes.levels[level]
    if kind == 'coords':
      return scenes.coords(level)
    if kind.startswith('k'):
      return points_lib.neighbours(cells, int(kind.removeprefix('k')), int(stride)).T
    return {'down': link.children.T, 'parent': link.parent, 'octant': link.octant}[kind]

  def run(coords) -> Arrays:
    # One level more, for the links of the last one.
    scenes = scenes_lib.Scenes(coords, max(strides).bit_length() + 1)
    return {name: table(scenes, name) for name in names}

  return adapters.function_adapter(run)


@adapters.register_adapter('mit', 'data_elastic')
def _distort(manifest: Manifest) -> adapters.Adapter:
  c = manifest['constructor']
  low, high = np.asarray(c.get('clip', (-np.inf, np.inf)))
  granularity, magnitude = c['granularity'], c['magnitude']

  def run(points, noise) -> Arrays:
    # The original draws and smooths in float32.
    points, noise = np.clip(np.asarray(points), low, high), np.asarray(noise, np.float32)
    return {'points_out': augmentation.distort(points, noise, granularity, magnitude)}

  return adapters.function_adapter(run)


@adapters.register_adapter('mit', 'data_color')
def _recolor(manifest: Manifest) -> adapters.Adapter:
  std = manifest['constructor']['jitter_std']

  def run(rgb, hue, sat, blend, translation, jitter_noise) -> Arrays:
    colors = np.clip(np.round(np.asarray(rgb)), 0, 255)
    blend, translation, hue, sat = map(np.asarray, (blend, translation, hue, sat))
    return {
      'autocontrast': augmentation.stretch_contrast(colors, blend),
      'translation': augmentation.add_levels(colors, translation),
      'jitter': augmentation.add_levels(colors, std * np.asarray(jitter_noise)),
      'hsv': augmentation.to_hsv(colors),
      'hue_saturation': augmentation.turn_hue(colors, hue, sat),
    }

  return adapters.function_adapter(run)
