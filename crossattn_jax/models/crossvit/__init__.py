"""CrossViT: two transformers at two patch sizes that talk through their class tokens.

Source: Chen, Fan, Panda, "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image
Classification", ICCV 2021 (arXiv 2103.14899). Equations and figures are the paper's; where paper
and official code (IBM/CrossViT) differ, this follows the code.

A branch is numbered d; branch 0 ("S") has the small patches, branch 1 ("L") the large ones. More
than two branches form a ring. Every token sequence starts with the class token, the patch tokens
follow row by row.
"""

from crossattn_jax.models.crossvit import encoder, fusion, options, tokens_to_token
from crossattn_jax.models.crossvit.classifier import CrossViT

__all__ = ['CrossViT', 'encoder', 'fusion', 'options', 'tokens_to_token']
