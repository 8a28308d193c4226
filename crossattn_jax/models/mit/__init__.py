"""MIT: classes of points, learnt from nothing but which classes a scene holds, with photographs.

Source: "2D-3D Interlaced Transformer for Point Cloud Segmentation with Scene-Level Supervision",
Yang et al. 2023 (arXiv 2310.12817), and the facts of its code (jimmy15923/mit), which this follows
where both differ.
"""

from crossattn_jax.models.mit import encoder, heads, supervoxels
from crossattn_jax.models.mit.ablations import MITImages, MITPoints
from crossattn_jax.models.mit.model import MIT

__all__ = ['MIT', 'MITImages', 'MITPoints', 'encoder', 'heads', 'supervoxels']
