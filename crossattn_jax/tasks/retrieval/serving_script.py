"""Searches images for sentences with the exported model in this folder.

  python load_and_run.py REGIONS.npy "a sentence" ["another sentence" ...]

REGIONS.npy holds the region features of the images, float [images, regions, channels]. For a model
without a text encoder ("vocabulary": null in preprocessing.json) each sentence is a file of its
words' features, float [words, channels]. Prints the rows of the images that fit best. Needs nothing
but `pip install jax flatbuffers safetensors tokenizers`.
"""

import pathlib
import sys

from loading import load
import numpy as np
import tokenizers

SHOWN = 5
# Scored in a call; each takes half a megabyte.
PAIRS = 256


def to_words(sentence, spec):
  """Returns the words of a sentence in the model's slots, and which of those are used."""
  if spec['vocabulary'] is None:
    features = np.load(sentence).astype(np.float32)
    slots, channels = spec['inputs']['words']['shape'][1:]
    if features.ndim != 2 or len(features) > slots or features.shape[1] != channels:
      sys.exit(
        f'{sentence}: expected features [up to {slots} words, {channels}], not {features.shape}'
      )
    return np.pad(features, ((0, slots - len(features)), (0, 0))), np.arange(slots) < len(features)
  numbers = {piece: number for number, piece in enumerate(spec['vocabulary'])}
  tokenizer = tokenizers.BertWordPieceTokenizer(numbers, lowercase=True)
  length = spec['inputs']['words']['shape'][1]
  tokenizer.enable_truncation(length)
  tokenizer.enable_padding(length=length, pad_id=numbers['[PAD]'])
  encoding = tokenizer.encode(sentence)
  return np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool)


def to_regions(path, spec):
  """Returns the features of all images in the model's slots and which of those are used."""
  features = np.load(path).astype(np.float32)
  slots, channels = spec['inputs']['regions']['shape'][1:]
  if features.ndim != 3 or features.shape[1] > slots or features.shape[2] != channels:
    sys.exit(f'{path}: expected features [images, up to {slots}, {channels}], not {features.shape}')
  used = features.shape[1]
  regions = np.pad(features, ((0, 0), (0, slots - used), (0, 0)))
  return regions, np.tile(np.arange(slots) < used, (len(regions), 1))


def search(model, images, texts, size=None):
  """Scores every sentence for every image, [images, sentences].

  Images are 'regions' and 'region_mask', texts 'words' and 'word_mask'. A model that was exported
  for a fixed number of examples takes calls of that size only.
  """
  rows, columns = len(images['region_mask']), len(texts['word_mask'])
  columns_at_once = size or min(columns, PAIRS)
  rows_at_once = size or max(1, PAIRS // columns_at_once)

  def part(items, start, count, total):
    # The last one fills up.
    index = np.minimum(np.arange(start, start + count), total - 1)
    return {name: x[index] for name, x in items.items()}

  scores = np.empty((rows, columns), np.float32)
  for column in range(0, columns, columns_at_once):
    some = part(texts, column, columns_at_once, columns)
    for row in range(0, rows, rows_at_once):
      found = np.asarray(model(part(images, row, rows_at_once, rows) | some)['score'])
      place = scores[row : row + rows_at_once, column : column + columns_at_once]
      place[:] = found[: place.shape[0], : place.shape[1]]
  return scores


def main(path, sentences):
  """Prints the best images of each sentence."""
  spec, model = load(pathlib.Path(__file__).parent)
  regions, region_mask = to_regions(path, spec)
  words, word_mask = map(np.stack, zip(*(to_words(x, spec) for x in sentences), strict=True))
  images = {'regions': regions, 'region_mask': region_mask}
  texts = {'words': words, 'word_mask': word_mask}
  scores = search(model, images, texts, spec['batch_size'])
  for sentence, line in zip(sentences, scores.T, strict=True):
    best = np.argsort(-line, kind='stable')[:SHOWN]
    print(sentence, *(f'image {index} {line[index]:.3f}' for index in best), sep='  ')


if __name__ == '__main__':
  if len(sys.argv) < 3:
    sys.exit(__doc__)
  main(sys.argv[1], sys.argv[2:])
