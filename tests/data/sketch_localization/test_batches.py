import json

import numpy as np
import pytest

from crossattn_jax.data import levels
from crossattn_jax.data.sketch_localization import batches, rasters, sources

DOG, HOT_DOG, CAT = range(3)


@pytest.fixture
def config(coco_config):
  sources.complete(coco_config)
  return coco_config


def rows(stream, count=60):
  return [stream[place] for place in range(count)]


def test_batches_are_as_their_spec_says(scenes_config):
  examples = batches.Examples(scenes_config, scenes_config.train_split)
  batch = next(iter(examples.train_batches(batch_size=3, seed=0)))
  spec = batches.batch_spec(scenes_config, 3)
  assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
    **{name: (value.shape, value.dtype) for name, value in spec.items()},
    'skipped': ((3,), np.int32),
  }
  batch = next(iter(batches.Examples(scenes_config, 'validation').eval_batches(batch_size=3)))
  assert batch.keys() == {*spec, 'skipped', 'mask'} - {'boxes', 'labels'}
  assert batch['sketches'].shape == spec['sketches'].shape


def test_unseen_shapes_are_asked_for_in_evaluation_alone(scenes_config):
  unseen = {scenes_config.class_names.index(name) for name in scenes_config.unseen_classes}
  stream = batches.Examples(scenes_config, 'train').train_stream(seed=0)
  assert not unseen & {int(row['category']) for row in rows(stream)}
  examples = batches.Examples(scenes_config, 'validation')
  asked = np.concatenate([batch['category'] for batch in examples.eval_batches(batch_size=5)])
  assert unseen & set(asked.tolist())


def test_every_seen_category_of_a_photo_is_learnt_with_its_objects_alone(config):
  examples = batches.Examples(config, 'train')
  boxes = {
    (photo, category): sources.matching(examples.objects(photo), category).boxes
    for photo in range(3)
    for category in examples.source.choices(photo)
  }
  asked = rows(examples.train_stream(seed=1))
  assert {(int(row['index']), int(row['category'])) for row in asked} == boxes.keys()
  for row in asked:
    real = row['labels'] == 0
    assert row['labels'][~real].tolist() == [-1] * (4 - real.sum())
    expected = boxes[int(row['index']), int(row['category'])]
    factor = row['image_size'] / row['original_size']
    sides = row['boxes'][real, 2:] - row['boxes'][real, :2]
    whole = (expected[:, 2:] - expected[:, :2]) * factor[::-1]
    np.testing.assert_allclose(sorted(sides.tolist()), sorted(whole.tolist()), rtol=1e-5)


def test_sketches_are_drawings_of_the_category(config):
  config.sketches.count = 3
  examples = batches.Examples(config, 'val')
  batch = next(iter(examples.eval_batches(batch_size=5)))
  assert batch['mask'].tolist() == [True] * 4 + [False]
  assert batch['category'].tolist() == [examples.source.category(k) for k in range(4)] + [-1]
  assert not batch['sketches'][4].any()
  source = examples.source
  for index in range(4):
    for place, number in enumerate(source.sketch_numbers(index, 3).tolist()):
      drawing = source.sketches.drawing(source.category(index), number)
      pixels = rasters.raster(drawing, config.sketches)
      shown = levels.denormalize(batch['sketches'][index, place], config)
      np.testing.assert_array_equal(shown, np.repeat(pixels[..., None], 3, axis=-1))


def test_a_stream_is_a_function_of_its_seed(config):
  config.num_threads = 4
  first, again, other = (
    rows(batches.Examples(config, 'train').train_stream(seed), 20) for seed in (3, 3, 4)
  )
  for one, two in zip(first, again, strict=True):
    assert all(np.array_equal(one[name], two[name]) for name in one)
  assert any(one['category'] != two['category'] for one, two in zip(first, other, strict=True))


@pytest.mark.extended
@pytest.mark.parametrize('workers', [0, 2])
def test_a_run_goes_on_with_the_batches_that_would_have_come(config, workers):
  config.num_workers = workers

  def stream(start=0):
    data = batches.Examples(config, 'train').train_batches(batch_size=2, seed=5, start=start)
    return iter(data)

  iterator = stream()
  seen = [next(iterator) for _ in range(3)]
  state = iterator.get_state()
  following = [next(iterator) for _ in range(2)]
  resumed, started = stream(), stream(start=3)
  resumed.set_state(state)
  for expected in following:
    for batch in (next(resumed), next(started)):
      assert all(np.array_equal(batch[name], expected[name]) for name in expected)
  assert len({batch['sketches'].tobytes() for batch in seen + following}) == 5


def test_sizes_of_photos_are_multiples(config):
  config.image_size, config.size_multiple = (64, 80), 16
  row = batches.Examples(config, 'train').train_stream(0)[0]
  assert row['image_size'].tolist() == [48, 80]  # Of 60 x 80.
  config.image_size = (64, 96)
  assert batches.Examples(config, 'train').train_stream(0)[0]['image_size'].tolist() == [64, 80]


def test_blank_sketches_show_nothing(config):
  config.sketches.blank = True
  row = batches.Examples(config, 'train').train_stream(0)[0]
  assert not levels.denormalize(row['sketches'], config).any()


def break_drawing(folder, name='dog', kept=0):
  """Leaves strokes in one drawing of a class in so many."""
  path = folder / f'{name}.ndjson'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for number, line in enumerate(lines):
    if not kept or number % kept:
      line['drawing'] = []
  path.write_text('\n'.join(map(json.dumps, lines)))


def test_a_drawing_that_cannot_be_read_is_named_or_skipped(config, quickdraw_dir):
  for name in ('dog', 'cat'):
    break_drawing(quickdraw_dir, name, kept=4)
  stream = batches.Examples(config, 'train').train_stream(0)
  with pytest.raises(ValueError, match=r"ndjson', line \d+ has no strokes.*unreadable = 'skip'"):
    rows(stream)
  config.unreadable = 'skip'
  examples = batches.Examples(config, 'train')
  first, again = (
    np.stack([row['sketches'] for row in rows(examples.train_stream(0), 10)]) for _ in range(2)
  )
  assert levels.denormalize(first, config).any(axis=(1, 2, 3, 4)).all()
  np.testing.assert_array_equal(first, again)
  break_drawing(quickdraw_dir, 'cat')
  with pytest.raises(ValueError, match=r"none of the \d+ drawings of 'cat'"):
    rows(batches.Examples(config, 'train').train_stream(0))


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('sketches.style', 'neat', "sketches.style must be one of 'release', 'repaired', got 'neat'"),
    ('sketches.size', 100, 'sketches.size must be a multiple of 32 pixels'),
    ('sketches.count', 0, 'sketches.count must be at least 1'),
    ('sketches.line_width', 0, 'sketches.line_width must be at least 1 pixel'),
    ('sketches.eval_split', 'train', "eval_split must be one of 'valid', 'test', got 'train'"),
    ('sketches.name', 'quickdrow', "'quickdrow'; did you mean 'quickdraw'?"),
    ('sketches.data_dir', None, r"'quickdraw' needs dataset.sketches.data_dir: .*bear.ndjson"),
    ('evaluation.queries', 'both', "queries must be one of 'one', 'all', got 'both'"),
    ('size_multiple', 0, 'size_multiple must be at least 1'),
    ('image_size', (60, 80), 'multiples of 16 pixels'),
    ('unseen_classes', ('hotdog',), "'hotdog', which is none of dataset.class_names; did you mean"),
  ],
)
def test_wrong_values_are_refused_by_name(config, key, value, message):
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    batches.Examples(config, 'train')
