"""The head of CCNet: recurrent criss-cross attention between two convolutions.

Source: Huang et al. 2019 (arXiv 1811.11721), figure 2.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from crossattn_jax.attention import criss_cross
from crossattn_jax.heads import style as style_lib
from crossattn_jax.layers import convolution, linear

Features = dict[str, jax.Array]


class RCCAHead(nn.Module):
  """Convolution, criss-cross attention R times, convolution, fused with the input.

  Attributes:
    num_classes: of the result.
    style: norms, activations and initialisation; see `style.Style`.
    channels: inside; a quarter of the input's by default.
    fused: of the fused map.
    recurrence: R, how often the attention is applied; 0 leaves it out.
    embedding: channels of a linear map of the attention's result, for the category consistent loss
      (arXiv 1811.11721v2, section 3.4); 0 leaves it out.
    implementation: of `kernels.criss_cross_attention`.
  """

  num_classes: int
  style: style_lib.Style
  channels: int | None = None
  fused: int = 512
  recurrence: int = 2
  embedding: int = 0
  implementation: str = 'auto'

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool = False, frames: int | None = None
  ) -> tuple[jax.Array, Features]:
    """Predicts from the last map of a backbone.

    Args:
      x: `[batch, height, width, channels_in]`.
      train: whether norms use the batch and channels are dropped.
      frames: of videos: so many maps in a row are one, and attention is along time too.

    Returns:
      Logits `[batch, height, width, num_classes]`, and features:
        'context': the map after the last attention, `[batch, height, width, channels]`.
        'attention/{r}': weights of application r over the column and the row of each pixel,
          `[batch, height, width, height + width]`. Not of videos.
        'embedding': `[batch, height, width, embedding]`, where that is not 0.
    """
    style, types = self.style, self.style.types
    channels = self.channels or x.shape[-1] // 4
    context = style.unit(channels, 3, name='reduction')(x, train)
    features: Features = {}
    if self.recurrence:
      attention = criss_cross.CrissCrossAttention(
        recurrence=1,
        implementation=self.implementation,
        name='attention',
        **linear.TORCH,
        **types,
      )
      if frames:
        context = context.reshape(-1, frames, *context.shape[1:])
      for r in range(self.recurrence):
        context, weights = attention(context, with_weights=True)
        if not frames:
          features[f'attention/{r}'] = weights[0]
      context = context.reshape(*x.shape[:3], channels)
    features['context'] = context
    if self.embedding:
      conv = convolution.convolution(channels, self.embedding, 1, name='embedding', **types)
      features['embedding'] = conv(context)
    y = style.unit(channels, 3, name='output')(context, train)
    y = style.unit(self.fused, 3, name='fusion')(jnp.concatenate([x, y], axis=-1), train)
    return style.classify(y, self.num_classes, train), features
