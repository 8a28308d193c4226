"""Tasks: what a model is trained to do. The loop knows only `base.Task`."""

import difflib

import ml_collections

from crossattn_jax.tasks.audio_classification import task as audio_classification
from crossattn_jax.tasks.base import Batch, Evaluation, Serving, Task, Variables
from crossattn_jax.tasks.classification import task as classification
from crossattn_jax.tasks.image_fusion import task as image_fusion
from crossattn_jax.tasks.retrieval import task as retrieval
from crossattn_jax.tasks.segmentation import task as segmentation

_TASKS = {
  'audio_classification': audio_classification,
  'classification': classification,
  'image_fusion': image_fusion,
  'retrieval': retrieval,
  'segmentation': segmentation,
}

__all__ = [
  'Batch',
  'Evaluation',
  'Serving',
  'Task',
  'Variables',
  'create_task',
  'default_config',
]


def _module(name: str):
  if name not in _TASKS:
    near = difflib.get_close_matches(str(name), _TASKS, n=1)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise ValueError(f'unknown task {name!r}; {hint}known tasks: {", ".join(_TASKS)}')
  return _TASKS[name]


def default_config(name: str) -> ml_collections.ConfigDict:
  """The sections of a config that depend on the task: `task` and `dataset`.

  Raises:
    ValueError: no task has that name.
  """
  return _module(name).default_config()


def create_task(config: ml_collections.ConfigDict) -> Task:
  """Builds the task that `config.task.name` names.

  Raises:
    ValueError: no task has that name, or its config is not valid.
  """
  return _module(config.task.name).create_task(config)
