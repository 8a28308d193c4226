"""Classification losses, one value per example; reductions and masks are the task's."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax


def soft_target_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Cross entropy against a distribution over the classes.

  Args:
    logits: `[batch, classes]`.
    targets: `[batch, classes]`, rows that sum to one.

  Returns:
    `[batch]`, in at least float32.
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return optax.losses.softmax_cross_entropy(logits, targets)


def label_smoothing_cross_entropy(
  logits: jax.Array, labels: jax.Array, smoothing: float
) -> jax.Array:
  """`(1 - smoothing)` of the log loss plus `smoothing` of the mean loss over all classes.

  Args:
    logits: `[batch, classes]`.
    labels: integer classes `[batch]`.
    smoothing: in [0, 1).

  Returns:
    `[batch]`, in at least float32.
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  log_probabilities = jax.nn.log_softmax(logits, axis=-1)
  picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
  return -(1.0 - smoothing) * picked - smoothing * jnp.mean(log_probabilities, axis=-1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Log loss of the true class; see `label_smoothing_cross_entropy`."""
  return label_smoothing_cross_entropy(logits, labels, 0.0)


def soft_distillation_loss(
  logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
  """Divergence of the student from the teacher (DeiT, arXiv 2012.12877, equation 2).

  Args:
    logits: of the student, `[batch, classes]`.
    teacher_logits: the same shape. Whoever trains stops their gradient.
    temperature: divides both.

  Returns:
    temperature^2 times the Kullback-Leibler divergence from the teacher's distribution, divided by
    the number of classes, `[batch]`, in at least float32.
  """
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  student = jax.nn.log_softmax(logits.astype(dtype) / temperature, axis=-1)
  teacher = jax.nn.log_softmax(teacher_logits.astype(dtype) / temperature, axis=-1)
  return temperature**2 * jnp.mean(jnp.exp(teacher) * (teacher - student), axis=-1)


def hard_distillation_loss(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
  """Cross entropy against the teacher's decision (DeiT, arXiv 2012.12877, equation 3).

  Args:
    logits: of the student, `[batch, classes]`.
    teacher_logits: the same shape.

  Returns:
    `[batch]`, in at least float32.
  """
  return cross_entropy(logits, jnp.argmax(teacher_logits, axis=-1))


def distillation_loss(
  logits: jax.Array, teacher_logits: jax.Array, kind: Literal['hard', 'soft'], temperature: float
) -> jax.Array:
  """`hard_distillation_loss` or `soft_distillation_loss`, from whatever gave the teacher's logits.

  No gradient reaches the teacher.
  """
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  if kind == 'hard':
    return hard_distillation_loss(logits, teacher_logits)
  return soft_distillation_loss(logits, teacher_logits, temperature)


def multi_label_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Binary cross entropy of each class, averaged over the classes.

  Args:
    logits: `[batch, classes]`.
    targets: the same shape, in [0, 1].

  Returns:
    `[batch]`, in at least float32.
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return jnp.mean(optax.losses.sigmoid_binary_cross_entropy(logits, targets), axis=-1)
