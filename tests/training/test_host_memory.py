import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import jax, jax.numpy as jnp
from crossattn_jax.training import host_memory
if sys.argv[1] == 'keep' and not host_memory.keep_freed_memory():
  sys.exit('no glibc')
f = jax.jit(jax.grad(lambda x, w: (jnp.tanh(jnp.tanh(x @ w) @ w.T) @ w).sum()))
x, w = jnp.ones((32768, 64)), jnp.ones((64, 512))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3): f(x, w).block_until_ready()
start = faults()
for _ in range(3): f(x, w).block_until_ready()
print(faults() - start)
"""


def test_repeated_steps_fault_no_pages_in(main_environment):
  def faults(how):
    result = subprocess.run(
      [sys.executable, '-c', SCRIPT, how],
      env=main_environment,
      capture_output=True,
      text=True,
      check=False,
    )
    if 'no glibc' in result.stderr:
      pytest.skip('the C library is not glibc')
    assert result.returncode == 0, result.stderr
    return int(result.stdout)

  # The hidden layer of one call has 16384 pages.
  assert faults('leave') > 3 * 16000
  assert faults('keep') < 1000
