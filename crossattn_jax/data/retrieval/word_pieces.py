"""Sentences as the word pieces that BERT reads: lower-cased WordPiece with [CLS] and [SEP]."""

from collections.abc import Iterable
import dataclasses
import functools
import os

from etils import epath
import numpy as np
import tokenizers

SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')


def read_vocabulary(path: str | os.PathLike[str]) -> tuple[str, ...]:
  """Reads a `vocab.txt` as BERT's checkpoints have it: a piece per line, its number the line's.

  Raises:
    ValueError: there is no such file, or it lacks a special token.
  """
  path = epath.Path(path)
  if not path.exists():
    raise ValueError(
      f'dataset.vocabulary={str(path)!r} does not exist; expected the vocab.txt of the text encoder'
    )
  pieces = tuple(path.read_text().rstrip('\n').split('\n'))
  missing = [token for token in SPECIAL_TOKENS if token not in pieces]
  if missing:
    raise ValueError(
      f'dataset.vocabulary={str(path)!r} has no {missing[0]!r} among its {len(pieces)} lines; '
      'expected a vocab.txt with one word piece per line'
    )
  return pieces


def words_of(sentences: Iterable[str]) -> tuple[str, ...]:
  """A vocabulary of the words and marks that sentences have, special tokens first."""
  split = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
  lower = tokenizers.normalizers.BertNormalizer(lowercase=True).normalize_str
  found = {word for sentence in sentences for word, _ in split(lower(sentence))}
  return (*SPECIAL_TOKENS, *sorted(found))


@dataclasses.dataclass(frozen=True)
class WordPieces:
  """Turns sentences into numbered word pieces.

  Attributes:
    vocabulary: pieces in the order of their numbers.
    max_words: slots of a sentence; what is longer loses its end, [SEP] excepted.
  """

  vocabulary: tuple[str, ...]
  max_words: int

  @functools.cached_property
  def _tokenizer(self) -> tokenizers.BertWordPieceTokenizer:
    numbers = {piece: number for number, piece in enumerate(self.vocabulary)}
    tokenizer = tokenizers.BertWordPieceTokenizer(numbers, lowercase=True)
    tokenizer.enable_truncation(self.max_words)
    tokenizer.enable_padding(length=self.max_words, pad_id=numbers['[PAD]'])
    return tokenizer

  def __call__(self, sentence: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the pieces, int32 `[max_words]`, and which of them are real, bool `[max_words]`.

    [CLS] and [SEP] are real.
    """
    encoding = self._tokenizer.encode(sentence)
    return np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool)

  def pieces(self, words: np.ndarray, mask: np.ndarray) -> list[str]:
    """The real pieces of a sentence that was numbered."""
    return [self.vocabulary[number] for number in words[mask]]
