"""A config that cannot be run is refused by name, and what was run can be read back."""

import json

import pytest

from crossattn_jax.training import config as config_lib


def test_assigning_an_unknown_key_is_refused_at_once(tiny_config):
  with pytest.raises(AttributeError, match=r'Did you mean "learning_rate"'):
    tiny_config.schedule.learning_rat = 1.0


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'schedule': {'lerning_rate': 1.0}},
      'config.schedule.lerning_rate; did you mean config.sched',
    ),
    ({'batchsize': 3}, 'config.batchsize; did you mean config.batch_size'),
    ({'model': {'num_headz': 3}}, 'config.model.num_headz; did you mean config.model.num_heads'),
    ({'optimizer': 3}, 'config.optimizer must be a section'),
    ({'num_steps': None}, 'set config.num_epochs or config.num_steps'),
    ({'accumulation_steps': 3}, 'config.batch_size=64 is not a multiple'),
    ({'max_bad_steps': 0}, 'config.max_bad_steps=0 must be positive'),
    ({'profile': {'steps': (1, 2, 3)}}, 'config.profile.steps'),
    ({'model': {'name': 'crosvit_tiny_240'}}, "did you mean 'crossvit_tiny_240'"),
  ],
)
def test_what_cannot_be_run_is_named(tiny_config, change, message):
  with tiny_config.unlocked(), tiny_config.ignore_type():
    for key, value in change.items():
      if isinstance(value, dict):
        tiny_config[key].update(value)
      else:
        tiny_config[key] = value
  with pytest.raises(ValueError, match=message):
    config_lib.validate(tiny_config)


def test_a_missing_section_is_named(tiny_config):
  with tiny_config.unlocked():
    del tiny_config['ema']
  with pytest.raises(config_lib.ConfigError, match=r'config\.ema is missing'):
    config_lib.validate(tiny_config)


def test_a_saved_config_is_the_same_again(tiny_config, tmp_path):
  from etils import epath

  path = epath.Path(tmp_path / 'config.json')
  config_lib.save(tiny_config, path)
  loaded = config_lib.load(path)
  assert loaded.to_dict() == tiny_config.to_dict()
  config_lib.validate(loaded)


def test_keys_that_came_after_a_config_was_saved_get_their_defaults(tiny_config, tmp_path):
  saved = tiny_config.to_dict()
  del saved['task']['distillation'], saved['profile'], saved['optimizer']['clip_norm']
  del saved['model']['remat']
  saved['model']['a_field_that_is_gone'] = None
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  loaded = config_lib.load(tmp_path / 'config.json')
  config_lib.validate(loaded)
  default = config_lib.default_config()
  assert loaded.model.to_dict() == tiny_config.model.to_dict()
  assert loaded.profile.to_dict() == default.profile.to_dict()
  assert loaded.optimizer.clip_norm == default.optimizer.clip_norm
  assert loaded.optimizer.weight_decay == tiny_config.optimizer.weight_decay
  assert loaded.task.distillation.to_dict() == default.task.distillation.to_dict()


@pytest.mark.parametrize(('content', 'message'), [(None, 'does not exist'), ('{', 'is not JSON')])
def test_a_config_that_cannot_be_read_is_named(tmp_path, content, message):
  from etils import epath

  path = epath.Path(tmp_path / 'config.json')
  if content is not None:
    path.write_text(content)
  with pytest.raises(config_lib.ConfigError, match=rf'config.json.*{message}'):
    config_lib.load(path)
