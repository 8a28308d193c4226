"""Scikit-learn's handwritten digits as a TFDS dataset: 1797 grey images of 8 x 8 pixels.

Nothing is downloaded: scikit-learn ships the data inside its package. It is the test part of
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI Machine Learning Repository,
1998).
"""

from collections.abc import Iterator
import io
import os

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from crossattn_jax.data import writing

_TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder):
  """Writes the digits as ArrayRecord: 1442 training and 355 test images, stratified by class.

  Every fifth image of a class, in scikit-learn's order, is a test image, so that the split depends
  on no random generator. Grey levels 0 to 16 become 0 to 255.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version.'}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Handwritten digits of scikit-learn, 8 x 8 pixels.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
          'label': tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
          'id': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://archive.ics.uci.edu/dataset/80',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    return {split: self._generate_examples(split) for split in ('train', 'test')}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, object]]]:
    from sklearn import datasets  # Only whoever writes the dataset needs scikit-learn.

    digits = datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    seen = np.zeros(10, int)
    for index, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
      is_test = seen[label] % _TEST_EVERY == _TEST_EVERY - 1
      seen[label] += 1
      if is_test == (split == 'test'):
        file = io.BytesIO()
        Image.fromarray(image).save(file, 'png')
        key = f'digit_{index:04d}'
        yield key, {'image': file.getvalue(), 'label': int(label), 'id': key}


def prepare(data_dir: str | os.PathLike[str] | None = None) -> None:
  """Writes the dataset below `data_dir` unless it is there; see `writing.write_once`.

  Args:
    data_dir: folder of TFDS datasets; TFDS's own default (`~/tensorflow_datasets`) if None.
  """
  writing.write_once(Digits(data_dir=data_dir, file_format='array_record'))
