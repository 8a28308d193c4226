from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.heads import style
from crossattn_jax.heads.segmentation import semantic_fpn, upernet

# Of an image of 70 x 98: no map is half of the one before.
MAPS = [jnp.zeros((2, *size, 8)) for size in ((18, 25), (9, 13), (5, 7), (3, 4))]


@pytest.mark.parametrize('head', [semantic_fpn.SemanticFPN, upernet.UPerHead])
def test_maps_of_odd_sizes_give_logits_at_the_finest(head):
  module = head(5, style.Style(dtype=jnp.bfloat16), channels=4)
  logits = jax.eval_shape(lambda maps: module.init_with_output(jax.random.key(0), maps)[0], MAPS)
  assert logits.shape == (2, 18, 25, 5)
  assert logits.dtype == jnp.float32


def test_dropout_drops_whole_channels():
  drop = style.Style(dropout_rate=0.5)

  class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return drop.classify(x, 64, train)

  x = jnp.ones((1, 4, 5, 64))
  variables = Classifier().init(jax.random.key(0), x, False)
  # Each logit is one channel.
  variables['params']['classifier']['kernel'] = jnp.eye(64)[None, None]
  out = Classifier().apply(variables, x, True, rngs={'dropout': jax.random.key(1)})
  assert set(np.unique(out)) == {0.0, 2.0}
  assert (out == out[:, :1, :1]).all()
