"""The task learns what sketches show, and evaluates what is found by them."""

import re

import pytest

from crossattn_jax import tasks


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('dataset.max_boxes', 9, 'config.dataset.max_boxes=8'),
    ('task.evaluation.area', 'box', "evaluation.area='box' is not one of file, resized"),
    ('task.evaluation.score_threshold', 2.0, 'score_threshold must be between 0 and 1, got 2.0'),
    ('model', {'name': 'swiftformer_xs'}, "list_models('sketch_localizer*') shows what does"),
  ],
)
def test_what_does_not_belong_together_is_refused(small_config, key, value, message):
  config = small_config()
  with config.unlocked(), config.ignore_type():
    if key == 'model':
      config.model = value
    else:
      config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=re.escape(message)):
    tasks.create_task(config)
