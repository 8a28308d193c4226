"""Suggestions are keys that exist, and none is made where nothing is near."""

import re

import pytest

from configs import crossvit_digits
from crossattn_jax import models
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import suggestions


def test_synonyms_name_keys_of_some_experiment():
  known = set(config_lib.flat(config_lib.default_config()))
  known |= {
    f'model.{field}' for name in models.list_models() for field in models.model_config(name)
  }
  for meant, words in suggestions._SYNONYMS.items():
    keys = re.findall(r'config\.([\w.]+)', meant)
    assert set(keys) <= known, meant
    # What is a key itself, with its section, is never asked for.
    assert not set(words.split()) & known, meant


@pytest.mark.parametrize(
  ('key', 'hint'),
  [
    ('lr', 'did you mean config.schedule.learning_rate?'),
    ('optimizer.lr', 'did you mean config.schedule.learning_rate?'),
    ('model.lr', 'did you mean config.schedule.learning_rate?'),
    ('learning_rate', 'did you mean config.schedule.learning_rate?'),
    ('epochs', 'did you mean config.num_epochs?'),
    ('bs', 'did you mean config.batch_size?'),
    ('wd', 'did you mean config.optimizer.weight_decay?'),
    ('weight_decay', 'did you mean config.optimizer.weight_decay?'),
    ('pretrained', 'did you mean config.weights?'),
    ('model.pretrained', 'did you mean config.weights?'),
    ('img_size', 'did you mean config.model.image_size and config.dataset.image_size?'),
    ('amp', 'did you mean config.model.dtype=bfloat16?'),
    ('workers', 'did you mean config.dataset.num_workers?'),
    ('num_classes', 'did you mean config.model.num_classes?'),
    ('drop_path', 'did you mean config.model.drop_path_rate?'),
    ('clip_grad', 'did you mean config.optimizer.clip_norm?'),
    ('data', 'did you mean config.dataset.data_dir?'),
    ('data_dir', 'did you mean config.dataset.data_dir?'),
    ('dataset.split', 'did you mean config.dataset.eval_split or config.dataset.train_split?'),
    ('evaluation.steps', 'did you mean config.evaluation.every_steps?'),
    ('optimiser.name', 'did you mean config.optimizer.name?'),
    ('resume', 'the command that started a run continues it from its last checkpoint'),
    ('zzz', 'the config has accumulation_steps, batch_size, '),
    ('ema.zzz', 'config.ema has decay, ramp_updates, warmup'),
    ('task.distillation.zzz', 'config.task.distillation has kind, '),
    ('zzz.zzz', 'the config has accumulation_steps, batch_size, '),
  ],
)
def test_an_unknown_key_is_answered_by_what_is_meant(key, hint):
  known = config_lib.flat(crossvit_digits.get_config())
  message = suggestions.unknown_key_message(key, known)
  assert message.startswith(f'unknown config key config.{key}; {hint}')


def test_a_synonym_of_what_this_experiment_lacks_is_not_suggested():
  known = config_lib.flat(config_lib.default_config('retrieval'))
  assert 'mixup_alpha' not in suggestions.unknown_key_message('mixup', known)
