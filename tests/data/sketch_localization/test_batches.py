import numpy as np
import pytest

from crossattn_jax.data.sketch_localization import batches, sources

SIZE, COUNT = 64, 2


@pytest.fixture(scope='session')
def scenes_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('scenes'))


@pytest.fixture
def config(scenes_dir):
  config = batches.default_config()
  config.name = config.sketches.name = 'shape_scenes/tiny'
  config.data_dir = scenes_dir
  config.image_size, config.max_boxes = (SIZE, SIZE), 4
  config.sketches.size, config.sketches.count = SIZE, COUNT
  config.unseen_classes = ('star', 'cross')
  sources.complete(config)
  return config


def test_batches_are_as_their_spec_says(config):
  examples = batches.Examples(config, config.train_split)
  batch = next(iter(examples.train_batches(batch_size=3, seed=0)))
  spec = batches.batch_spec(config, 3)
  assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
    **{name: (value.shape, value.dtype) for name, value in spec.items()},
    'skipped': ((3,), np.int32),
  }


def test_unseen_classes_are_asked_for_in_evaluation_alone(config):
  unseen = {config.class_names.index(name) for name in config.unseen_classes}
  stream = batches.Examples(config, config.train_split).train_stream(seed=0)
  assert not unseen & {int(stream[place]['category']) for place in range(60)}
  examples = batches.Examples(config, config.eval_split)
  asked = np.concatenate([batch['category'] for batch in examples.eval_batches(batch_size=5)])
  assert unseen & set(asked.tolist())
