"""Tasks: what a model is trained to do.

Each stands in a folder of its own name, in `task.py`: 'image_fusion' is the class `ImageFusion`.
"""

import importlib
import pkgutil
import types
from typing import Any

import ml_collections

from crossattn_jax import config_errors
from crossattn_jax.tasks.base import Batch, Evaluation, Labels, Serving, Task, Variables
from crossattn_jax.tasks.predictor import PICTURES, Field, Predictor, evenly_spread
from crossattn_jax.tasks.review import Review

__all__ = [
  'PICTURES',
  'Batch',
  'Evaluation',
  'Field',
  'Labels',
  'Predictor',
  'Review',
  'Serving',
  'Task',
  'Variables',
  'complete_config',
  'create_task',
  'default_config',
  'evenly_spread',
  'list_tasks',
  'upgrade_config',
]


def list_tasks() -> list[str]:
  """Returns the names of all tasks, sorted.

  Examples:
    >>> list_tasks()[:3]
    ['audio_classification', 'classification', 'detection']
  """
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def _module(name: str) -> types.ModuleType:
  known = list_tasks()
  if name not in known:
    hint = config_errors.near_names(name, known)
    message = f'unknown task {name!r}; {hint}known tasks: {", ".join(known)}'
    raise config_errors.UnknownName(message, name, known)
  return importlib.import_module(f'{__name__}.{name}.task')


def default_config(name: str) -> ml_collections.ConfigDict:
  """The sections of a config that depend on the task: `task`, `dataset` and maybe `predict`.

  Raises:
    ValueError: no task has that name.
  """
  return _module(name).default_config()


def upgrade_config(name: str, config: dict[str, Any]) -> None:
  """Brings a saved config of an earlier version into today's form, where the task says how.

  Raises:
    ValueError: no task has that name.
  """
  getattr(_module(name), 'upgrade_config', lambda config: None)(config)


def complete_config(config: ml_collections.ConfigDict) -> list[str]:
  """Fills in, in place, what only the data can say and the config leaves open.

  These are, where the task has them, the names of the classes (`dataset.class_names`), their number
  (`model.num_classes`), and splits. A run saves them: what uses it then needs no training data.

  Returns:
    What was chosen, a sentence each, for the person at the terminal.

  Raises:
    ValueError: no task has that name, or the data set does not say it.
  """
  return getattr(_module(config.task.name), 'complete_config', lambda config: [])(config)


def create_task(config: ml_collections.ConfigDict) -> Task:
  """Builds the task that `config.task.name` names.

  Raises:
    ValueError: no task has that name, or its config is not valid.
  """
  name = config.task.name
  return getattr(_module(name), name.title().replace('_', ''))(config)
