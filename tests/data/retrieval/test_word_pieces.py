import pickle

from crossattn_jax.data.retrieval import word_pieces

_VOCABULARY = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', 'image', 'caption', *'012345', '##1')


def test_sentences_become_lower_case_word_pieces_between_marks():
  words = word_pieces.WordPieces(_VOCABULARY, 8)
  numbers, mask = words('IMAGE 1 CAPTION 11 x')
  assert words.pieces(numbers, mask) == [
    '[CLS]', 'image', '1', 'caption', '1', '##1', '[UNK]', '[SEP]'
  ]  # fmt: skip
  numbers, mask = words('image')
  assert mask.tolist() == [True] * 3 + [False] * 5
  assert not numbers[3:].any()
  numbers, mask = pickle.loads(pickle.dumps(words))('image ' * 20)
  assert words.pieces(numbers, mask) == ['[CLS]', *['image'] * 6, '[SEP]']
