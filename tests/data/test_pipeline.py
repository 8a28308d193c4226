"""What the input pipelines have in common."""

import itertools

import grain
import ml_collections
import pytest

from crossattn_jax.data import pipeline


@pytest.fixture
def config():
  config = ml_collections.ConfigDict({'section': {'share': 2.0}})
  pipeline.add_options(config)
  return config


def test_the_default_options_are_accepted(config):
  pipeline.check_options(config)


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('unreadable', 'ignore', "dataset.unreadable must be 'error' or 'skip', got 'ignore'"),
    ('num_workers', -1, 'dataset.num_workers must be at least 0, got -1'),
    ('num_threads', 0, 'dataset.num_threads must be at least 1, got 0'),
    ('prefetch', 0, 'dataset.prefetch must be at least 1 batch, got 0'),
  ],
)
def test_wrong_options_are_refused_by_name(config, key, value, message):
  config[key] = value
  with pytest.raises(ValueError, match=message):
    pipeline.check_options(config)


def test_keys_of_sections_are_named_in_full(config):
  with pytest.raises(ValueError, match=r'dataset\.section\.share must be a share, got 2\.0'):
    pipeline.requirement(config)(False, 'section.share', 'a share')


class Numbers(pipeline.Examples):
  """Of a source of numbers, of which None cannot be read."""

  kind = 'number'
  values = (0, 1, None, None)

  @staticmethod
  def check(config):
    pass

  def open_source(self, config, split):
    return [{'value': value, 'key': f'{split}[{index}]'} for index, value in enumerate(self.values)]

  def decode(self, index):
    value = self.source[index]['value']
    if value is None:
      raise pipeline.UnreadableError('broken')
    return value + 10

  def train_example(self, index, rng):
    number, _, skipped = self.next_readable(index)
    return {'number': number, 'skipped': skipped}

  def eval_example(self, decoded, index, bucket):
    return {'number': decoded or 0}


def test_the_next_readable_example_is_looked_for_around_the_end(config):
  config.name, config.unreadable = 'x', 'skip'
  assert Numbers(config, 'train').next_readable(2) == (10, 0, 2)


def test_a_source_without_a_readable_example_is_refused(config, monkeypatch):
  config.name, config.unreadable = 'x', 'skip'
  monkeypatch.setattr(Numbers, 'values', (None, None))
  with pytest.raises(ValueError, match="none of the 2 numbers of 'x', split 'train', can be read"):
    Numbers(config, 'train').next_readable(1)


def test_unreadable_examples_stop_or_are_logged(config, caplog):
  config.name = 'x'
  message = r"unreadable number 'train\[2\]' of dataset 'x', split 'train': broken"
  with pytest.raises(ValueError, match=rf"{message}; .*set dataset.unreadable = 'skip'") as raised:
    Numbers(config, 'train').read(2)
  assert isinstance(raised.value.__cause__, pipeline.UnreadableError)
  config.unreadable = 'skip'
  with caplog.at_level('WARNING'):
    assert Numbers(config, 'train').read(2) is None
  assert "skipped unreadable number 'train[2]'" in caplog.text


def test_evaluation_masks_what_fills_up_and_what_cannot_be_read(config):
  config.name, config.unreadable = 'x', 'skip'
  batches = list(Numbers(config, 'test').eval_batches(batch_size=3))
  assert [batch['mask'].tolist() for batch in batches] == [[True, True, False], [False] * 3]
  assert [batch['skipped'].tolist() for batch in batches] == [[0, 0, 1], [1, 0, 0]]
  assert batches[0]['number'].tolist() == [10, 11, 0]


def test_samples_are_spread_over_a_split(config, monkeypatch):
  config.name = 'x'
  monkeypatch.setattr(Numbers, 'values', range(10))
  examples = Numbers(config, 'test')
  batch = examples.sample_batch(4)
  assert batch['number'].tolist() == [10, 13, 16, 19]
  assert batch['mask'].all()
  assert examples.sample_batch(12)['mask'].tolist() == [True] * 10 + [False] * 2
  # Only examples of one shape share a batch.
  monkeypatch.setattr(Numbers, 'buckets', lambda self: ['a', 'b'] * 5)
  assert examples.sample_batch(2)['number'].tolist() == [10, 18]


def test_batches_hold_one_bucket_each_in_the_order_of_the_examples():
  slots = pipeline.bucket_slots(['a', 'b', 'a', 'a', 'b'], 2)
  assert slots == [('a', 0), ('a', 2), ('a', 3), ('a', -1), ('b', 1), ('b', 4)]


@pytest.mark.parametrize('process_count', [1, 2])
def test_an_endless_stream_has_batches_of_one(config, process_count):
  stream = grain.MapDataset.range(3).repeat()
  for index in range(process_count):
    iterator = iter(pipeline.batches(stream, config, process_count, index, process_count))
    batches = [batch.tolist() for batch in itertools.islice(iterator, 5)]
    iterator.close()
    assert batches == [[(index + process_count * step) % 3] for step in range(5)]
