r"""MMCA on Flickr30K, Karpathy's splits: the recipe of SAEM, on which MMCA builds.

29,000 training images with five captions each, in batches of 64 pairs; 1,014 and 1,000 to validate
and test. Published, R@1 from images to captions and from captions to images: MMCA 74.2 and 54.8,
SAEM 69.1 and 52.4. The recipe of MMCA itself is not known; not trained here.

  python main.py --config=configs/mmca_flickr30k.py --workdir=gs://BUCKET/mmca \
    --config.dataset.data_dir=/data/f30k_precomp --config.dataset.vocabulary=/data/bert/vocab.txt \
    --config.weights=start.safetensors

docs/mmca.md says where the files are from. SAEM, its predecessor, without cross-attention, is
configs/mmca_flickr30k.py:saem_bert_base. With ':mmca' and ':saem' BERT is not computed in every
step: its features of all captions are files, which `python -m crossattn_jax.tasks.retrieval.words`
writes once:

  python main.py --config=configs/mmca_flickr30k.py:mmca --workdir=gs://BUCKET/mmca \
    --config.dataset.data_dir=/data/f30k_precomp --config.dataset.word_files=/data/f30k_precomp
"""

import ml_collections

from configs import recipes


def get_config(model: str = 'mmca_bert_base') -> ml_collections.ConfigDict:
  """Returns the experiment.

  Args:
    model: 'mmca_bert_base' or 'saem_bert_base', or 'mmca' or 'saem' for words' features in files.
  """
  return recipes.image_sentence_retrieval(model)
