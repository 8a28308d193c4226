"""Cases of the preparation of points: voxels and tables of neighbours."""

from collections.abc import Mapping
import re
from typing import Any

import numpy as np

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
    if kind == 'coords':
      return scenes.coords(level)
    if kind.startswith('k'):
      size = int(kind.removeprefix('k'))
      tables = [
        points_lib.neighbours(scene[level].cells, size, int(stride)) for scene in scenes.levels
      ]
      return scenes.join(tables, level, of=level).T
    links = [scene[level].coarsening for scene in scenes.levels]
    if kind == 'down':
      return scenes.join([link.children for link in links], level + 1, of=level).T
    if kind == 'parent':
      return scenes.join([link.parent for link in links], level, of=level + 1)
    return scenes.join([link.octant for link in links], level)

  def run(coords) -> Arrays:
    # One level more, for the links of the last one.
    scenes = scenes_lib.Scenes(coords, max(strides).bit_length() + 1)
    return {name: table(scenes, name) for name in names}

  return adapters.function_adapter(run)
