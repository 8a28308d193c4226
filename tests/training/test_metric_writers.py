"""Metrics survive the file bit for bit; the progress line says where the run is."""

import io
import json
import math
import struct

from IPython.core import display_functions
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from tensorboardX.proto import event_pb2

from crossattn_jax.training import metric_writers


def read_events(workdir):
  """Returns the (step, tag) pairs of the TensorBoard event files."""
  found = []
  for path in sorted(workdir.glob('events.out.tfevents.*')):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      found += [(event.step, value.tag) for value in event.summary.value]
      data = data[16 + length :]
  return found


def test_floats_are_read_back_bit_for_bit(tmp_path):
  writer = metric_writers.MetricWriter(tmp_path)
  values = np.random.default_rng(0).standard_normal(100).astype(np.float32)
  for step, value in enumerate(values):
    writer.write(step, {'loss': jnp.asarray(value), 'tiny': float(value) * 1e-300, 'count': step})
    # Before close: a killed run loses no line.
    assert len(metric_writers.read_metrics(tmp_path)) == step + 1
  writer.close()
  lines = metric_writers.read_metrics(tmp_path)
  assert [np.float32(line['loss']) for line in lines] == list(values)
  assert [line['tiny'] for line in lines] == [float(value) * 1e-300 for value in values]
  assert [(line['step'], line['count']) for line in lines] == [(i, i) for i in range(100)]


def test_non_finite_values_are_strict_json_and_read_back(tmp_path):
  writer = metric_writers.MetricWriter(tmp_path)
  writer.write(1, {'a': math.nan, 'b': jnp.inf, 'c': np.float32(-np.inf)})
  writer.close()

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  line = json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=refuse)
  assert (line['a'], line['b'], line['c']) == ('nan', 'inf', '-inf')
  (line,) = metric_writers.read_metrics(tmp_path)
  assert math.isnan(line['a'])
  assert (line['b'], line['c']) == (math.inf, -math.inf)


def test_resuming_drops_later_and_cut_lines_and_appends(tmp_path):
  writer = metric_writers.MetricWriter(tmp_path)
  for step in (10, 20, 30):
    writer.write(step, {'loss': 1 / step})
  writer.close()
  path = tmp_path / 'metrics.jsonl'
  before = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(before) + '{"step": 40, "lo')
  writer = metric_writers.MetricWriter(tmp_path)
  writer.truncate(20)
  assert path.read_text() == ''.join(before[:2])
  writer.write(30, {'loss': 2.0})
  writer.close()
  lines = metric_writers.read_metrics(tmp_path)
  assert [(line['step'], line['loss']) for line in lines] == [(10, 1 / 10), (20, 1 / 20), (30, 2.0)]
  assert {p.name for p in tmp_path.iterdir() if 'tfevents' not in p.name} == {'metrics.jsonl'}


def test_tensorboard_gets_scalars(tmp_path):
  writer = metric_writers.MetricWriter(tmp_path)
  writer.write(5, {'train/loss': 0.5})
  writer.close()
  assert read_events(tmp_path) == [(5, 'train/loss')]


def test_the_fields_of_every_line_are_not_metric_names(tmp_path):
  writer = metric_writers.MetricWriter(tmp_path)
  with pytest.raises(ValueError, match="may not be called 'step'"):
    writer.write(1, {'step': 2.0})
  writer.close()


class FakeClock:
  def __init__(self, monkeypatch):
    self.now = 0.0
    monkeypatch.setattr(metric_writers.time, 'monotonic', lambda: self.now)


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_in_a_log_is_a_line_every_ten_seconds(monkeypatch):
  clock, stream = FakeClock(monkeypatch), io.StringIO()
  with metric_writers.ProgressLine(100, batch_size=32, unit='images', stream=stream) as progress:
    for step in range(1, 101):
      clock.now += 0.5
      progress.update(step, {'loss': 2.0, 'accuracy': jnp.float32(0.25)} if step == 1 else None)
  lines = stream.getvalue().splitlines()
  assert len(lines) == 6
  assert lines[1] == 'step 21/100  loss 2  accuracy 0.25  64 images/s  0:40 left'
  assert lines[-1] == 'step 100/100  loss 2  accuracy 0.25  64 images/s  0:00 left'


def test_progress_says_how_long_the_devices_wait_for_data(monkeypatch):
  clock, stream = FakeClock(monkeypatch), io.StringIO()
  with metric_writers.ProgressLine(40, batch_size=3, unit='pairs', stream=stream) as progress:
    for step in range(1, 41):
      with progress.waiting():
        clock.now += 0.25 if step > 20 else 0.05
      clock.now += 0.75
      progress.update(step)
  first, early, late = stream.getvalue().splitlines()[:3]
  assert first == 'step 1/40'
  assert early == 'step 14/40  3.75 pairs/s  0:21 left'
  # 19 steps of 0.8 s that wait 0.05 s, 6 of 1 s that wait 0.25 s.
  assert late == 'step 26/40  3.538 pairs/s  12% waiting for data  0:12 left'


def test_progress_on_a_terminal_is_refreshed_in_place(monkeypatch):
  clock, stream = FakeClock(monkeypatch), Terminal()
  with metric_writers.ProgressLine(7203, batch_size=1, start_step=2, stream=stream) as progress:
    for step in (2, 3):
      clock.now += 1.0
      progress.update(step, {'loss': 1.5})
  text = stream.getvalue()
  assert 'step 3/7203  loss 1.5  1 examples/s  2:00:00 left' in text
  assert text.count('\n') == 1


def test_progress_in_a_notebook_is_one_line_that_changes(monkeypatch):
  clock, shown = FakeClock(monkeypatch), []
  monkeypatch.setattr(rich.console, '_is_jupyter', lambda: True)
  monkeypatch.setattr(display_functions, 'display', lambda *args, **kw: shown.append((args, kw)))
  with metric_writers.ProgressLine(60, batch_size=1, unit='images') as progress:
    for step in range(1, 61):
      clock.now += 0.5
      progress.update(step, {'loss': 1.5})
  assert len(shown) == 31
  assert shown[-1][0] == ({'text/plain': 'step 60/60  loss 1.5  2 images/s  0:00 left'},)
  assert len({options['display_id'] for _, options in shown}) == 1
  assert [bool(options.get('update')) for _, options in shown] == [False] + 30 * [True]


def test_the_summary_shows_every_metric():
  stream = io.StringIO()
  words = {'accuracy': 'share that is right', 'iou/[wall]': 'of walls'}
  metrics = {'accuracy': np.float32(0.97), 'iou/[wall]': 1, 'count': 10_000}
  table = metric_writers.summary_table(metrics, lambda name: words.get(name, ''))
  rich.console.Console(file=stream, width=60).print(table)
  for text in ('accuracy', '0.97', 'share that is right', 'iou/[wall]', 'count', '10000'):
    assert text in stream.getvalue()
