"""The task counts every pixel once, weighs its losses, and draws what it predicts."""

import json
import runpy
import sys

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from crossattn_jax import models, tasks
from crossattn_jax.data.scenes import dataset, shapes
from crossattn_jax.data.segmentation import batches as data
from crossattn_jax.data.segmentation import taxonomies
from crossattn_jax.layers import resize
from crossattn_jax.tasks.segmentation import losses
from crossattn_jax.training import config as config_lib


@pytest.fixture(scope='module')
def scenes_dir(tmp_path_factory) -> str:
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  dataset.prepare('shape_scenes/tiny', data_dir)
  return data_dir


def small_config(name='shape_scenes/tiny', num_classes=7, data_dir=None):
  """A CCNet that compiles in seconds."""
  config = config_lib.default_config('segmentation')
  config.dataset.name, config.dataset.data_dir = name, data_dir
  config.dataset.image_size = (33, 33)
  with config.unlocked():
    config.model = models.model_config(
      'ccnet_resnet50',
      num_classes=num_classes,
      depths=(1, 1, 1, 1),
      widths=(4, 4, 8, 8),
      stem_widths=(4, 4, 8),
      head_channels=8,
      context_channels=8,
    )
  return config


@pytest.fixture
def config(scenes_dir):
  return small_config(data_dir=scenes_dir)


def variables_of(task):
  """Random ones, with attention that counts; nothing is compiled."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    spread = 0.1 if len(leaf.shape) < 2 else 1.5 / np.sqrt(np.prod(leaf.shape[:-1]))
    values = spread * rng.standard_normal(leaf.shape)
    values += 'scale' in str(path[-1])
    return (np.abs(values) + 0.5 if 'var' in str(path[-1]) else values).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(task.init, jax.random.key(0)))


def total(task, variables, batch_size):
  evaluate = jax.jit(task.evaluate)
  result = None
  for batch in task.eval_data(batch_size, 0, 1):
    sums = evaluate(variables, batch).sums
    result = sums if result is None else jax.tree.map(np.add, result, sums)
  return result


@pytest.fixture(scope='module')
def whole_split(scenes_dir):
  """Counts of the evaluation split in one batch."""
  task = tasks.create_task(small_config(data_dir=scenes_dir))
  return total(task, variables_of(task), 10)


def test_every_pixel_counts_once_whatever_the_batch_size(config, whole_split):
  task = tasks.create_task(config)
  four = total(task, variables_of(task), 4)
  assert four['count'] == 10
  assert four['confusion'].sum() == 10 * 64 * 64
  np.testing.assert_array_equal(four['confusion'].sum(1), whole_split['confusion'].sum(1))
  # Ties may round apart in another program.
  assert np.abs(four['confusion'] - whole_split['confusion']).sum() <= 20


def test_metrics_are_those_of_the_counts(config, whole_split):
  task = tasks.create_task(config)
  results = task.metrics(tasks.Evaluation(whole_split))
  confusion = np.asarray(whole_split['confusion'])
  iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
  assert results['mean_iou'] == pytest.approx(np.nanmean(iou))
  assert results['pixel_accuracy'] == pytest.approx(np.trace(confusion) / confusion.sum())
  assert results['iou/star'] == pytest.approx(iou[4])
  assert {*results} == {*task.metric_modes, 'examples'}
  assert all(map(task.explain, results))
  assert results['examples'] == 10


def test_means_over_nothing_and_of_scores_that_are_not_finite_are_refused(config):
  task = tasks.create_task(config)
  nothing = {'count': 10, 'not_finite': 0, 'confusion': np.zeros((7, 7), int)}
  with pytest.raises(ValueError, match=r"shape_scenes/tiny', split 'validation', has a class"):
    task.metrics(tasks.Evaluation(nothing))
  with pytest.raises(ValueError, match='not finite for 3 of 10 images'):
    task.metrics(tasks.Evaluation(nothing | {'not_finite': 3, 'confusion': np.eye(7, dtype=int)}))


@pytest.mark.extended
def test_images_whose_scores_are_not_finite_are_counted(config):
  task = tasks.create_task(config)
  variables = jax.tree.map(lambda x: np.full_like(x, np.nan), variables_of(task))
  assert total(task, variables, 4)['not_finite'] == 10


def test_the_loss_is_the_weighted_sum_of_its_parts(config):
  config.task.auxiliary_weight = 0.3
  config.task.consistency_weight = 0.7
  config.task.loss = 'lovasz'
  config.model.embedding = 4
  task = tasks.create_task(config)
  variables = variables_of(task)
  batch = next(iter(task.train_data(2, 0, 1)))
  loss, (reported, _) = jax.jit(task.loss, static_argnums=3)(
    variables, batch, jax.random.key(1), False
  )

  @jax.jit
  def sum_of_parts(variables, batch):
    logits, features = task.model.apply(variables, batch['image'])
    sized, auxiliary = (
      resize.resize(x, (33, 33), 'bilinear', align_corners=True)
      for x in (logits, features['auxiliary_logits'])
    )
    consistency = losses.category_consistency(features['embedding'], batch['label'], 7).total()
    result = losses.cross_entropy(sized, batch['label'])
    result += losses.lovasz_softmax(sized, batch['label'])
    return result + 0.3 * losses.cross_entropy(auxiliary, batch['label']) + 0.7 * consistency

  expected = sum_of_parts(variables, batch)
  assert float(loss) == pytest.approx(float(expected), rel=1e-4)
  assert set(reported) == {'accuracy', 'lovasz_loss', 'auxiliary_loss', 'consistency_loss'}


@pytest.mark.extended
def test_padding_to_a_bucket_changes_nothing_for_a_sliding_window(config):
  config.task.evaluation.mode = 'sliding'
  task = tasks.create_task(config)
  variables = variables_of(task)
  config.dataset.evaluation.bucket_step = 100
  padded = tasks.create_task(config)
  alone, in_bucket = (total(each, variables, 10)['confusion'] for each in (task, padded))
  assert np.abs(alone - in_bucket).sum() <= 20


@pytest.mark.extended
def test_images_of_other_sizes_than_their_labels_are_scored_at_the_labels_size(config):
  config.dataset.evaluation.resize = 'fit'
  config.dataset.evaluation.base_size = (48, 48)
  config.dataset.evaluation.stretch_to = 16
  config.dataset.evaluation.label_step = 80
  task = tasks.create_task(config)
  variables = variables_of(task)
  (batch,) = list(task.eval_data(10, 0, 1))
  assert batch['image'].shape[1:3] == (48, 48)
  assert batch['label'].shape[1:] == (80, 80)
  confusion = jax.jit(task.evaluate)(variables, batch).sums['confusion']
  logits, _ = jax.jit(task.model.apply)(variables, batch['image'])
  logits = resize.resize(logits, (48, 48), 'bilinear', align_corners=True)
  logits = resize.resize(logits, (64, 64), 'bilinear', align_corners=True)
  hits = (jnp.argmax(logits, -1) == batch['label'][:, :64, :64]).sum()
  assert confusion.sum() == 10 * 64 * 64
  assert abs(int(np.trace(confusion)) - int(hits)) <= 10


@pytest.mark.parametrize('head', ['semantic_fpn', 'upernet'])
@pytest.mark.parametrize(
  'name',
  [
    'pyramid',
    'swiftformer_xs',
    pytest.param('biformer_tiny', marks=pytest.mark.extended),
    pytest.param('crossformer_tiny', marks=pytest.mark.extended),
  ],
)
def test_every_pyramid_backbone_takes_both_heads(config, head, name):
  with config.unlocked():
    name = models.list_models(f'{name}*+{head}')[0]
    config.model = models.model_config(name, num_classes=7)
  config.dataset.image_size = (224, 224)
  task = tasks.create_task(config)
  (logits, features), _ = jax.eval_shape(
    task.model.init_with_output,
    jax.random.key(0),
    jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
  )
  assert logits.shape == (2, 56, 56, 7)
  assert ('auxiliary_logits' in features) == (head == 'upernet')


@pytest.mark.extended
def test_predictions_are_written_in_the_form_of_the_cityscapes_server(tmp_path):
  config, cityscapes = small_config('cityscapes', 19), taxonomies.CITYSCAPES
  config.dataset.evaluation.bucket_step = 40
  task = tasks.create_task(config)
  variables = variables_of(task)
  rng = np.random.default_rng(0)
  for name, size in (('a.png', (40, 24)), ('b.jpg', (33, 30))):
    Image.fromarray(rng.integers(256, size=(*size, 3), dtype=np.uint8)).save(tmp_path / name)
  output = epath.Path(tmp_path / 'out')
  predictor = task.Predictor(task, variables)
  records = predictor.write_predictions(epath.Path(tmp_path), output)
  assert json.loads((output / 'predictions.json').read_text()) == records
  for record, size in zip(records, ((40, 24), (33, 30)), strict=True):
    labels = np.asarray(Image.open(record['labels']))
    colors = Image.open(record['colors'])
    assert labels.shape == size
    classes = cityscapes.to_classes(labels)
    assert (classes != 255).all()
    np.testing.assert_array_equal(np.asarray(colors), classes)
    np.testing.assert_array_equal(np.asarray(colors.convert('RGB')), cityscapes.palette[classes])
    assert sum(each['share'] for each in record['classes']) == pytest.approx(1)
    assert Image.open(record['picture']).size[0] > 100
  batch, _ = data.read_image(tmp_path / 'a.png', config.dataset)
  np.testing.assert_array_equal(
    predictor.outputs(batch)['classes'][0, :40, :24],
    cityscapes.to_classes(np.asarray(Image.open(records[0]['labels']))),
  )


@pytest.mark.extended
def test_a_sheet_of_samples_is_drawn(config, tmp_path):
  task = tasks.create_task(config)
  predictor = task.Predictor(task, variables_of(task))
  predictor.write_samples(epath.Path(tmp_path / 'samples.png'))
  assert Image.open(tmp_path / 'samples.png').size[0] > 500


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('task.loss', 'focal', "loss='focal' is not one of"),
    ('model.num_classes', 5, 'set config.model.num_classes=7'),
    ('task.consistency_weight', 1.0, 'set config.model.embedding=16'),
    ('task.class_weights', (1.0, 2.0), 'class_weights has 2 entries'),
    ('dataset.name', 'cityscape', "did you mean 'cityscapes'"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(config, key, value, message):
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    tasks.create_task(config)


@pytest.mark.parametrize('name', ['swiftformer_xs', 'swiftformer_xs+retinanet'])
def test_what_does_not_label_pixels_is_refused(config, name):
  with config.unlocked():
    config.model = models.model_config(name, num_classes=7)
  with pytest.raises(ValueError, match=r"' does not label pixels.*list_models\('\*\+"):
    tasks.create_task(config)


def test_a_sliding_window_refuses_several_scales(config):
  config.task.evaluation.mode = 'sliding'
  config.task.evaluation.flip = True
  with pytest.raises(ValueError, match='a sliding window has one scale'):
    tasks.create_task(config)


@pytest.mark.extended
def test_the_exported_model_labels_images_without_this_library(config, tmp_path, monkeypatch):
  from crossattn_jax.models import variables_io
  from crossattn_jax.training import export

  task = tasks.create_task(config)
  variables = variables_of(task)
  config.num_steps = 1
  fields = {name: x for name, x in config.model.items() if x is not None and name != 'name'}
  variables_io.save_variables(tmp_path / 'w.safetensors', variables, config.model.name, fields)
  config.weights = str(tmp_path / 'w.safetensors')
  export.export_model(config, None, epath.Path(tmp_path / 'exported'), platforms=['cpu'])
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(256, size=(66, 33, 3), dtype=np.uint8)).save(tmp_path / 'a.png')
  script = str(tmp_path / 'exported' / 'load_and_run.py')
  monkeypatch.syspath_prepend(tmp_path / 'exported')  # As python does for a script.
  monkeypatch.setattr(sys, 'argv', [script, str(tmp_path / 'a.png')])
  runpy.run_path(script, run_name='__main__')

  resized = np.asarray(Image.open(tmp_path / 'a.png').resize((33, 33), Image.Resampling.BILINEAR))
  batch = data.prepare_image(resized, config.dataset)
  expected = task.Predictor(task, variables).outputs(batch)['classes'][0]
  labels = np.asarray(Image.open(tmp_path / 'a_labels.png'))
  assert labels.shape == (66, 33)
  assert (labels[::2] == expected).mean() > 0.99
  colors = np.asarray(Image.open(tmp_path / 'a_colors.png'))
  np.testing.assert_array_equal(colors, shapes.PALETTE[labels])


def test_an_earlier_config_had_absent_classes_beside_the_evaluation():
  saved = {'task': {'name': 'segmentation', 'absent_classes': 'zero'}, 'model': {}}
  tasks.upgrade_config('segmentation', saved)
  assert saved['task'] == {'name': 'segmentation', 'evaluation': {'absent_classes': 'zero'}}
