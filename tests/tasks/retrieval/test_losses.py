"""Against loops over pairs in float64; the recorded cases are replayed in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.tasks.retrieval import losses

SCORES = np.random.default_rng(0).uniform(-1, 1, (5, 5))


@pytest.mark.parametrize('reduce', [max, sum])
@pytest.mark.parametrize('ids', [None, [3, 1, 3, 2, 1]])
def test_the_triplet_loss_compares_each_pair_with_its_negatives(reduce, ids):
  labels = range(5) if ids is None else ids
  expected = []
  for b, matching in enumerate(np.diag(SCORES)):
    others = [i for i in range(5) if labels[i] != labels[b]]
    texts = [max(0, 0.3 + SCORES[b, i] - matching) for i in others]
    images = [max(0, 0.3 + SCORES[i, b] - matching) for i in others]
    expected.append(reduce(texts) + reduce(images))
  with jax.enable_x64(True):
    loss = losses.triplet_loss(
      jnp.asarray(SCORES),
      margin=0.3,
      hardest=reduce is max,
      image_ids=None if ids is None else jnp.array(ids),
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_only_the_hardest_negatives_and_their_pair_have_a_gradient():
  gradient = jax.grad(lambda scores: losses.triplet_loss(scores).sum())(
    jnp.array([[0.5, 0.4, 0.1], [-1.0, 0.9, 0.2], [-1.0, -1.0, 0.3]])
  )
  # Row 0 is violated by column 1; column 2 by row 1; everything else keeps its distance.
  expected = np.array([[-1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_a_pair_without_negatives_costs_nothing():
  scores = jnp.ones((3, 3))
  assert not np.any(losses.triplet_loss(scores, image_ids=jnp.zeros(3, jnp.int32)))
  assert not np.any(losses.triplet_loss(jnp.ones((1, 1))))


def test_scores_of_another_number_of_texts_are_refused():
  with pytest.raises(ValueError, match=r'as many texts as images, not of shape \(3, 4\)'):
    losses.triplet_loss(jnp.zeros((3, 4)))


def test_the_angular_loss_is_its_equation():
  images, texts = np.random.default_rng(1).standard_normal((2, 4, 6))
  expected = np.zeros(4)
  for i in range(4):
    for negatives in (images, texts):
      exponents = [
        4 * (images[i] + texts[i]) @ negatives[n] - 4 * images[i] @ texts[i]
        for n in range(4)
        if n != i
      ]
      expected[i] += np.log1p(np.exp(max(exponents)))
  with jax.enable_x64(True):
    np.testing.assert_allclose(losses.angular_loss(images, texts), expected, rtol=1e-12)
    # The exponential of such an exponent is beyond float64.
    assert np.all(np.isfinite(losses.angular_loss(100 * images, 100 * texts)))


def test_the_weight_of_the_angular_loss_falls_and_ends():
  weights = [float(losses.angular_weight(jnp.float32(epoch))) for epoch in (0, 4.9, 5, 20.5, 21)]
  np.testing.assert_allclose(weights, [0.5, 0.5, 0.05, 5e-5, 0], rtol=1e-6)


def test_the_norm_penalty_is_of_kernels_only():
  params = {
    'projection': {'kernel': jnp.array([[3.0, 0.0], [0.0, 4.0]]), 'bias': jnp.ones(2)},
    'unit': {'norm1': {'scale': jnp.ones(2)}, 'out': {'kernel': jnp.full((2, 1, 2), 0.5)}},
  }
  assert float(losses.norm_penalty(params)) == pytest.approx(6)
