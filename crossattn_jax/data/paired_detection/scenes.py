"""Procedural scenes as pairs of a visible and a thermal image with the boxes of their shapes."""

from typing import Any

from crossattn_jax.data.detection import scenes


class PairedScenes(scenes.SceneSource):
  """A split of `shape_scenes`, images left encoded; written on first use.

  Boxes, classes and numbers are those of `detection.scenes.SceneSource`.
  """

  def __getitem__(self, index: int) -> dict[str, Any]:
    key, example = self.key(index), self._examples[index]
    return {
      'key': key,
      'rgb': example['image'],
      'thermal': example['thermal'],
      'rgb_key': f'image of {key}',
      'thermal_key': f'thermal of {key}',
    }

  def key(self, index: int) -> str:
    """See `sources.Source`."""
    return f'{self._where}[{index}]'
