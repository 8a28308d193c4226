"""Operations that XLA has no good form for, each with one public function that picks the code."""

from crossattn_jax.kernels.biased import biased_attention as biased_attention
from crossattn_jax.kernels.criss_cross.api import criss_cross_attention as criss_cross_attention
from crossattn_jax.kernels.routed.api import routed_attention as routed_attention
