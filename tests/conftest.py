"""Every test runs on eight simulated CPU devices; fixtures that several rooms share.

With CROSSATTN_JAX_TEST_PLATFORM=cuda the tests of a room run on the GPU that is here instead, those
of `tests/kernels` above all.
"""

import importlib.metadata
import importlib.util
import os
import tempfile

# Read when jax is first imported, which happens after this file is.
os.environ['JAX_PLATFORMS'] = os.environ.get('CROSSATTN_JAX_TEST_PLATFORM', 'cpu')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_force_host_platform_device_count=8'
  # Tests compile more than they compute, and each core has a worker.
  + ' --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
  * (os.environ['JAX_PLATFORMS'] == 'cpu')
  # A third of the processor time of all tests; later versions have no other emitters.
  + ' --xla_cpu_use_fusion_emitters=false'
  * importlib.metadata.version('jaxlib').startswith('0.10.')
)
# What several tests run is compiled once, by all workers of pytest-xdist together.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  CACHE = tempfile.TemporaryDirectory(prefix='crossattn_jax_tests_', ignore_cleanup_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = CACHE.name
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
# libtpu must not look for a TPU on the network.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')

import pathlib

import ml_collections
import pytest

ROOT = pathlib.Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
  """A test is of one tier, else it runs twice."""
  for item in items:
    tiers = {mark.name for mark in item.iter_markers()} & {'extended', 'torch', 'slow'}
    if len(tiers) > 1:
      raise pytest.UsageError(f'{item.nodeid} is of several tiers: {", ".join(sorted(tiers))}')


def pytest_runtest_setup(item):
  """Without libtpu, nothing compiles for TPUs."""
  if item.get_closest_marker('tpu_aot') and importlib.util.find_spec('libtpu') is None:
    pytest.skip('needs libtpu')


@pytest.fixture(scope='session')
def datasets_dir(tmp_path_factory) -> str:
  """Where the tests' TFDS datasets are, instead of the home directory."""
  return str(tmp_path_factory.mktemp('datasets'))


@pytest.fixture
def tiny_config(datasets_dir) -> ml_collections.ConfigDict:
  """The digits experiment with a model that compiles in seconds, 12 steps long."""
  from configs import crossvit_digits

  config = crossvit_digits.get_config()
  config.dataset.data_dir = datasets_dir
  config.model.widths = (16, 32)
  config.model.depths = ((1, 1, 0),)
  config.num_epochs = None
  config.num_steps = 12
  config.schedule.warmup_epochs = 0.0
  config.schedule.warmup_steps = 2
  config.evaluation.every_epochs = None
  config.logging.every_steps = 1
  return config


@pytest.fixture(scope='session')
def main_environment() -> dict[str, str]:
  """Environment of `main.py` subprocesses: one device."""
  return os.environ | {
    'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1'),
    'PYTHONPATH': str(ROOT),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
