"""Image classification without this library."""

from crossattn_jax.data import decoding
from crossattn_jax.tasks import classifier


class Serving(classifier.Serving):
  """Normalised images in, logits out; the script decodes files as training does."""

  modules = (decoding,)
