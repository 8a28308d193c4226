import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.models.mmca import embeddings


def test_sentences_shorter_than_a_phrase_have_one():
  cnn = embeddings.PhraseCNN(width=4, channels=3)
  words = np.random.default_rng(0).standard_normal((1, 5, 6)).astype(np.float32)
  mask = np.arange(5)[None] < 2
  embed = jax.jit(lambda words: cnn.init_with_output(jax.random.key(0), words, mask)[0])
  # The only phrase of three words is the first.
  third, fourth = words.copy(), words.copy()
  third[:, 2] += 1
  fourth[:, 3:] += 1
  np.testing.assert_array_equal(embed(fourth), embed(words))
  assert np.any(embed(third) != embed(words))


def test_a_gru_reads_to_the_end_of_each_sentence_and_back():
  """Against its equations (Cho et al. 2014, as PyTorch has them) on each sentence alone."""
  gru = embeddings.GRU(3, bidirectional=True, param_dtype=jnp.float64)
  rng = np.random.default_rng(0)
  words, counts = rng.standard_normal((2, 4, 2)), [4, 2]
  mask = np.arange(4) < np.array(counts)[:, None]
  with jax.enable_x64(True):
    states, variables = jax.jit(gru.init_with_output)(jax.random.key(0), words, mask)
  params = jax.device_get(variables['params'])

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  def read(sentence, cell):
    def gate(name, x):
      return x @ cell[name]['kernel'] + cell[name].get('bias', 0)

    state, found = np.zeros(3), []
    for word in sentence:
      reset, update = (sigmoid(gate('i' + x, word) + gate('h' + x, state)) for x in 'rz')
      new = np.tanh(gate('in', word) + reset * gate('hn', state))
      state = (1 - update) * new + update * state
      found.append(state)
    return np.array(found)

  for row, count in enumerate(counts):
    sentence = words[row, :count]
    forward = read(sentence, params['forward']['cell'])
    backward = read(sentence[::-1], params['backward']['cell'])[::-1]
    np.testing.assert_allclose(states[row, :count], (forward + backward) / 2, rtol=1e-12)
