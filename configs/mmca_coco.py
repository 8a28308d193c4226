r"""MMCA on MS-COCO, Karpathy's splits: the recipe of SAEM, on which MMCA builds.

113,287 training images with five captions each, in batches of 64 pairs; 5,000 to validate, of
which the first 1,000 are used, and 5,000 to test. Published, R@1 from images to captions and from
captions to images, in folds of 1,000 test images: MMCA 74.8 and 61.6, SAEM 71.2 and 57.8; among all
5,000: MMCA 54.0 and 38.7. The recipe of MMCA itself is not known; not trained here.

  python main.py --config=configs/mmca_coco.py --workdir=gs://BUCKET/mmca \
    --config.dataset.data_dir=/data/coco_precomp --config.dataset.vocabulary=/data/bert/vocab.txt \
    --config.weights=start.safetensors

The test, of both protocols ('folds/...' are means over the folds):

  python main.py --mode=eval --workdir=gs://BUCKET/mmca --config=configs/mmca_coco.py:test \
    --config.dataset.data_dir=/data/coco_precomp --config.dataset.vocabulary=/data/bert/vocab.txt

docs/mmca.md says where the files are from.
"""

import ml_collections

from configs import recipes


def get_config(split: str = 'dev') -> ml_collections.ConfigDict:
  """Returns the experiment.

  Args:
    split: of the evaluation: 'dev' or 'test'.
  """
  if split not in ('dev', 'test'):
    raise ValueError(f"unknown split {split!r} of mmca_coco.py; 'dev' or 'test'")
  config = recipes.image_sentence_retrieval('mmca_bert_base')
  if split == 'test':
    config.dataset.eval_split = 'testall'
    config.task.evaluation.folds = 5
  else:
    config.dataset.eval_images = 1000
  return config
