r"""A plain pyramid with any attention on scikit-learn's handwritten digits.

Everything but the attention is equal.

  python main.py --config=configs/pyramid_digits.py:criss_cross --workdir=/tmp/pyramid_digits
"""

import ml_collections

from configs import recipes
from crossattn_jax import models


def get_config(attention: str = 'global') -> ml_collections.ConfigDict:
  """Returns the experiment of one attention."""
  config = recipes.digits((32, 32))
  config.model = models.model_config(
    'pyramid_tiny',
    attention=attention,
    image_size=(32, 32),
    # Maps of 8 x 8, 4 x 4, 2 x 2 and 1 x 1.
    widths=(32, 64, 96, 128),
    depths=(2, 2, 1, 1),
    head_dim=16,
    num_classes=10,
    num_channels=1,
    drop_path_rate=0.05,
  )
  config.num_epochs = 15.0
  config.evaluation.every_epochs = 5.0
  return config
