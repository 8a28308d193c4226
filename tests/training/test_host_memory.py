import subprocess
import sys

import pytest

SCRIPT = """
import resource, statistics, sys
import jax, jax.numpy as jnp
from crossattn_jax.training import host_memory
if sys.argv[1] == 'keep' and not host_memory.keep_freed_memory():
  sys.exit('no glibc')
f = jax.jit(jax.grad(lambda x, w: (jnp.tanh(jnp.tanh(x @ w) @ w.T) @ w).sum()))
x, w = jnp.ones((32768, 64)), jnp.ones((64, 512))
counts = []
for _ in range(16):
  start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  f(x, w).block_until_ready()
  counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
print(statistics.median(counts))
"""


@pytest.mark.extended
def test_most_steps_fault_no_pages_in(main_environment):
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
    return float(result.stdout)

  # The temporaries of one call have 32768 pages. Now and then the heap must grow all the same.
  assert faults('leave') > 30000
  assert faults('keep') < 1000
