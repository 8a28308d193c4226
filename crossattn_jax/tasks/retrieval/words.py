"""Computes the features of captions' words once, for models without a text encoder.

  python -m crossattn_jax.tasks.retrieval.words bert.safetensors \
    --vocabulary=/data/bert/vocab.txt --output=/data/f30k_precomp \
    /data/f30k_precomp/train_caps.txt /data/f30k_precomp/dev_caps.txt

writes `train_words.npy`, `train_lengths.npy` and those of `dev`, which `config.dataset.word_files`
names by their folder. The weights are a file that `python -m crossattn_jax.parity convert` wrote,
of BERT or of a model with BERT inside.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import pathlib
import sys
from typing import Any

from flax import linen as nn
import jax
import numpy as np
import rich.progress

from crossattn_jax import models
from crossattn_jax.data.retrieval import sources, word_features, word_pieces
from crossattn_jax.models import bert, mmca, variables_io

_CAPTIONS = '_caps.txt'


def write_caption_features(
  model: nn.Module,
  variables: Mapping[str, Any],
  words: word_pieces.WordPieces,
  captions: Sequence[str],
  folder: pathlib.Path,
  split: str,
  *,
  batch_size: int = 64,
  dtype: str = 'float32',
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes what a text encoder makes of the captions of a split.

  Args:
    model: a `Bert`, or an `MMCA` with one inside, which does not drop here.
    variables: of the model.
    words: makes word pieces of captions.
    captions: of all images of the split, in order.
    folder: for the files that `data.word_features` reads.
    split: the beginning of their names.
    batch_size: captions that are encoded at a time.
    dtype: of the file; 'float16' halves it.

  Returns:
    Where features and lengths are.

  Raises:
    ValueError: the model is no text encoder, or knows fewer word pieces than the vocabulary has.
  """
  encode, width = _encoder(model)
  if len(words.vocabulary) > model.vocab_size:
    raise ValueError(
      f'the vocabulary has {len(words.vocabulary)} word pieces, the text encoder knows '
      f'{model.vocab_size}: they do not belong together'
    )
  ids, masks = (np.stack(x) for x in zip(*map(words, captions), strict=True))

  def features() -> Iterator[np.ndarray]:
    starts = range(0, len(captions), batch_size)
    for start in rich.progress.track(
      starts, split, transient=True, disable=not sys.stderr.isatty()
    ):
      # The last batch is filled up.
      rows = np.minimum(np.arange(start, start + batch_size), len(captions) - 1)
      encoded = np.asarray(encode(variables, ids[rows], masks[rows]), np.float32)
      for row in range(min(batch_size, len(captions) - start)):
        yield encoded[row][masks[start + row]]

  return word_features.write_word_features(
    folder, split, masks.sum(axis=1), features(), width, dtype
  )


def _encoder(model: nn.Module) -> tuple[Callable[..., jax.Array], int]:
  """The jitted `(variables, ids, mask) -> features`, and their channels."""
  if isinstance(model, bert.Bert):
    return jax.jit(lambda *arguments: model.apply(*arguments)[0]), model.width
  if isinstance(model, mmca.MMCA) and model.text_layers:
    return jax.jit(functools.partial(model.apply, method='encode_words')), model.word_dim
  raise ValueError(
    "the weights are of no text encoder: expected those of 'bert_base_uncased', or of a model with "
    "BERT inside, such as 'mmca_bert_base'"
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m crossattn_jax.tasks.retrieval.words',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('weights', type=pathlib.Path)
  parser.add_argument('captions', type=pathlib.Path, nargs='+', help='SPLIT_caps.txt, one per line')
  parser.add_argument('--vocabulary', required=True, help="the text encoder's vocab.txt")
  parser.add_argument('--output', type=pathlib.Path, required=True, help='folder, made if need be')
  parser.add_argument('--max_words', type=int, default=32, help='word pieces, as in the config')
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--dtype', choices=('float16', 'float32'), default='float32')
  args = parser.parse_args(arguments)
  for path in args.captions:
    if not path.name.endswith(_CAPTIONS) or not path.is_file():
      parser.error(f'{path}: expected an existing file SPLIT{_CAPTIONS}')
  saved = variables_io.load_variables(args.weights)
  model = models.create_model(saved.name, **saved.overrides)
  vocabulary = word_pieces.read_vocabulary(args.vocabulary)
  args.output.mkdir(parents=True, exist_ok=True)
  for path in args.captions:
    written = write_caption_features(
      model,
      saved.variables,
      word_pieces.WordPieces(vocabulary, args.max_words),
      sources.read_lines(path),
      args.output,
      path.name.removesuffix(_CAPTIONS),
      batch_size=args.batch_size,
      dtype=args.dtype,
    )
    print(*written)


if __name__ == '__main__':
  main()
