"""Operations that have other forms on other platforms, each with one public function."""

from crossattn_jax.kernels.biased.api import biased_attention as biased_attention
from crossattn_jax.kernels.convolution.api import conv_general_dilated as conv_general_dilated
from crossattn_jax.kernels.criss_cross.api import criss_cross_attention as criss_cross_attention
from crossattn_jax.kernels.deformable_sampling.api import deformable_sampling as deformable_sampling
from crossattn_jax.kernels.depthwise.api import depthwise_convolution as depthwise_convolution
from crossattn_jax.kernels.dot_product.api import dot_product_attention as dot_product_attention
from crossattn_jax.kernels.grouped.api import grouped_attention as grouped_attention
from crossattn_jax.kernels.grouped.grouping import Grouping as Grouping
from crossattn_jax.kernels.neighbours.api import sparse_convolution as sparse_convolution
from crossattn_jax.kernels.neighbours.api import sparse_downsampling as sparse_downsampling
from crossattn_jax.kernels.neighbours.api import sparse_upsampling as sparse_upsampling
from crossattn_jax.kernels.pooling import max_pool as max_pool
from crossattn_jax.kernels.products import contract as contract
from crossattn_jax.kernels.products import project_apart as project_apart
from crossattn_jax.kernels.roi_align.api import roi_align as roi_align
from crossattn_jax.kernels.roi_align.api import roi_align_pyramid as roi_align_pyramid
from crossattn_jax.kernels.routed.api import routed_attention as routed_attention
