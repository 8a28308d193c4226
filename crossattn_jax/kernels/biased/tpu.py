"""Attention with a bias for TPUs: the kernel of routed attention in its dense form.

There is one region of queries and one of keys; neither scores nor weights are ever in HBM.
"""

import functools

import jax
import jax.numpy as jnp

from crossattn_jax.kernels.routed import tpu

# A network's many layers of equal shapes share their trace and their code.
_STATIC = ('num_heads', 'scale', 'interpret')
_kernel_forward = jax.jit(tpu.forward, static_argnames=_STATIC)
_kernel_backward = jax.jit(tpu.backward, static_argnames=_STATIC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def biased_attention(query, key, value, bias, key_mask, num_heads, scale, interpret):
  """See `kernels.biased_attention`."""
  return _forward(query, key, value, bias, key_mask, num_heads, scale, interpret)[0]


def _forward(query, key, value, bias, key_mask, num_heads, scale, interpret):
  regions = [x[:, None] for x in (query, key, value)]
  routing = jnp.zeros((len(query), 1, 1), jnp.int32)
  mask = None if key_mask is None else key_mask[:, None]
  out, log_sum = _kernel_forward(
    *regions, routing, mask, num_heads=num_heads, scale=scale, bias=bias, interpret=interpret
  )
  return out[:, 0], (*regions, routing, mask, bias, out, log_sum)


def _backward(num_heads, scale, interpret, residuals, d_out):
  *operands, bias, out, log_sum = residuals
  *gradients, d_bias = _kernel_backward(
    *operands,
    out,
    log_sum,
    d_out[:, None],
    num_heads=num_heads,
    scale=scale,
    bias=bias,
    interpret=interpret,
  )
  return (*(x[:, 0] for x in gradients), d_bias.astype(bias.dtype), None)


biased_attention.defvjp(_forward, _backward)
