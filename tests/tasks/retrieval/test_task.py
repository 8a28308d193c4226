"""The task scores every pair once, however it is cut into blocks, and shows what it finds."""

import functools
import json
import pathlib
import runpy

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from crossattn_jax import models, parallel, tasks
from crossattn_jax.data.retrieval import batches as data
from crossattn_jax.metrics import retrieval as metrics
from crossattn_jax.models import variables_io
from crossattn_jax.tasks import loading
from crossattn_jax.tasks.retrieval import scoring, words
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import export

SMALL = {
  'region_dim': 16,
  'word_dim': 8,
  'width': 8,
  'num_heads': 2,
  'mlp_dim': 8,
  'conv_channels': 4,
  'cross_conv_channels': 4,
  'text_layers': 1,
  'text_heads': 2,
  'text_mlp_dim': 8,
  'max_positions': 24,
}


def small_config(data_dir=None, **model):
  """An MMCA that compiles in seconds, on ten scenes."""
  config = config_lib.default_config('retrieval')
  with config.unlocked():
    config.model = models.model_config('mmca_small', **(SMALL | model))
  config.dataset.name, config.dataset.data_dir = 'shape_scenes/tiny', data_dir
  config.dataset.eval_split = 'validation'
  config.dataset.num_regions, config.dataset.region_dim = 8, 16
  config.dataset.max_words = 24
  config.batch_size = 4
  config.task.chunk = 3
  return config


def variables_of(task):
  variables = jax.jit(task.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  # Larger than they start, so that scores differ.
  return jax.tree.map(
    lambda x: jnp.asarray(x + 0.3 * rng.standard_normal(x.shape).astype(np.float32)), variables
  )


def encoded(task, variables, batch_size):
  """Encoded images and captions, as the loop gathers them."""
  evaluate = jax.jit(task.evaluate)
  rows = []
  for batch in task.eval_data(batch_size, 0, 1):
    examples = jax.device_get(evaluate(variables, batch)).examples
    rows.append(jax.tree.map(lambda x, kept=batch['mask']: x[kept], examples))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


@pytest.fixture(scope='module')
def trained(datasets_dir):
  """A task, variables, its encoded split and the scores of the model itself."""
  task = tasks.create_task(small_config(datasets_dir))
  variables = variables_of(task)
  # The last batch is filled up.
  examples = encoded(task, variables, 4)
  texts = {name: x.reshape(-1, *x.shape[2:]) for name, x in examples['texts'].items()}
  score = jax.jit(functools.partial(task.model.apply, method='score'))
  return task, variables, examples, np.asarray(score(variables, examples['images'], texts))


def test_every_pair_is_scored_once_whatever_the_blocks(trained, datasets_dir):
  task, variables, examples, expected = trained
  assert expected.shape == (10, 50)
  assert expected.std() > 0.05
  (scores,) = task.evaluate_examples(variables, examples)['']
  np.testing.assert_allclose(scores, expected, atol=1e-5)
  config = small_config(datasets_dir)
  config.evaluation.batch_size = 3
  other = tasks.create_task(config)
  (scores,) = other.evaluate_examples(variables, examples)['']
  np.testing.assert_allclose(scores, expected, atol=1e-5)
  evaluation = tasks.Evaluation({'count': np.array(10)}, {'': [scores]})
  assert task.metrics(evaluation) == {**metrics.retrieval_metrics(scores), 'examples': 10}
  assert {*task.metrics(evaluation)} == {*task.metric_modes, 'examples'}


def test_blocks_are_split_over_the_devices_without_communication(trained):
  task, variables, examples, expected = trained
  texts = {name: x.reshape(-1, *x.shape[2:]) for name, x in examples['texts'].items()}
  scorer = scoring.Scorer(task.model, chunk=4, rows=4)
  mesh = parallel.create_mesh(data=4, fsdp=2)
  with jax.set_mesh(mesh):
    scores = scorer.all_pairs(variables, examples['images'], texts)
    structs = [
      jax.tree.map(
        lambda x, shape=shape, sharding=sharding: jax.ShapeDtypeStruct(
          (*shape, *x.shape[1:]), x.dtype, sharding=sharding
        ),
        items,
      )
      for items, shape, sharding in (
        (examples['images'], (8,), parallel.batch_sharding(mesh)),
        (texts, (24,), parallel.replicated(mesh)),
      )
    ]
    program = scorer.score_block.lower(variables, *structs).compile().as_text()
  np.testing.assert_allclose(scores, expected, atol=1e-5)
  # Nothing is exchanged but the scores.
  exchanged = [line for line in program.splitlines() if ' all-' in line and '= ' in line]
  assert len(exchanged) == 1
  assert 'f32[8,24]' in exchanged[0]


@pytest.mark.parametrize('all_pairs', [True, False])
def test_folds_are_searched_separately(trained, datasets_dir, all_pairs):
  _, variables, examples, expected = trained
  config = small_config(datasets_dir)
  config.task.evaluation.folds = 2
  config.task.evaluation.all_pairs = all_pairs
  task = tasks.create_task(config)
  scores = task.evaluate_examples(variables, examples)
  results = task.metrics(tasks.Evaluation({'count': np.array(10)}, scores))
  halves = metrics.retrieval_metrics(expected, folds=2)
  assert {name: results[f'folds/{name}'] for name in halves} == pytest.approx(halves)
  assert {*results} == {*task.metric_modes, 'examples'}
  assert all(map(task.explain, results))
  assert ('rsum' in results) == all_pairs
  config.task.evaluation.folds = 3
  with pytest.raises(ValueError, match='folds=3 do not divide the 10 images of split'):
    tasks.create_task(config).check_data()


@pytest.mark.extended
def test_the_best_pairs_alone_are_an_approximation_that_says_so(trained, datasets_dir):
  _, variables, examples, expected = trained
  config = small_config(datasets_dir)
  config.task.evaluation.rerank_topk = 50
  task = tasks.create_task(config)
  scores = task.evaluate_examples(variables, examples)
  assert set(scores) == {'rerank_top50/'}
  for each in scores['rerank_top50/'][0]:
    np.testing.assert_allclose(each, expected, atol=1e-5)

  config.task.evaluation.rerank_topk = 3
  scores = task.evaluate_examples(variables, examples)
  (reranked,) = scores['rerank_top3/']
  texts = examples['texts']['embedding'].reshape(50, -1)
  alone = examples['images']['embedding'] @ texts.T
  for got, full, similarities in (
    (reranked.of_images, expected, alone),
    (reranked.of_texts.T, expected.T, alone.T),
  ):
    for row, line in enumerate(similarities):
      order = np.argsort(-line)
      best = sorted(order[:3], key=lambda index, row=row, full=full: -full[row, index])
      assert np.argsort(-got[row]).tolist() == [*best, *order[3:]]
      np.testing.assert_allclose(got[row, best], full[row, best], atol=1e-5)
  results = task.metrics(tasks.Evaluation({'count': np.array(10)}, scores))
  exhaustive = metrics.retrieval_metrics(expected)
  assert set(results) == {*(f'rerank_top3/{name}' for name in exhaustive), 'examples'}
  assert any(results[f'rerank_top3/{name}'] != x for name, x in exhaustive.items())


@pytest.mark.extended
def test_the_best_pairs_of_folds_are_split_over_the_devices(trained, datasets_dir):
  _, variables, examples, expected = trained
  config = small_config(datasets_dir)
  config.task.evaluation.rerank_topk, config.task.evaluation.folds = 25, 2
  config.task.evaluation.all_pairs = False
  task = tasks.create_task(config)
  with jax.set_mesh(parallel.create_mesh(data=4, fsdp=2)):
    scores = task.evaluate_examples(variables, examples)
  results = task.metrics(tasks.Evaluation({'count': np.array(10)}, scores))
  halves = metrics.retrieval_metrics(expected, folds=2)
  assert {name: results[f'rerank_top25/folds/{name}'] for name in halves} == pytest.approx(halves)
  assert {*results} == {*task.metric_modes, 'examples'}
  assert all(map(task.explain, results))


def batch_of(task, size=4):
  batch = next(iter(task.train_data(size, 0, 1)))
  return {name: x for name, x in batch.items() if name != 'skipped'}


@pytest.fixture(scope='module')
def saem(datasets_dir):
  """A task without cross-attention, which compiles faster, its variables and a batch."""
  task = tasks.create_task(small_config(datasets_dir, cross_attention=False))
  return task, variables_of(task), batch_of(task)


def loss_of(task, variables, batch):
  return jax.jit(functools.partial(task.loss, train=False))(variables, batch, jax.random.key(0))


def test_the_loss_is_the_sum_over_the_batch_and_counts_other_captions_as_asked(saem):
  task, variables, batch = saem
  spec = {name: (x.shape, x.dtype) for name, x in task.batch_spec(4).items()}
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == spec
  scores, _ = jax.jit(task.model.apply)(variables, batch)
  excess = np.maximum(0.2 + scores - np.diagonal(scores)[:, None], 0)
  excess_across = np.maximum(0.2 + scores - np.diagonal(scores), 0)
  negative = 1 - np.eye(4)
  loss, (reported, _) = loss_of(task, variables, batch)
  expected = (excess * negative).max(1).sum() + (excess_across * negative).max(0).sum()
  assert loss == pytest.approx(expected, rel=1e-5)
  own = np.arange(4)
  found = np.mean([scores.argmax(0) == own, scores.argmax(1) == own])
  assert reported['accuracy'] == pytest.approx(found)

  config = task.config.copy_and_resolve_references()
  config.task.hardest, config.task.exclude_same_image = False, True
  batch |= {'image': np.array([3, 3, 7, 8], np.int32)}
  negative[0, 1] = negative[1, 0] = 0
  expected = ((excess + excess_across) * negative).sum()
  loss, _ = loss_of(tasks.create_task(config), variables, batch)
  assert loss == pytest.approx(expected, rel=1e-5)

  config.task.hardest, config.task.hardest_from_epoch = True, 2
  task = tasks.create_task(config)
  early, _ = loss_of(task, variables, batch | {'epoch': np.full(4, 1, np.int32)})
  assert early == pytest.approx(expected, rel=1e-5)
  late, _ = loss_of(task, variables, batch | {'epoch': np.full(4, 2, np.int32)})
  assert late == pytest.approx(
    (excess * negative).max(1).sum() + (excess_across * negative).max(0).sum(), rel=1e-5
  )


@pytest.mark.extended
def test_saem_is_an_option_with_its_further_losses(saem):
  task, variables, batch = saem
  config = task.config.copy_and_resolve_references()
  config.task.saem_losses = True
  task = tasks.create_task(config)
  loss, (reported, _) = loss_of(task, variables, batch)
  kernels = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables['params'])
    if path[0].key in ('region_projection', 'image_unit_0') and path[-1].key == 'kernel'
  ]
  assert len(kernels) == 7
  norms = sum(np.linalg.norm(kernel) for kernel in kernels)
  assert reported['norm_penalty'] == pytest.approx(norms, rel=1e-5)
  rest = reported['triplet_loss'] + 0.01 * norms
  assert loss == pytest.approx(float(rest + 0.5 * reported['angular_loss']), rel=1e-5)
  later, _ = loss_of(task, variables, batch | {'epoch': np.full(4, 5, np.int32)})
  assert later == pytest.approx(float(rest + 0.05 * reported['angular_loss']), rel=1e-5)


@pytest.mark.extended
def test_queries_of_a_file_find_images_and_captions_and_are_drawn(trained, tmp_path):
  task, variables, _, expected = trained
  predictor = task.Predictor(task, variables)
  gallery = predictor.gallery()
  (tmp_path / 'queries.txt').write_text(f'a red star on sand\n\n{gallery.keys[3]}\n')
  output = epath.Path(tmp_path / 'out')
  records = predictor.write_predictions(epath.Path(tmp_path / 'queries.txt'), output)
  assert json.loads((output / 'predictions.json').read_text()) == records
  sentence, image = records
  assert (sentence['kind'], image['kind']) == ('sentence', 'image')
  assert {answer['image'] for answer in sentence['answers']} < set(gallery.keys)
  best = np.argsort(-expected[3], kind='stable')[:5]
  for answer, index in zip(image['answers'], best, strict=True):
    assert answer['image'] == gallery.keys[index // 5]
    assert answer['caption'] == gallery.captions(index // 5)[index % 5]
    assert answer['score'] == pytest.approx(expected[3, index], abs=1e-5)
  for record in records:
    for kind in ('picture', 'attention'):
      assert Image.open(record[kind]).width > 300


def test_inputs_that_hold_no_queries_are_refused(trained, tmp_path):
  task, variables, _, _ = trained
  (tmp_path / 'photo.png').write_bytes(b'')
  with pytest.raises(ValueError, match=r"expected \.txt files with a query per line.*'photo\.png'"):
    task.Predictor.find_inputs(epath.Path(tmp_path / 'photo.png'))
  empty = epath.Path(tmp_path / 'queries.txt')
  empty.write_text('\n')
  with pytest.raises(ValueError, match=r'queries\.txt: no line with a query'):
    task.Predictor(task, variables).write_predictions(empty, epath.Path(tmp_path))


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('accumulation_steps', 2, r'negatives are those of the whole batch.*lower config\.task\.chunk'),
    (
      'model.text_layers',
      0,
      r'takes word features, .* set config\.dataset\.word_files to the folder',
    ),
    ('dataset.word_files', '/data', r"word_files='/data', but 'mmca_small' has a text encoder"),
    ('dataset.region_dim', 8, r'region_dim=8, but config\.model\.region_dim is 16'),
    ('dataset.max_words', 30, r'max_words=30, but the text encoder knows .*max_positions=24'),
    ('task.chunk', 0, r'config\.task\.chunk=0 must be positive'),
    ('task.evaluation.all_pairs', False, 'leaves nothing to evaluate: set'),
    ('task.evaluation.rerank_topk', 0, r'rerank_topk=0 must be positive, or None'),
  ],
)
def test_wrong_values_are_refused_by_key(key, value, message):
  config = small_config()
  *sections, name = key.split('.')
  section = config
  for part in sections:
    section = section[part]
  section[name] = value
  with pytest.raises(ValueError, match=message):
    tasks.create_task(config)


def test_options_that_other_models_do_not_have_are_refused():
  config = small_config(cross_attention=False)
  config.task.evaluation.rerank_topk = 5
  with pytest.raises(ValueError, match="rerank_topk=5: 'mmca_small' has no cross-attention module"):
    tasks.create_task(config)
  config = small_config(text_layers=0)
  config.dataset.word_files = '/data'
  with pytest.raises(ValueError, match=r'word_dim=768, but config\.model\.word_dim is 8'):
    tasks.create_task(config)


def features_config(task, variables, folder, splits=('validation',)):
  """A model without the text encoder, and the features that it makes of captions, in a folder."""
  config = task.config.copy_and_resolve_references()
  for split in splits:
    source = data.Examples.open_source(config.dataset, split)
    captions = [caption for i in range(len(source)) for caption in source[i].captions]
    words.write_caption_features(
      task.model, variables, task.tokenizer, captions, folder, split, batch_size=16
    )
  config.model.text_layers = 0
  config.dataset.word_files, config.dataset.word_dim = str(folder), SMALL['word_dim']
  return config


def test_features_that_were_computed_before_are_those_of_the_text_encoder(trained, tmp_path):
  task, variables, examples, _ = trained
  task = tasks.create_task(features_config(task, variables, tmp_path))
  params = {name: x for name, x in variables['params'].items() if name != 'bert'}
  batch = next(iter(task.eval_data(4, 0, 1)))
  found = jax.jit(task.evaluate)({'params': params}, batch).examples['texts']
  expected = {name: x[:4] for name, x in examples['texts'].items()}
  np.testing.assert_array_equal(found['mask'], expected['mask'])
  np.testing.assert_allclose(found['embedding'], expected['embedding'], atol=1e-5)
  mask = expected['mask']
  np.testing.assert_allclose(found['candidates'][mask], expected['candidates'][mask], atol=1e-5)
  with pytest.raises(ValueError, match='the weights are of no text encoder: expected'):
    words.write_caption_features(task.model, {}, None, [], tmp_path, 'train')


@pytest.mark.extended
def test_a_model_learns_the_same_of_features_and_is_asked_by_captions(trained, tmp_path):
  original, variables, _, _ = trained
  config = features_config(original, variables, tmp_path, ('train', 'validation'))
  task = tasks.create_task(config)
  spec = {name: (x.shape, x.dtype) for name, x in task.batch_spec(4).items()}
  batch = batch_of(task)
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == spec
  params = {'params': {name: x for name, x in variables['params'].items() if name != 'bert'}}
  loss, _ = loss_of(task, params, batch)
  expected, _ = loss_of(original, variables, batch_of(original))
  assert float(loss) == pytest.approx(float(expected), rel=1e-4)

  predictor = task.Predictor(task, params)
  gallery = predictor.gallery()
  caption = gallery.captions(2)[3]
  queries = epath.Path(tmp_path / 'queries.txt')
  queries.write_text(f'{caption}\n{gallery.keys[1]}\n')
  by_caption, by_image = predictor.write_predictions(queries, epath.Path(tmp_path))
  assert (by_caption['query'], by_image['query']) == (caption, gallery.keys[1])
  assert Image.open(by_image['attention']).width > 300
  queries.write_text('a dog\n')
  with pytest.raises(ValueError, match=r"'a dog' is no caption of the split: .*ask by a caption"):
    predictor.write_predictions(queries, epath.Path(tmp_path))


@pytest.mark.extended
def test_features_are_computed_by_the_command_line(trained, tmp_path, capsys):
  task, variables, _, _ = trained
  weights = tmp_path / 'weights.safetensors'
  overrides = {**SMALL, 'region_dim': 16}
  variables_io.save_variables(weights, variables, 'mmca_small', overrides)
  vocabulary = tmp_path / 'vocab.txt'
  vocabulary.write_text('\n'.join(task.tokenizer.vocabulary) + '\n')
  (tmp_path / 'dev_caps.txt').write_text('a red star on sand\na blue disc\n')
  words.main(
    [
      str(weights),
      str(tmp_path / 'dev_caps.txt'),
      f'--vocabulary={vocabulary}',
      f'--output={tmp_path / "out"}',
      '--max_words=24',
      '--dtype=float16',
    ]
  )
  assert 'dev_lengths.npy' in capsys.readouterr().out
  assert np.load(tmp_path / 'out' / 'dev_lengths.npy').tolist() == [7, 5]
  written = np.load(tmp_path / 'out' / 'dev_words.npy')
  assert (written.dtype, written.shape) == (np.float16, (12, 8))
  numbers, mask = (x[None] for x in task.tokenizer('a red star on sand'))
  expected = task.model.apply(variables, numbers, mask, method='encode_words')
  np.testing.assert_allclose(written[:7], expected[0, :7], rtol=1e-3, atol=1e-3)


def test_a_vocabulary_that_is_larger_than_the_text_encoders_is_refused(datasets_dir):
  task = tasks.create_task(small_config(datasets_dir, vocab_size=60))
  with pytest.raises(ValueError, match="has 64 word pieces, 'mmca_small' knows 60"):
    task.train_data(4, 0, 1)


def test_a_frozen_text_encoder_needs_weights(datasets_dir):
  task = tasks.create_task(small_config(datasets_dir, freeze_text_encoder=True))
  with pytest.raises(ValueError, match=r'would stay as it is initialised: set config\.weights'):
    task.train_data(4, 0, 1)


@pytest.mark.extended
def test_the_served_model_scores_all_pairs_as_the_model_does(trained):
  task, variables, _, _ = trained
  serving, batch = task.Serving(task), batch_of(task)
  inputs = {name: batch[name] for name in serving.inputs}
  assert {name: x.shape[1:] for name, x in inputs.items()} == {
    name: spec.shape for name, spec in serving.inputs.items()
  }
  scores, features = jax.jit(task.model.apply)(variables, batch)
  served = jax.jit(serving.run)(variables, inputs)
  np.testing.assert_allclose(served['score'], scores, atol=1e-5)
  for name in ('image_embedding', 'text_embedding'):
    np.testing.assert_allclose(served[name], features[name], atol=1e-5)
  assert len(json.loads(json.dumps(serving.description))['vocabulary']) == 64
  assert serving.script.exists()


def test_the_served_script_scores_every_pair_in_calls_of_any_or_of_one_size(trained, monkeypatch):
  task, _, _, _ = trained
  monkeypatch.syspath_prepend(pathlib.Path(loading.__file__).parent)
  script = runpy.run_path(str(task.Serving(task).script))
  rng = np.random.default_rng(0)
  images = {'regions': rng.random((40, 3)), 'region_mask': np.ones((40, 2), bool)}
  texts = {'words': rng.random((9, 3)), 'word_mask': np.ones((9, 4), bool)}
  sizes = set()

  def model(inputs):
    sizes.add((len(inputs['region_mask']), len(inputs['word_mask'])))
    return {'score': inputs['regions'] @ inputs['words'].T}

  for size in (None, 7):
    scores = script['search'](model, images, texts, size)
    np.testing.assert_allclose(scores, images['regions'] @ texts['words'].T, rtol=1e-6)
  assert sizes == {(28, 9), (7, 7)}


@pytest.mark.extended
def test_an_exported_model_takes_any_number_of_images_and_of_sentences(
  trained, tmp_path, monkeypatch
):
  task, variables, _, _ = trained
  config = task.config.copy_and_resolve_references()
  config.num_steps, config.weights = 1, str(tmp_path / 'weights.safetensors')
  variables_io.save_variables(config.weights, variables, 'mmca_small', SMALL)
  export.export_model(config, None, epath.Path(tmp_path / 'out'), platforms=['cpu'])
  monkeypatch.syspath_prepend(tmp_path / 'out')  # As python does for a script.
  script = runpy.run_path(str(tmp_path / 'out' / 'load_and_run.py'))
  spec, model = script['load'](tmp_path / 'out')
  assert spec['outputs']['score']['shape'] == ['images', 'texts']
  batch = batch_of(task)
  images = {name: batch[name][:3] for name in ('regions', 'region_mask')}
  texts = {name: batch[name] for name in ('words', 'word_mask')}
  expected, _ = jax.jit(task.model.apply)(variables, images | texts)
  np.testing.assert_allclose(script['search'](model, images, texts), expected, atol=1e-5)


def test_the_served_script_makes_the_inputs_of_the_pipeline(trained, tmp_path, monkeypatch):
  task, _, _, _ = trained
  serving = task.Serving(task)
  batch = {name: x[:1] for name, x in batch_of(task).items()}
  spec = dict(serving.description) | {
    'inputs': {name: {'shape': ['batch', *x.shape]} for name, x in serving.inputs.items()}
  }
  monkeypatch.syspath_prepend(pathlib.Path(loading.__file__).parent)
  script = runpy.run_path(str(serving.script))
  for sentence in ('A red star, on SAND', 'a ' * 40, 'unknown'):
    for made, expected in zip(
      script['to_words'](sentence, spec), task.tokenizer(sentence), strict=True
    ):
      np.testing.assert_array_equal(made, expected)
  used = int(batch['region_mask'].sum())
  np.save(tmp_path / 'regions.npy', batch['regions'][:, :used])
  regions, mask = script['to_regions'](tmp_path / 'regions.npy', spec)
  np.testing.assert_array_equal(regions, batch['regions'])
  np.testing.assert_array_equal(mask, batch['region_mask'])
  features = np.ones((2, 8))
  np.save(tmp_path / 'words.npy', features)
  feature_spec = {'vocabulary': None, 'inputs': {'words': {'shape': ['batch', 4, 8]}}}
  made, mask = script['to_words'](tmp_path / 'words.npy', feature_spec)
  np.testing.assert_array_equal(made, np.pad(features, ((0, 2), (0, 0))))
  assert mask.tolist() == [True, True, False, False]
  np.save(tmp_path / 'regions.npy', np.zeros((2, 9, 16)))
  with pytest.raises(
    SystemExit, match=r'expected features \[images, up to 8, 16\], not \(2, 9, 16\)'
  ):
    script['to_regions'](tmp_path / 'regions.npy', spec)
