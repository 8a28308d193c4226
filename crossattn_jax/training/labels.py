"""Labels by one model from which another one learns."""

from collections.abc import Iterator
import contextlib
import functools
import sys
from typing import Any

from etils import epath
import jax
import ml_collections
import rich.console
import rich.progress

from crossattn_jax import tasks
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import device_memory, fingerprints, inputs, loop, messages, weights
from crossattn_jax.training import experiment as experiment_lib


def write_labels(
  config: ml_collections.ConfigDict, workdir: epath.Path | None, output: epath.Path
) -> dict[str, Any]:
  """Writes labels for the examples of `config.dataset.train_split`, in this process alone.

  The same call goes on where an earlier one was stopped.

  Args:
    config: of the experiment. The weights are those of `config.weights`, or else of the checkpoint
      that `config.checkpoint.use` names.
    workdir: of the run; None with `config.weights`.
    output: folder of the labels, made if it does not exist.

  Returns:
    How many there are, and how good where that is known.

  Raises:
    ConfigError: the task makes no labels, or the folder has others.
    FileNotFoundError: there is no such checkpoint.
  """
  config_lib.validate(config)
  messages.say(*weights.complete_config(config, workdir, classes=True))
  messages.say(*tasks.complete_config(config))
  if jax.process_count() > 1:
    raise config_lib.ConfigError('labels are written in one process: leave out --multihost')
  experiment = experiment_lib.setup(
    config, steps_per_epoch=experiment_lib.any_steps_per_epoch(config)
  )
  task = experiment.task
  if task.Labels is None:
    raise config_lib.ConfigError(
      f'{config.model.name!r}, task {config.task.name!r}, makes no labels from which another model '
      'could learn; one that does is mit_18a_r50, task scene_labels'
    )
  task.check_data()
  with jax.set_mesh(experiment.mesh):
    variables = loop.load_variables(experiment, workdir)
    labels = task.Labels(task, output, {'weights': int(fingerprints.of_tree(variables))})
    count, left = len(labels.examples.source), len(labels.pending)
    if left < count:
      messages.say(f'{output} has labels of {count - left} of {count} already')
    console = rich.console.Console(file=sys.stderr)
    progress = rich.progress.Progress(
      *rich.progress.Progress.get_default_columns(),
      rich.progress.MofNCompleteColumn(),
      console=console,
      disable=console.is_jupyter,  # It would need ipywidgets.
    )
    with progress:
      bar = progress.add_task('labels', total=count, completed=count - left)
      for rows in _evaluated(experiment, variables, labels):
        labels.add(rows)
        progress.advance(bar, len(jax.tree.leaves(rows)[0]))
  return labels.finish()


def _evaluated(
  experiment: experiment_lib.Experiment, variables: Any, labels: tasks.Labels
) -> Iterator[Any]:
  """Yields what is said of the examples that lack labels, a batch at a time."""
  if not labels.pending:
    return
  batches = labels.examples.eval_batches(
    batch_size=experiment_lib.eval_batch_size(experiment.config), indices=labels.pending
  )
  advice = functools.partial(device_memory.evaluation_advice, experiment)
  with contextlib.closing(iter(batches)) as iterator, device_memory.explained(advice):
    for loaded in inputs.device_batches(iterator, experiment.mesh):
      evaluation, mask = jax.device_get(experiment.eval_step(variables, loaded.arrays))
      yield jax.tree.map(lambda rows, kept=mask: rows[kept], evaluation.examples)
