import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax.tasks.detection import dense_losses


def test_masks_that_are_right_cost_nothing():
  masks = jnp.zeros((1, 2, 4, 4), bool).at[0, :, :2].set(True)
  logits = jnp.where(masks, 50.0, -50.0)
  is_truth = jnp.array([[True, False]])
  losses = dense_losses.mask_losses(logits, masks, is_truth, 1)
  np.testing.assert_allclose(list(losses.values()), [0, 0], atol=1e-6)
  wrong = dense_losses.mask_losses(-logits, masks, is_truth, 1)
  np.testing.assert_allclose(wrong['dice_loss'], 1 - 1 / 17)
  other = dense_losses.mask_losses(logits.at[0, 1].multiply(-1), masks, is_truth, 1)
  np.testing.assert_allclose(other['dice_loss'], losses['dice_loss'])


def test_tokens_see_shares_of_the_first_mask():
  masks = jnp.zeros((1, 3, 2, 4), bool).at[0, 0, :, 0].set(True).at[0, 1, :, :3].set(True)
  masks = masks.at[0, 2].set(True)
  labels = jnp.array([[2, 1, -1]])
  shares = jnp.array([[[[1, 0.5, 0.5], [0.5, 0.5, 0]]]])
  loss = lambda logits: dense_losses.token_label_losses([logits], masks, labels, 1)
  probability = jnp.clip(shares, 1e-6, 1 - 1e-6)
  logits = jnp.log(probability / (1 - probability))
  dice = 1 - (2 * np.sum(shares**2) + 1) / (2 * np.sum(shares) + 1)
  np.testing.assert_allclose(loss(logits)['token_dice_loss'], dice, rtol=1e-4)
  slope = jax.grad(lambda x: loss(x)['token_focal_loss'])(logits)
  assert np.all(np.isfinite(slope))
