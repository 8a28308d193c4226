"""Curves are what the metrics file says, also of a run that was resumed."""

from etils import epath
import numpy as np
from PIL import Image

from crossattn_jax.training import curves, metric_writers


class Task:
  main_metrics = ('loss', 'accuracy', 'never_evaluated')
  metric_modes = {'loss': 'min', 'accuracy': 'max'}

  def explain(self, name):
    return f'what {name} is'


def test_curves_of_a_resumed_run_are_one_history(tmp_path):
  folder = epath.Path(tmp_path)
  for start, stop in ((1, 150), (121, 301)):
    writer = metric_writers.MetricWriter(folder)
    writer.truncate(start - 1)
    for step in range(start, stop):
      metrics = {'train/loss': start / step, 'train/learning_rate': 0.1}
      writer.write(step, metrics | ({'eval/accuracy': step / 400} if step % 100 == 0 else {}))
    writer.close()
  writer = metric_writers.MetricWriter(folder)
  writer.write(301, {'train/loss': np.nan})
  writer.close()
  points = curves.read(folder)
  np.testing.assert_array_equal(points['train/loss'][0], np.arange(1, 301))
  np.testing.assert_array_equal(
    points['train/loss'][1], [(1 if step < 121 else 121) / step for step in range(1, 301)]
  )
  assert [x.tolist() for x in points['eval/accuracy']] == [[100, 200, 300], [0.25, 0.5, 0.75]]
  curves.draw(folder / 'curves.png', folder, Task(), 50)
  with Image.open(folder / 'curves.png') as picture:
    assert np.asarray(picture).std() > 10


def test_a_run_without_metrics_has_no_curves(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('')
  curves.draw(epath.Path(tmp_path / 'curves.png'), epath.Path(tmp_path), Task(), 50)
  assert not (tmp_path / 'curves.png').exists()
