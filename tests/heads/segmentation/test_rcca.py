import jax
import jax.numpy as jnp
import numpy as np
import optax

from crossattn_jax.heads import style
from crossattn_jax.heads.segmentation import rcca
from crossattn_jax.tasks.segmentation import losses


def test_bfloat16_trains_with_scores_that_would_overflow_unshifted():
  # Users of the original report NaN: its scores are not scaled. These are 400 times as large.
  rng = np.random.RandomState(0)
  x = jnp.asarray(rng.standard_normal((2, 5, 7, 64)), jnp.float32)
  labels = jnp.asarray(rng.randint(5, size=(2, 5, 7)))
  head = rcca.RCCAHead(
    5, style.Style(corner_aligned=True, activated_norm=True, dtype=jnp.bfloat16), fused=16
  )

  def enlarge(path, leaf):
    names = {part.key for part in path}
    return 20 * leaf if names & {'query', 'key'} else leaf + ('gate' in names)

  variables = jax.tree_util.tree_map_with_path(enlarge, jax.jit(head.init)(jax.random.key(0), x))
  optimizer = optax.sgd(0.02, momentum=0.9)

  @jax.jit
  def step(params, statistics, state, rng):
    def loss_of(params):
      (logits, features), updated = head.apply(
        {'params': params, 'batch_stats': statistics},
        x,
        train=True,
        rngs={'dropout': rng},
        mutable=['batch_stats'],
      )
      return losses.cross_entropy(logits, labels), (updated['batch_stats'], features)

    (loss, (statistics, features)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state)
    sharpest = features['attention/0'].max(-1).mean()
    return optax.apply_updates(params, updates), statistics, state, loss, sharpest

  params, statistics = variables['params'], variables['batch_stats']
  state = optimizer.init(params)
  history = []
  for key in jax.random.split(jax.random.key(1), 30):
    params, statistics, state, loss, sharpest = step(params, statistics, state, key)
    history.append(float(loss))
  assert sharpest > 0.9  # The scores are as large as meant.
  assert np.isfinite(history).all()
  assert history[-1] < 0.8 * history[0]
