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


def test_the_next_readable_example_is_looked_for_around_the_end():
  source = [0, 1, None, None]
  found = pipeline.next_readable(source, 2, lambda x: None if x is None else x + 10, 'numbers')
  assert found == (10, 0, 2)


def test_a_source_without_a_readable_example_is_refused():
  with pytest.raises(ValueError, match="none of the 2 clips of 'x' can be read"):
    pipeline.next_readable([1, 2], 1, lambda x: None, "clips of 'x'")


def test_unreadable_examples_stop_or_are_logged(config):
  error = OSError('broken')
  with pytest.raises(ValueError, match=r"broken file; .*set dataset.unreadable = 'skip'") as raised:
    pipeline.refuse_or_skip('broken file', error, config)
  assert raised.value.__cause__ is error
  config.unreadable = 'skip'
  pipeline.refuse_or_skip('broken file', error, config)


def test_batches_hold_one_bucket_each_in_the_order_of_the_examples():
  slots = pipeline.bucket_slots(['a', 'b', 'a', 'a', 'b'], 2)
  assert slots == [('a', 0), ('a', 2), ('a', 3), ('a', -1), ('b', 1), ('b', 4)]


@pytest.mark.parametrize('process_count', [1, 2])
def test_an_endless_stream_has_batches_of_one(config, process_count):
  stream = grain.MapDataset.range(3).repeat()
  for index in range(process_count):
    iterator = iter(pipeline.iterate(stream, config, 1, index, process_count))
    batches = [batch.tolist() for batch in itertools.islice(iterator, 5)]
    iterator.close()
    assert batches == [[(index + process_count * step) % 3] for step in range(5)]
