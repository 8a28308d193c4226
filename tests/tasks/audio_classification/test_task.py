"""Audio: the task counts every clip once, and what it writes can be looked at and run elsewhere."""

import json
import pathlib
import runpy

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from scipy.io import wavfile

from configs import mmvit_audioset, mmvit_tones
from crossattn_jax import tasks
from crossattn_jax.data.audio import batches as data
from crossattn_jax.data.scenes import tones
from crossattn_jax.tasks import loading, losses


@pytest.fixture
def config():
  """The synthesised sounds, with a model of one small stage."""
  config = mmvit_tones.get_config()
  config.model.embed_dim = 8
  config.model.depths = (1,)
  config.model.cross_stages = (0,)
  config.model.image_size = (16, 32)
  config.dataset.num_mel_bins = 16
  config.dataset.num_frames = 32
  return config


def test_clips_that_do_not_count_change_neither_loss_nor_precision(config):
  task = tasks.create_task(config)
  logits = np.array([[2.0, -1.0], [0.5, 1.0], [-3.0, 0.0], [9.0, 9.0]], np.float32)
  labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)
  task.model = type('', (), {'apply': lambda self, variables, image: (image, {})})()
  batch = {'image': logits, 'label': labels, 'mask': np.array([True, True, True, False])}
  batch['index'] = np.arange(4)
  contribution = task.evaluate({}, batch)
  assert contribution.sums['count'] == 3
  expected = np.sum(losses.multi_label_cross_entropy(jnp.asarray(logits[:3]), labels[:3]))
  np.testing.assert_allclose(contribution.sums['loss'], expected, rtol=1e-6)
  examples = jax.tree.map(lambda x: np.asarray(x)[:3], contribution.examples)
  metrics = task.metrics(tasks.Evaluation(contribution.sums, examples))
  # The first class ranks 1, 0, 1; the second 1, 1, 0.
  assert metrics['mean_average_precision'] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
  assert metrics['examples'] == 3
  assert {*metrics} == {*task.metric_modes, 'examples'}
  assert all(map(task.explain, metrics))


def test_another_number_of_classes_than_the_data_set_s_is_refused(config):
  config.model.num_classes = 9
  with pytest.raises(ValueError, match=r"num_classes is 9, but dataset 'tones' has 8 classes"):
    tasks.create_task(config).train_data(8, 0, 1)


def test_a_sound_gets_a_picture_with_classes_and_attention(config, tmp_path):
  task = tasks.create_task(config)
  maps = {'attention_maps/stage 1, fine': np.ones((1, 2, 4))}
  predictor = task.Predictor(task, {})
  predictor.predict = lambda variables, batch: {'scores': jnp.arange(8.0)[None] / 8, **maps}
  (tmp_path / 'clip.wav').write_bytes(tones.encode(tones.clip('test', 0)[0]))
  output = epath.Path(tmp_path)
  records = predictor.write_predictions(output / 'clip.wav', output)
  assert records[0]['classes'][0] == {'index': 7, 'name': 'harmonics', 'score': 0.875}
  assert json.loads((tmp_path / 'predictions.json').read_text()) == records
  with Image.open(records[0]['picture']) as picture:
    assert min(picture.size) > 100


@pytest.mark.extended
def test_samples_are_drawn(config, tmp_path):
  task = tasks.create_task(config)
  variables = jax.jit(task.init)(jax.random.key(0))
  task.Predictor(task, variables).write_samples(epath.Path(tmp_path) / 'samples.png')
  with Image.open(tmp_path / 'samples.png') as picture:
    assert min(picture.size) > 100


@pytest.mark.parametrize('rate', [16_000, 44_100])
def test_the_exported_script_hears_what_the_pipeline_hears(config, tmp_path, monkeypatch, rate):
  path = tmp_path / 'clip.wav'
  samples = np.random.RandomState(0).randint(-9000, 9000, (rate // 4, 2)).astype(np.int16)
  wavfile.write(path, rate, samples)
  task = tasks.create_task(config)
  serving = task.Serving(task)
  assert serving.inputs['image'].shape == (16, 32, 1)
  monkeypatch.syspath_prepend(pathlib.Path(loading.__file__).parent)
  script = runpy.run_path(str(serving.script))
  heard = script['preprocess'](path, json.loads(json.dumps(serving.description['preprocessing'])))
  np.testing.assert_allclose(heard, data.read_audio(path, config.dataset), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('clips', ['full', '20k'])
def test_the_audioset_experiment_fits_its_model(clips):
  config = mmvit_audioset.get_config(clips)
  task = tasks.create_task(config)
  spec = task.batch_spec(2)
  assert spec['image'].shape[1:3] == task.model.image_size
  assert spec['label'].shape == (2, 527)
  with pytest.raises(ValueError, match="unknown set of clips 'half'; there are full, 20k"):
    mmvit_audioset.get_config('half')
