"""What a network that labels points makes of point clouds."""

from crossattn_jax.tasks import predictor


class Predictor(predictor.FilePredictor):
  """Skeleton."""
