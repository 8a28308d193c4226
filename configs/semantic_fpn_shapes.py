r"""Semantic FPN on a small BiFormer, on procedural scenes, small enough for a CPU.

300 scenes of 64 x 64 pixels are evaluated; it has not been trained to its end yet. Needs no
network; the scenes are rendered on first use.
Any backbone and head will do: `--config.task.head=upernet`.

  python main.py --config=configs/semantic_fpn_shapes.py --workdir=/tmp/semantic_fpn_shapes
"""

import ml_collections

from configs import recipes
from crossattn_jax import models


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = recipes.shape_scenes(96)
  # Maps of 24 x 24, 12 x 12, 6 x 6 and 3 x 3.
  config.model = models.model_config(
    'biformer_tiny',
    image_size=(96, 96),
    widths=(32, 64, 96, 128),
    depths=(1, 1, 1, 1),
    head_dim=16,
    regions_per_side=(4, 4, 3, 1),
    top_k=(4, 8, 9, 0),
    backbone=True,
    drop_path_rate=0.05,
  )
  config.task.head = 'semantic_fpn'
  config.task.head_channels = 32
  config.task.pyramid_channels = 64
  return config
