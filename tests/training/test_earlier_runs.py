"""A run of version 0.1.0, as it was before the package's rooms were sorted, is still read."""

import json
import pathlib
import shutil

from etils import epath
import pytest

from crossattn_jax.training import config as config_lib
from crossattn_jax.training import loop, metric_writers

RUN = pathlib.Path(__file__).with_name('earlier_runs') / 'crossvit_digits'


def test_an_earlier_run_evaluates_as_it_did_and_continues(tmp_path, datasets_dir):
  workdir = epath.Path(tmp_path / 'run')
  shutil.copytree(RUN, workdir)
  config = config_lib.load(workdir / 'config.json')
  config.dataset.data_dir = datasets_dir
  *_, recorded = map(json.loads, (RUN / 'metrics.jsonl').read_text().splitlines())
  for name, value in loop.evaluate(config, workdir).items():
    assert value == pytest.approx(recorded[f'eval/{name}'], rel=1e-5), name
  # The optimizer's state and the place in the data are read too.
  config.num_steps = 4
  loop.train(config, workdir)
  steps = [line['step'] for line in metric_writers.read_metrics(workdir) if 'train/loss' in line]
  assert steps == [1, 2, 3, 4]
