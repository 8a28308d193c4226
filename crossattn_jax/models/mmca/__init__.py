"""MMCA: matches images and sentences by attention within and across both.

Source: Wei, Zhang, Li, Zhang, Wu, "Multi-Modality Cross Attention Network for Image and Sentence
Matching", CVPR 2020, pages 10941-10950. Its code was never published; what the paper leaves open is
taken from its predecessor SAEM ("Learning Fragment Self-Attention Embeddings for Image-Text
Matching", ACM MM 2019, yiling2018/saem), and docs/mmca.md lists it.

An image is a set of regions, a sentence a sequence of words. The self-attention module embeds
either alone. The cross-attention module embeds them as a pair: regions and words attend to each
other under one softmax. A pair's score is the similarity of the embeddings of both modules.
"""

from crossattn_jax.models.mmca import embeddings
from crossattn_jax.models.mmca.matching import MMCA

__all__ = ['MMCA', 'embeddings']
