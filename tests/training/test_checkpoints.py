"""Checkpoints: exact, on any number of devices, and damaged in every way a disk or a kill can."""

import json
import logging
import os
import pathlib
import shutil
import socket
import subprocess
import sys

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import ml_collections
import numpy as np
import pytest
import tensorstore

from crossattn_jax.training import checkpoints

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ml_collections.ConfigDict({'model': {'name': 'tiny'}, 'lr': 0.1, 'sizes': (1, 2)})


@struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: tuple | None
  rng: jax.Array


def make_state(value=1.0, devices=8):
  """Returns a state split over the first `devices` devices."""
  mesh = jax.make_mesh(
    (devices,), ('data',), devices=jax.devices()[:devices], axis_types=(jax.sharding.AxisType.Auto,)
  )
  split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (['data'], []))
  kernel = value * np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
  put = jax.device_put
  return State(
    step=put(jnp.int32(2**24 + 1), whole),
    params={
      'fc1': {'kernel': put(kernel, split), 'bias': put(kernel[0].astype(jnp.bfloat16), whole)}
    },
    opt_state=({'kernel': put(kernel**2, split)}, put(jnp.int32(7), whole)),
    rng=put(jax.random.fold_in(jax.random.key(3), 5), whole),
  )


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_equal(restored, expected):
  def check(a, b):
    assert a.dtype == b.dtype
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(a, b)

  jax.tree.map(check, restored, expected)


@pytest.fixture
def saved(tmp_path):
  """A checkpointer with the steps 10 and 20."""
  checkpointer = checkpoints.Checkpointer(tmp_path / 'checkpoints', keep_last=3)
  for step in (10, 20):
    checkpointer.save(step, make_state(step), CONFIG)
  checkpointer.close()
  return checkpointer


def folder(checkpointer, step):
  return pathlib.Path(checkpointer.directory) / str(step)


@pytest.mark.parametrize(('before', 'after'), [(8, 8), (8, 1), (1, 8)])
def test_restores_every_bit_on_any_number_of_devices(tmp_path, before, after):
  state = make_state(devices=before)
  checkpointer = checkpoints.Checkpointer(tmp_path)
  assert checkpointer.save(10, state, CONFIG)
  wanted = make_state(devices=after)
  restored, step = checkpointer.restore(abstract(wanted), CONFIG)
  assert_equal(restored, wanted)
  assert step == 10
  np.testing.assert_array_equal(
    jax.random.normal(restored.rng, (4,)), jax.random.normal(wanted.rng, (4,))
  )
  checkpointer.close()


def test_an_empty_folder_restores_nothing_and_is_not_made(tmp_path):
  checkpointer = checkpoints.Checkpointer(tmp_path / 'none')
  assert checkpointer.restore(abstract(make_state())) is None
  assert checkpointer.latest_step() is None
  with pytest.raises(FileNotFoundError, match='no checkpoint in'):
    checkpointer.restore_partial(abstract(make_state()))
  assert not (tmp_path / 'none').exists()


def test_arrays_may_be_donated_while_they_are_being_saved(tmp_path):
  # Large enough that writing outlasts the donating steps; restore verifies the fingerprints.
  state = {'x': jnp.arange(2**21, dtype=jnp.float32), 'y': jnp.ones((2**20,))}
  wanted = jax.tree.map(np.asarray, jax.tree.map(jnp.copy, state))
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
  checkpointer = checkpoints.Checkpointer(tmp_path)
  checkpointer.save(1, state)
  for _ in range(5):
    state = overwrite(state)
  restored = checkpointer.restore(abstract(state)).state
  jax.tree.map(np.testing.assert_array_equal, restored, wanted)
  checkpointer.close()


def test_a_saved_step_is_not_saved_again(saved):
  assert not saved.save(20, make_state(5))
  assert_equal(saved.restore(abstract(make_state())).state, make_state(20))
  saved.close()


def test_keeps_the_last_and_the_best(tmp_path):
  checkpointer = checkpoints.Checkpointer(
    tmp_path, keep_last=2, keep_best=1, best_metric='loss', best_mode='min'
  )
  for step, loss in {1: 3.0, 2: 1.0, 3: float('nan'), 4: 2.0, 5: None, 6: None}.items():
    checkpointer.save(step, make_state(step))
    if loss is not None:
      checkpointer.add_metrics(step, {'loss': loss})
  assert checkpointer.all_steps() == [2, 5, 6]
  assert checkpointer.latest_step() == 6
  assert checkpointer.restore_partial(abstract(make_state()), 'best').step == 2
  checkpointer.close()
  # A new process knows the metrics from the disk.
  checkpointer = checkpoints.Checkpointer(
    tmp_path, keep_last=2, keep_best=1, best_metric='loss', best_mode='min'
  )
  assert_equal(checkpointer.restore_partial(abstract(make_state()), 'best').state, make_state(2))
  for step, loss in {7: 1.5, 8: 0.5}.items():
    checkpointer.save(step, make_state(step))
    checkpointer.add_metrics(step, {'loss': loss})
    # What is no longer among the last or the best goes at once.
    assert checkpointer.all_steps() == {7: [2, 6, 7], 8: [7, 8]}[step]
  assert checkpointer.best_step() == 8
  checkpointer.save(9, make_state(9))
  checkpointer.save(10, make_state(10))
  assert checkpointer.all_steps() == [8, 9, 10]
  with pytest.raises(ValueError, match="best_metric='loss' is not among the metrics: accuracy"):
    checkpointer.add_metrics(10, {'accuracy': 1.0})
  checkpointer.close()


def test_restores_a_part_without_the_optimizer(saved):
  wanted = make_state(20, devices=1)
  restored = saved.restore_partial(abstract(wanted).replace(opt_state=None, rng=None))
  assert restored.state.opt_state is None
  assert_equal(restored.state.params, wanted.params)
  params = saved.restore_partial({'params': abstract(wanted).params}, 10).state['params']
  assert_equal(params, make_state(10, devices=1).params)
  with pytest.raises(FileNotFoundError, match=r'no checkpoint 11 .*\[10, 20\]'):
    saved.restore_partial({'params': abstract(wanted).params}, 11)
  with pytest.raises(FileNotFoundError, match='metric'):
    saved.restore_partial({'params': abstract(wanted).params}, 'best')


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_byte(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x10
  path.write_bytes(data)


def for_data_files(change):
  # Of all of them: some are left over from merging and no longer read.
  return lambda path: [change(file) for file in (path / 'state').rglob('d/*')]


def delete_chunk(path):
  """Deletes a chunk as if it had never been written: a plain read gives zeros for it."""
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': f'file://{path}/state/'}).result()
  chunks = [key for key in store.list().result() if b'fc1.kernel/' in key and key[-1:].isdigit()]
  store.delete_range(tensorstore.KvStore.KeyRange(chunks[0], chunks[0] + b'\0')).result()


def edit_metadata(path):
  file = path / 'metadata' / 'metadata'
  metadata = json.loads(file.read_text())
  metadata['arrays']['params/fc1/kernel'][1] = [64, 33]
  file.write_text(json.dumps(metadata))


def empty(path):
  shutil.rmtree(path)
  path.mkdir()


DAMAGES = {
  'empty folder': empty,
  'state missing': lambda path: shutil.rmtree(path / 'state'),
  'metadata missing': lambda path: shutil.rmtree(path / 'metadata'),
  'metadata truncated': lambda path: truncate(path / 'metadata' / 'metadata'),
  'metadata edited': edit_metadata,
  'manifest missing': lambda path: (path / 'state' / 'manifest.ocdbt').unlink(),
  'manifest truncated': lambda path: truncate(path / 'state' / 'manifest.ocdbt'),
  'tree truncated': lambda path: truncate(path / 'state' / '_METADATA'),
  'data truncated': for_data_files(truncate),
  'data emptied': for_data_files(lambda file: file.write_bytes(b'')),
  'data deleted': for_data_files(lambda file: file.unlink()),
  'byte flipped': for_data_files(flip_byte),
  'chunk deleted': delete_chunk,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_skipped_by_name_and_its_step_can_be_saved_again(
  saved, damage, caplog
):
  DAMAGES[damage](folder(saved, 20))
  wanted = make_state(10)
  with caplog.at_level(logging.WARNING):
    restored = saved.restore(abstract(wanted), CONFIG)
  assert_equal(restored.state, wanted)
  assert restored.step == 10
  assert f'skipping unreadable checkpoint {folder(saved, 20)}: ' in caplog.text
  assert saved.all_steps() == [10]
  assert (folder(saved, 20).parent / '20.unreadable').exists()
  assert saved.save(20, make_state(20), CONFIG)
  assert saved.restore(abstract(wanted), CONFIG).step == 20
  saved.close()


def test_damaged_weights_that_fingerprints_alone_can_see_are_named(saved, caplog):
  # Another checkpoint's intact arrays: nothing but the fingerprints is wrong.
  shutil.rmtree(folder(saved, 20) / 'state')
  shutil.copytree(folder(saved, 10) / 'state', folder(saved, 20) / 'state')
  with caplog.at_level(logging.WARNING):
    assert saved.restore(abstract(make_state())).step == 10
  assert '3 arrays differ from what was saved, the first is params/fc1/bias' in caplog.text


def test_evaluation_skips_a_damaged_checkpoint_and_changes_nothing(saved):
  for_data_files(truncate)(folder(saved, 20))
  before = sorted(folder(saved, 20).parent.rglob('*'))
  assert saved.restore_partial(abstract(make_state())).step == 10
  assert sorted(folder(saved, 20).parent.rglob('*')) == before
  with pytest.raises(checkpoints.UnreadableCheckpoints, match='20'):
    saved.restore_partial(abstract(make_state()), 20)


def test_if_all_are_damaged_the_run_stops_and_nothing_is_touched(saved):
  for step in (10, 20):
    truncate(folder(saved, step) / 'metadata' / 'metadata')
  before = sorted(folder(saved, 20).parent.rglob('*'))
  with pytest.raises(checkpoints.UnreadableCheckpoints, match=r'(?s)20: .*10: .*move them away'):
    saved.restore(abstract(make_state()))
  assert sorted(folder(saved, 20).parent.rglob('*')) == before


def test_a_half_written_checkpoint_is_skipped_by_name(saved, caplog):
  half = folder(saved, 30).with_name('30.orbax-checkpoint-tmp')
  shutil.copytree(folder(saved, 20) / 'metadata', half / 'metadata')
  with caplog.at_level(logging.WARNING):
    assert saved.restore(abstract(make_state())).step == 20
  assert f'skipping checkpoint {half}: the run ended while it was being written' in caplog.text
  saved.save(30, make_state(30))
  saved.close()
  assert not half.exists()
  assert saved.all_steps() == [10, 20, 30]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda s: s.replace(params={'fc1': {**s.params['fc1'], 'kernel': jnp.zeros((64, 16))}}),
      r'params/fc1/kernel: float32\[64,32\] in the checkpoint, float32\[64,16\] here',
    ),
    (
      lambda s: s.replace(params={'fc1': {**s.params['fc1'], 'bias': jnp.zeros(32)}}),
      r'params/fc1/bias: bfloat16\[32\] in the checkpoint, float32\[32\] here',
    ),
    (
      lambda s: s.replace(params={**s.params, 'fc2': {'kernel': jnp.zeros(3)}}),
      r'params/fc2/kernel: absent in the checkpoint, float32\[3\] here',
    ),
    (
      lambda s: s.replace(opt_state=()),
      r'opt_state/0/kernel: float32\[64,32\] in the checkpoint, absent here',
    ),
    (lambda s: s.replace(rng=jax.random.key(0, impl='rbg')), r'rng: key<fry>\[\] in'),
  ],
  ids=['shape', 'dtype', 'added', 'removed', 'key'],
)
def test_a_checkpoint_of_another_model_is_refused_naming_the_first_difference(
  saved, change, message
):
  with pytest.raises(checkpoints.CheckpointMismatch, match=message):
    saved.restore(abstract(change(make_state())), CONFIG)
  assert saved.all_steps() == [10, 20]


def test_many_differences_are_counted(saved):
  many = {f'layer_{i}': jnp.zeros(1) for i in range(9)}
  with pytest.raises(checkpoints.CheckpointMismatch, match=r'layer_4: .*\n.*and 6 more\n'):
    saved.restore(abstract(make_state().replace(params=many)))


def test_another_model_name_is_refused_and_other_differences_are_listed(saved, caplog):
  config = ml_collections.ConfigDict({'model': {'name': 'base'}, 'lr': 0.1, 'sizes': (1, 2)})
  with pytest.raises(
    checkpoints.CheckpointMismatch, match=r"model\.name: 'tiny' in the checkpoint, 'base' here"
  ):
    saved.restore(abstract(make_state()), config)
  config.model.name = 'tiny'
  config.lr = 0.2
  config.weights = None
  config.key_of_a_later_version = False
  with caplog.at_level(logging.WARNING):
    assert saved.restore(abstract(make_state()), config).step == 20
  assert 'lr: 0.1 in the checkpoint, 0.2 here' in caplog.text
  assert 'sizes' not in caplog.text
  assert 'key_of_a_later_version' not in caplog.text


def test_steps_of_another_batch_size_or_order_are_refused_with_commands_that_go_on(
  tmp_path, monkeypatch
):
  monkeypatch.setattr('sys.orig_argv', ['python', 'main.py', '--config', 'own.py'])
  config = ml_collections.ConfigDict(
    {'batch_size': 8, 'seed': 0, 'dataset': {'name': 'digits', 'train_split': 'train'}}
  )
  checkpointer = checkpoints.Checkpointer(tmp_path / 'checkpoints')
  checkpointer.save(24, make_state(), config)
  changed = config.copy_and_resolve_references()
  changed.batch_size = 16
  changed.seed = 1
  with pytest.raises(checkpoints.CheckpointMismatch) as error:
    checkpointer.restore(abstract(make_state()), changed)
  message = str(error.value)
  assert f'step 24 of {tmp_path} stands for other examples' in message
  assert 'batch_size: 8 in the checkpoint, 16 here' in message
  assert message.count(' --config.batch_size=8 --config.seed=0\n') == 1
  another = f'--workdir=ANOTHER_WORKDIR --config.weights={tmp_path}'
  assert message.endswith(f'python main.py --config own.py {another}')
  monkeypatch.setattr('sys.orig_argv', ['python', 'main.py', f'--workdir={tmp_path}'])
  with pytest.raises(checkpoints.CheckpointMismatch) as error:
    checkpointer.restore(abstract(make_state()), changed)
  # Another workdir has no config yet.
  assert str(error.value).endswith(f' --config={tmp_path}/config.json {another}')
  # To evaluate, they are the same parameters.
  assert checkpointer.restore_partial(abstract(make_state()), config=changed).step == 24
  checkpointer.close()


@pytest.mark.parametrize(
  'keys',
  [{'keep_last': 0}, {'keep_best': -1}, {'keep_best': 1}, {'best_mode': 'maximum'}],
  ids=str,
)
def test_impossible_settings_are_refused(tmp_path, keys):
  with pytest.raises(ValueError, match=next(iter(keys))):
    checkpoints.Checkpointer(tmp_path, **keys)


def run_script(script, *arguments):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  environment['XLA_FLAGS'] = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=2')
  return subprocess.Popen(
    [sys.executable, '-c', script, *map(str, arguments)],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


KILLS = 5
SAVE_AND_KILL = """
import os, random, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
from crossattn_jax.training import checkpoints

directory = sys.argv[1]

def save_forever(first, pipe):
  checkpointer = checkpoints.Checkpointer(directory, keep_last=2)
  for step in range(first, 10**6):
    # Returns once the step before this one is on disk.
    checkpointer.save(step, {'x': jnp.full((512, 1024), step), 'y': jnp.full(9, step / 2)})
    os.write(pipe, b'%d\\n' % (step - 1))

# Forked before jax starts its threads: importing it is what takes the time.
last, moments = 0, random.Random(int(sys.argv[2]))
for kill in range(int(sys.argv[3])):
  reader, writer = os.pipe()
  child = os.fork()
  if child == 0:
    save_forever(last + 1, writer)
  os.close(writer)
  received = b''
  while not received or int(received.split()[-1]) <= last:
    received += os.read(reader, 100)
  time.sleep(moments.uniform(0, 0.25))
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  while chunk := os.read(reader, 10**6):
    received += chunk
  on_disk = int(received.split()[-1])
  verifier = os.fork()
  if verifier == 0:
    x, y = jax.ShapeDtypeStruct((512, 1024), 'int32'), jax.ShapeDtypeStruct((9,), 'float32')
    restored = checkpoints.Checkpointer(directory).restore({'x': x, 'y': y})
    assert restored.step >= on_disk, (restored.step, on_disk)
    np.testing.assert_array_equal(restored.state['x'], np.full((512, 1024), restored.step))
    np.testing.assert_array_equal(restored.state['y'], np.full(9, restored.step / 2, np.float32))
    os._exit(0)
  assert os.waitpid(verifier, 0)[1] == 0
  last = on_disk
print('survived')
"""


@pytest.mark.extended
def test_kill_9_while_saving_leaves_the_checkpoint_before_it(tmp_path):
  process = run_script(SAVE_AND_KILL, tmp_path / 'checkpoints', 0, KILLS)
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  assert 'survived' in output


TWO_PROCESSES = """
import pathlib, shutil, sys
import jax
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
directory, port, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f'localhost:{port}', 2, index)
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
from crossattn_jax.training import checkpoints

mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (['data'], []))
wanted = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)

def make(step):
  x = jax.make_array_from_callback(wanted.shape, split, lambda index: step * wanted[index])
  key = jax.jit(lambda: jax.random.key(step), out_shardings=whole)()
  return {'x': x, 'rng': key}

checkpointer = checkpoints.Checkpointer(directory)
for step in (10, 20):
  checkpointer.save(step, make(step))
  checkpointer.add_metrics(step, {'loss': 1 / step})
abstract = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0)
)
for step in (20, 10):
  restored = checkpointer.restore(abstract)
  assert restored.step == step, restored.step
  for shard in restored.state['x'].addressable_shards:
    np.testing.assert_array_equal(shard.data, step * wanted[shard.index])
  if index == 0 and step == 20:
    for file in (directory / '20' / 'state' / 'ocdbt.process_1' / 'd').iterdir():
      file.unlink()
  multihost_utils.sync_global_devices('damaged')
checkpointer.close()
print('done')
"""


@pytest.mark.extended
def test_two_processes_save_restore_and_agree_on_damage_that_one_of_them_sees(tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  processes = [run_script(TWO_PROCESSES, tmp_path / 'checkpoints', port, i) for i in range(2)]
  outputs = [process.communicate(timeout=240)[0] for process in processes]
  assert all('done' in output for output in outputs), '\n'.join(outputs)
  # One process with eight devices reads what two processes wrote.
  wanted = 10 * np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
  sharding = make_state().params['fc1']['kernel'].sharding
  struct = jax.ShapeDtypeStruct(wanted.shape, wanted.dtype, sharding=sharding)
  restored = checkpoints.Checkpointer(tmp_path / 'checkpoints').restore_partial({'x': struct})
  np.testing.assert_array_equal(restored.state['x'], wanted)
  assert checkpoints.Checkpointer(tmp_path / 'checkpoints').metrics(10) == {'loss': 0.1}
