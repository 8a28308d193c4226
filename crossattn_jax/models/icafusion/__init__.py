"""ICAFusion: detects objects in aligned RGB and thermal images by fusing two streams.

Source: Shen et al. 2024 (Pattern Recognition 145, arXiv 2308.07504).
"""

from crossattn_jax.models.icafusion import attention_maps, fusion, neck, streams
from crossattn_jax.models.icafusion.model import ICAFusion

__all__ = ['ICAFusion', 'attention_maps', 'fusion', 'neck', 'streams']
