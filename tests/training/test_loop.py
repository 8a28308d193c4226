"""The loop writes what it promises, resumes bit for bit, and stops in good order."""

import itertools
import json
import pathlib
import resource
import shutil

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from crossattn_jax import parallel, tasks
from crossattn_jax.data import samples
from crossattn_jax.models import variables_io
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import errors, loop, metric_writers
from crossattn_jax.training import workdir as workdir_lib


def _history(workdir):
  """Every line of the metrics without the clock, ready to compare bit for bit."""
  lines = metric_writers.read_metrics(workdir)
  return [{name: value for name, value in line.items() if name != 'time'} for line in lines]


@pytest.fixture
def workdir(tmp_path):
  return epath.Path(tmp_path / 'run')


def test_a_run_leaves_metrics_events_config_checkpoints_and_pictures(tiny_config, workdir):
  tiny_config.evaluation.every_steps = 6
  metrics = loop.train(tiny_config, workdir)
  history = _history(workdir)
  assert [line['step'] for line in history if 'train/loss' in line] == list(range(1, 13))
  assert [line['step'] for line in history if 'eval/accuracy' in line] == [6, 12]
  assert history[-1] == {'step': 12} | {f'eval/{name}': metrics[name] for name in metrics}
  assert metrics['examples'] == 355
  assert list(workdir.glob('events.out.tfevents.*'))
  assert config_lib.load(workdir / 'config.json').to_dict() == tiny_config.to_dict()
  assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {'6', '12'}
  for name in ('predictions', 'confusion', 'worst', 'curves'):
    with Image.open(workdir / f'{name}.png') as picture:
      assert np.asarray(picture).std() > 10
  rows = [line.split(',')[1:] for line in (workdir / 'confusion.csv').read_text().splitlines()]
  counts = np.array(rows[1:], int)
  assert (counts.sum(), np.trace(counts) / 355) == (355, metrics['accuracy'])


@pytest.mark.extended
def test_evaluation_reproduces_the_metrics_of_the_run(tiny_config, workdir):
  metrics = loop.train(tiny_config, workdir)
  saved = config_lib.load(workdir / 'config.json')
  assert loop.evaluate(saved, workdir) == metrics
  # Another batch size pads differently and counts the same.
  saved.evaluation.batch_size = 64
  again = loop.evaluate(saved, workdir)
  assert again['accuracy'] == metrics['accuracy']
  assert again['examples'] == 355


@pytest.mark.extended
def test_an_interrupted_run_continues_bit_for_bit(tiny_config, workdir, tmp_path):
  # Updates take three steps: the run is interrupted between two of them.
  tiny_config.optimizer.nominal_batch_size = 3 * tiny_config.batch_size
  tiny_config.ema.decay = 0.9
  loop.train(tiny_config, workdir)
  other = epath.Path(tmp_path / 'other')
  tiny_config.checkpoint.every_steps = 5
  tiny_config.checkpoint.keep_last = 3
  loop.train(tiny_config, other)
  # As if the run had been killed after step 5.
  for step in ('10', '12'):
    shutil.rmtree(other / 'checkpoints' / step)
  loop.train(tiny_config, other)
  assert _history(other) == _history(workdir)


@pytest.mark.extended
def test_another_number_of_workers_continues_at_the_same_example(tiny_config, workdir):
  tiny_config.checkpoint.every_steps = 5
  loop.train(tiny_config, workdir)
  expected = _history(workdir)
  shutil.rmtree(workdir / 'checkpoints' / '12')
  tiny_config.dataset.num_workers = 2
  loop.train(tiny_config, workdir)
  assert _history(workdir) == expected


@pytest.mark.extended
def test_another_batch_size_is_refused_and_changes_nothing(tiny_config, workdir):
  tiny_config.num_steps = 4
  loop.train(tiny_config, workdir)
  history, saved = _history(workdir), (workdir / 'config.json').read_text()
  for batch_size in (16, 128):
    tiny_config.batch_size = batch_size
    with pytest.raises(ValueError, match=rf'batch_size: 64 in the checkpoint, {batch_size} here'):
      loop.train(tiny_config, workdir)
  assert _history(workdir) == history
  assert (workdir / 'config.json').read_text() == saved


@pytest.mark.extended
def test_an_evaluation_that_fails_loses_no_training(tiny_config, workdir, tmp_path):
  data = tmp_path / 'images'
  rng = np.random.default_rng(0)
  for split, name, index in itertools.product(('train', 'val'), 'ab', range(4)):
    file = data / split / name / f'{index}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(file)
  corrupt = data / 'val' / 'a' / '1.png'
  good = corrupt.read_bytes()
  corrupt.write_bytes(good[: len(good) // 2])
  tiny_config.dataset.update(
    name='image_folder', data_dir=str(data), train_split='train', eval_split='val'
  )
  tiny_config.model.num_classes = 2
  tiny_config.batch_size = 8
  tiny_config.num_steps = 3
  with pytest.raises(ValueError, match=r'1\.png') as error:
    loop.train(tiny_config, workdir)
  message = errors.message(error.value)
  assert 'The training is not lost: the checkpoint of step 3 is saved' in message
  assert f'python main.py --mode=eval --workdir={workdir}' in message
  assert 'Grain' not in message
  assert [line['step'] for line in _history(workdir)] == [1, 2, 3]
  corrupt.write_bytes(good)
  metrics = loop.train(tiny_config, workdir)
  assert metrics['examples'] == 8
  assert _history(workdir)[3] == {'step': 3} | {f'eval/{name}': metrics[name] for name in metrics}
  # It is known from now on, and the best.
  assert loop.train(tiny_config, workdir) == metrics
  tiny_config.checkpoint.use = 'best'
  assert loop.evaluate(tiny_config, workdir) == metrics


@pytest.mark.extended
def test_a_picture_that_fails_is_said_and_loses_nothing(tiny_config, workdir, monkeypatch, caplog):
  def fail(*_):
    raise RuntimeError('no font')

  monkeypatch.setattr(tasks.create_task(tiny_config).Predictor, 'write_samples', fail)
  tiny_config.num_steps = 3
  assert loop.train(tiny_config, workdir)['examples'] == 355
  assert 'no predictions.png: no font' in caplog.text


@pytest.mark.extended
def test_patience_ends_a_run_that_no_longer_improves_also_after_a_restart(
  tiny_config, workdir, capsys
):
  tiny_config.evaluation.every_steps = 2
  tiny_config.checkpoint.patience = 2
  tiny_config.schedule.learning_rate = 1e-9
  tiny_config.num_steps = 4
  loop.train(tiny_config, workdir)
  tiny_config.num_steps = 12
  metrics = loop.train(tiny_config, workdir)

  def evaluated():
    return [line['step'] for line in _history(workdir) if 'eval/accuracy' in line]

  assert evaluated() == [2, 4, 6]
  output = capsys.readouterr().err
  assert 'ending early: accuracy has not improved for 2 evaluations' in output
  assert (workdir / 'predictions.png').exists()
  assert 'finished 6 steps, the last 2 in ' in output
  assert loop.train(tiny_config, workdir) == metrics
  assert 'nothing left to train after step 6: accuracy' in capsys.readouterr().err
  assert evaluated() == [2, 4, 6]


@pytest.mark.extended
def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_intact(tiny_config, workdir):
  tiny_config.checkpoint.every_steps = 3
  tiny_config.num_steps = 3
  loop.train(tiny_config, workdir)
  tiny_config.num_steps = 9
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # Of a file: less than a checkpoint's arrays take, more than all else.
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, limits[1]))
  try:
    with pytest.raises(workdir_lib.StorageError, match='File too large; ') as error:
      loop.train(tiny_config, workdir)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert 'The checkpoint of step 3 is intact' in str(error.value)
  loop.train(tiny_config, workdir)
  steps = [line['step'] for line in _history(workdir) if 'train/loss' in line]
  assert steps == list(range(1, 10))


def test_a_workdir_in_use_is_refused(tiny_config, workdir):
  workdir.mkdir()
  holder = workdir_lib.lock(workdir)
  with holder, pytest.raises(workdir_lib.WorkdirInUse, match='in use by process'):
    loop.train(tiny_config, workdir)
  assert not (workdir / 'config.json').exists()


@pytest.mark.extended
def test_a_truncated_checkpoint_is_skipped_for_the_one_before(tiny_config, workdir, caplog):
  tiny_config.checkpoint.every_steps = 4
  loop.train(tiny_config, workdir)
  expected = _history(workdir)
  for file in pathlib.Path(workdir / 'checkpoints' / '12').rglob('*'):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  loop.train(tiny_config, workdir)
  assert 'skipping unreadable checkpoint' in caplog.text
  assert _history(workdir) == expected


@pytest.mark.extended
def test_a_checkpoint_of_another_model_is_refused_by_name(tiny_config, workdir):
  loop.train(tiny_config, workdir)
  tiny_config.model.widths = (32, 32)
  with pytest.raises(ValueError, match=r'params/.*\(?.*16.*32'):
    loop.train(tiny_config, workdir)


@pytest.mark.parametrize(
  ('first', 'second'),
  [
    pytest.param((2, 2, 2), None, marks=pytest.mark.slow, id='8 to 1'),
    pytest.param(None, (1, 8, 1), marks=pytest.mark.slow, id='1 to 8'),
  ],
)
def test_a_checkpoint_moves_between_meshes(tiny_config, workdir, first, second):
  def mesh(sizes):
    if sizes is None:
      return parallel.create_mesh(devices=jax.devices()[:1])
    return parallel.create_mesh(*sizes)

  tiny_config.sharding.fsdp_min_size = 64
  tiny_config.schedule.name = 'constant'
  tiny_config.num_steps = 4
  loop.train(tiny_config, workdir, mesh(first))
  tiny_config.num_steps = 8
  metrics = loop.train(tiny_config, workdir, mesh(second))
  moved = [line['train/loss'] for line in _history(workdir) if 'train/loss' in line]
  straight = workdir.parent / 'straight'
  expected_metrics = loop.train(tiny_config, straight, mesh(first))
  expected = [line['train/loss'] for line in _history(straight) if 'train/loss' in line]
  assert moved[:4] == expected[:4]
  np.testing.assert_allclose(moved, expected, rtol=1e-4)
  assert metrics['examples'] == expected_metrics['examples']


@pytest.mark.extended
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(
  tiny_config, workdir
):
  tiny_config.optimizer.name = 'sgd'
  tiny_config.schedule.name = 'constant'
  tiny_config.schedule.warmup_steps = 0
  # The second step overflows.
  tiny_config.schedule.learning_rate = 1e30
  tiny_config.checkpoint.every_steps = 1
  tiny_config.max_bad_steps = 3
  with pytest.raises(errors.NonFiniteError, match=r'at step 4: 3 bad steps in a row, since step 2'):
    loop.train(tiny_config, workdir)
  history = _history(workdir)
  assert [bool(np.isfinite(line['train/gradient_norm'])) for line in history[:2]] == [True, False]
  # The run can be looked into: the last checkpoint holds the parameters of step 1.
  latest = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
  assert latest < 4


@pytest.mark.extended
def test_predictions_name_classes_and_draw_attention(tiny_config, workdir, tmp_path):
  loop.train(tiny_config, workdir)
  images = tmp_path / 'images'
  images.mkdir()
  rng = np.random.default_rng(0)
  for name in ('a.png', 'b.png'):
    Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(images / name)
  output = epath.Path(tmp_path / 'output')
  records = loop.predict(tiny_config, workdir, epath.Path(images), output)
  assert json.loads((output / 'predictions.json').read_text()) == records
  assert [epath.Path(record['input']).name for record in records] == ['a.png', 'b.png']
  for record in records:
    assert sum(entry['probability'] for entry in record['classes']) <= 1 + 1e-6
    assert {entry['name'] for entry in record['classes']} <= set('0123456789')
    with Image.open(record['picture']) as picture:
      # The image, one attention map per direction, and the bar chart.
      assert picture.width > 3 * picture.height


@pytest.mark.extended
def test_a_best_metric_that_does_not_exist_is_refused_with_those_that_do(tiny_config, workdir):
  tiny_config.num_steps = 3
  tiny_config.checkpoint.best_metric = 'acuracy'
  with pytest.raises(ValueError, match=r"best_metric='acuracy' is not among .*accuracy"):
    loop.train(tiny_config, workdir)


@pytest.mark.extended
def test_weights_predict_without_a_run_and_imagenet_s_classes_have_names(tiny_config, tmp_path):
  tiny_config.dataset.name = 'imagenet2012'
  tiny_config.model.num_classes = 1000
  variables = jax.jit(tasks.create_task(tiny_config).init)(jax.random.key(0))
  head = variables['params']['head_0']
  # The network says a class, whatever it sees.
  head['bias'] = head['bias'].at[388].set(100.0)
  file = epath.Path(tmp_path / 'weights.safetensors')
  overrides = {name: x for name, x in tiny_config.model.items() if x is not None and name != 'name'}
  variables_io.save_variables(file, variables, tiny_config.model.name, overrides)
  tiny_config.weights = str(file)
  tiny_config.mesh.fsdp = 16  # Of the machine that it was trained on.
  (record,) = loop.predict(
    tiny_config, None, epath.Path(samples.FOLDER / 'digits' / '3.png'), epath.Path(tmp_path / 'out')
  )
  assert record['classes'][0]['name'] == 'giant panda'
  assert record['classes'][0]['index'] == 388


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    (
      'mean',
      (0.5, 0.5, 0.5),
      r'dataset\.mean has 3 values.* images of 1: set config\.model\.num_ch',
    ),
    ('std', (0.5, 0.5, 0.5), r'dataset\.std must be 1 positive values, as dataset\.mean'),
    ('crop_fraction', 2.0, r'dataset\.crop_fraction must be in \(0, 1\]'),
  ],
)
def test_preprocessing_that_cannot_be_is_refused_by_key(tiny_config, workdir, key, value, message):
  tiny_config.dataset[key] = value
  with pytest.raises(ValueError, match=message):
    loop.predict(tiny_config, workdir, epath.Path(samples.FOLDER / 'digits'), workdir / 'out')


def test_a_missing_input_is_named(tiny_config, workdir, tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere'):
    loop.predict(tiny_config, workdir, epath.Path(tmp_path / 'nowhere'), epath.Path(tmp_path))


def test_evaluation_without_a_checkpoint_says_where_it_looked(tiny_config, workdir):
  with pytest.raises(FileNotFoundError, match=r'no checkpoint in .*run/checkpoints'):
    loop.evaluate(tiny_config, workdir)
