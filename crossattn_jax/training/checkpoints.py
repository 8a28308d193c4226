"""Checkpoints of a run: asynchronous, verified when they are read, and never silently dropped.

A checkpoint is a folder `<step>` with two Orbax items: `state`, the arrays (OCDBT), and `metadata`,
a JSON record of what the arrays are (path, shape, dtype, fingerprint), of the config and of the
metrics. A fingerprint is a checksum of an array's bits that does not depend on how it is split over
devices. It is what finds damage that storage reads over: TensorStore fills chunks that are missing
with zeros.

Three things may be wrong with a checkpoint, and are told apart:
  - it is unreadable (half-written, truncated, damaged): the one before it is used, with a warning;
  - it is of another model or optimizer: `CheckpointMismatch`;
  - it is the last one and unreadable: `UnreadableCheckpoints`. A run never starts over silently.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
import math
from typing import Any, NamedTuple
import zlib

from absl import logging
from etils import epath
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from crossattn_jax.parallel import parameters
from crossattn_jax.training import files, fingerprints, messages, save_barrier

_STATE = 'state'
_METADATA = 'metadata'
_STEP_NAMES = ocp.path.step.standard_name_format()
_TEMPORARY = '.orbax-checkpoint-tmp'
_UNREADABLE = '.unreadable'
_SHOWN_DIFFERENCES = 5
# Of a config: which examples a step sees. With others the number of a step means something else.
_STREAM_KEYS = (
  'batch_size',
  'seed',
  'dataset.name',
  'dataset.train_split',
  'dataset.shuffle',
  'dataset.repeated_augmentation',
)


class CheckpointMismatch(ValueError):
  """A checkpoint holds another model, optimizer or precision than the run expects."""


class UnreadableCheckpoints(OSError):
  """There are checkpoints, but none that was asked for can be read."""


class Restored(NamedTuple):
  """What a checkpoint gives back.

  Attributes:
    state: arrays in the structure, dtypes and shardings that were asked for.
    step: of the checkpoint.
  """

  state: Any
  step: int


class Checkpointer:
  """Saves and restores the checkpoints in one folder.

  With several processes every one of them makes the same calls.

  Attributes:
    directory: of all checkpoints of a run.
    best_metric: that decides which of them is best.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    keep_last: int = 2,
    keep_best: int = 0,
    best_metric: str | None = None,
    best_mode: str = 'max',
  ):
    """Looks at nothing yet: the folder is made by the first `save`.

    Args:
      directory: of all checkpoints of a run.
      keep_last: how many of the newest checkpoints are kept.
      keep_best: how many of the best by `best_metric` are kept besides.
      best_metric: among the metrics given to `add_metrics`; checkpoints without it, or where it is
        not finite, are not candidates.
      best_mode: 'max' or 'min'.

    Raises:
      ValueError: an argument is out of range, or `keep_best` lacks a metric.
    """
    if keep_last < 1 or keep_best < 0:
      raise ValueError(
        f'keep_last={keep_last} must be positive and keep_best={keep_best} not negative'
      )
    if best_mode not in ('max', 'min'):
      raise ValueError(f"best_mode={best_mode!r} must be 'max' or 'min'")
    if keep_best and best_metric is None:
      raise ValueError(f'keep_best={keep_best} needs best_metric, the name of a metric')
    self.directory = epath.Path(directory).absolute()
    self._keep_last = keep_last
    self._keep_best = keep_best
    self.best_metric = best_metric
    self._best_mode = best_mode
    self._metrics: dict[int, dict[str, float]] = {}
    self._manager: ocp.CheckpointManager | None = None
    self._barrier = save_barrier.SaveBarrier()

  def save(self, step: int, state: Any, config: ml_collections.ConfigDict | None = None) -> bool:
    """Starts saving; returns when the arrays may be donated, before they are on disk.

    A checkpoint appears under its name only when it is complete, and older ones are removed only
    then. Waits for the save before it.

    Args:
      step: that the state has completed.
      state: pytree of `jax.Array`s; typed PRNG keys are fine.
      config: of the run, to recognise it by.

    Returns:
      False if there is a checkpoint of this step already, which is kept as it is.
    """
    manager = self._open()
    if step in manager.all_steps():
      return False
    leaves = parameters.leaves_by_path(state)
    metadata = {
      'step': step,
      'arrays': _describe(leaves),
      'fingerprints': fingerprints.by_path(leaves),
      'key_implementations': {
        path: str(jax.random.key_impl(leaf))
        for path, leaf in leaves.items()
        if fingerprints.is_key(leaf)
      },
      'metrics': {},
      'config': _plain(config),
    }
    self._metrics[step] = {}
    arrays = {path: fingerprints.raw(leaf) for path, leaf in leaves.items()}
    return manager.save(
      step,
      args=ocp.args.Composite(
        **{
          _STATE: ocp.args.PyTreeSave(_nested(arrays)),
          _METADATA: ocp.args.JsonSave(_with_checksum(metadata)),
        }
      ),
      force=True,
    )

  def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of an evaluation to the checkpoint of its step, which may be the best now.

    Waits until the checkpoint is on disk.

    Args:
      step: of a checkpoint.
      metrics: of its evaluation.

    Raises:
      ValueError: `metrics` lacks the metric that decides which checkpoint is best.
    """
    if self.best_metric is not None and self.best_metric not in metrics:
      raise ValueError(
        f'checkpoint.best_metric={self.best_metric!r} is not among the metrics: '
        f'{", ".join(sorted(metrics))}'
      )
    steps = self.all_steps()
    self._metrics[step] = {name: float(value) for name, value in metrics.items()}
    if jax.process_index() == 0:
      path = self.directory / str(step)
      metadata = _read_metadata(path) | {'metrics': self._metrics[step]}
      file = path / _METADATA / _METADATA
      files.replace_text(file, json.dumps(_with_checksum(metadata)))
    for surplus in set(steps) - self._preserved(steps):
      self._open().delete(surplus)

  def restore(
    self, abstract_state: Any, config: ml_collections.ConfigDict | None = None
  ) -> Restored | None:
    """Restores the newest readable checkpoint, to continue the run.

    Unreadable newer ones are renamed to `<step>.unreadable`, so that the run can save these steps
    again; nothing is deleted.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct`s with shardings, or arrays like them; one
        without a sharding goes to the first device. Must have exactly the checkpoint's arrays. The
        shardings need not be those it was saved from.
      config: of the run: its `model.name` and what says which examples a step sees must be the
        checkpoint's, other differences are logged.

    Returns:
      None if the folder has no complete checkpoint.

    Raises:
      CheckpointMismatch: the newest readable checkpoint is of another model or optimizer, or of a
        run over other examples, as with another batch size.
      UnreadableCheckpoints: there are checkpoints, but none is readable.
    """
    steps = self.all_steps()
    self._warn_of_unfinished(steps)
    restored = self._restore_first(steps[::-1], abstract_state, config, partial=False)
    if restored is not None:
      self._set_aside([step for step in steps if step > restored.step])
    return restored

  def restore_partial(
    self,
    abstract_state: Any,
    which: str | int = 'latest',
    config: ml_collections.ConfigDict | None = None,
  ) -> Restored:
    """Restores some arrays, such as the parameters alone, to evaluate; changes nothing on disk.

    Args:
      abstract_state: as in `restore`, but the checkpoint may hold more: leave out what is not
        wanted, with `state.replace(opt_state=None)` or `{'params': ...}`. Or a function that
        returns it from what the checkpoint holds: [dtype, shape] by path.
      which: 'latest', 'best' or a step. Of the first two an unreadable one is skipped with a
        warning for the next; a given step is not.
      config: as in `restore`.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      CheckpointMismatch: as in `restore`.
      UnreadableCheckpoints: as in `restore`.
    """
    steps = self.all_steps()
    if not steps:
      raise FileNotFoundError(f'no checkpoint in {self.directory}; train first')
    if which == 'latest':
      candidates = steps[::-1]
    elif which == 'best':
      candidates = self._by_quality(steps)[::-1]
      if not candidates:
        raise FileNotFoundError(
          f'no checkpoint in {self.directory} has the metric {self.best_metric!r}; use '
          f"'latest' or one of the steps {steps}"
        )
    elif which in steps:
      candidates = [int(which)]
    else:
      raise FileNotFoundError(
        f"no checkpoint {which!r} in {self.directory}; there are 'latest', 'best' and {steps}"
      )
    return self._restore_first(candidates, abstract_state, config, partial=True)

  def metrics(self, step: int) -> dict[str, float]:
    """Returns the metrics of a checkpoint's evaluation; none if there was no evaluation."""
    if step not in self._metrics:
      try:
        self._metrics[step] = _read_metadata(self.directory / str(step))['metrics']
      except Exception:  # Whoever restores it says what is wrong with it.
        self._metrics[step] = {}
    return self._metrics[step]

  def best_step(self) -> int | None:
    """Returns the step of the best checkpoint by `best_metric`."""
    return next(reversed(self._by_quality(self.all_steps())), None)

  def all_steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints, readable or not, in increasing order."""
    self.wait()
    return _of_first_process(find_steps(self.directory))

  def latest_step(self) -> int | None:
    """Returns the step of the newest complete checkpoint."""
    return max(self.all_steps(), default=None)

  def check(self) -> None:
    """Raises if the save under way has failed in this process; does not wait for it."""
    if self._barrier.failed:
      self.wait()

  def wait(self) -> None:
    """Waits until what was saved is on disk; raises if that failed."""
    if self._manager is not None:
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then releases threads; the object can be used again."""
    if self._manager is not None:
      self._manager.close()
      self._manager = None

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=_Preservation(self._preserved),
          async_options=ocp.AsyncOptions(barrier_sync_fn=self._barrier),
          # What a killed run left half-written; `restore` has warned of it.
          cleanup_tmp_directories=True,
          lightweight_initialize=True,
          save_root_metadata=False,
        ),
      )
    return self._manager

  def _preserved(self, steps: Sequence[int]) -> set[int]:
    best = self._by_quality(steps)[-self._keep_best :] if self._keep_best else []
    return {*sorted(steps)[-self._keep_last :], *best}

  def _by_quality(self, steps: Iterable[int]) -> list[int]:
    """Returns those steps that have the metric, the best last; of equals the newest is better."""
    sign = 1 if self._best_mode == 'max' else -1
    values = {step: self.metrics(step).get(self.best_metric, math.nan) for step in steps}
    candidates = [step for step, value in values.items() if math.isfinite(value)]
    return sorted(candidates, key=lambda step: (sign * values[step], step))

  def _restore_first(
    self,
    steps: Sequence[int],
    abstract_state: Any,
    config: ml_collections.ConfigDict | None,
    partial: bool,
  ) -> Restored | None:
    """Restores the first readable one of `steps`; None if there are none at all."""
    reasons = []
    for step in steps:
      path = self.directory / str(step)
      metadata, reason = _attempt(lambda path=path: _read_metadata(path))
      if reason is None:
        abstract = abstract_state
        if callable(abstract):
          abstract = abstract(metadata['arrays'])
        _check_match(path, metadata, abstract, config, partial)
        if not partial:
          _check_stream(path, metadata, config)
        state, reason = _attempt(
          lambda path=path, metadata=metadata, abstract=abstract: _read_state(
            path, metadata, abstract
          )
        )
      if reason is None:
        reason = _damage(metadata, state)
      if reason is None:
        _warn_of_config(path, metadata, config)
        logging.info('restored checkpoint %s', path)
        return Restored(state, step)
      reasons.append(f'{path}: {reason}')
      logging.warning('skipping unreadable checkpoint %s', reasons[-1])
    if reasons:
      raise UnreadableCheckpoints(
        'none of these checkpoints can be read:\n  '
        + '\n  '.join(reasons)
        + '\nRestore them from a copy, or move them away to start from scratch.'
      )
    return None

  def _warn_of_unfinished(self, steps: Sequence[int]) -> None:
    for path in self.directory.iterdir() if self.directory.exists() else ():
      # A step's own name without its commit marker is how object stores hold unfinished ones.
      if _TEMPORARY in path.name or (path.name.isdigit() and int(path.name) not in steps):
        logging.warning('skipping checkpoint %s: the run ended while it was being written', path)

  def _set_aside(self, steps: Iterable[int]) -> None:
    if jax.process_index() == 0:
      for step in steps:
        target, copies = self.directory / f'{step}{_UNREADABLE}', 1
        while target.exists():
          copies += 1
          target = self.directory / f'{step}{_UNREADABLE}-{copies}'
        (self.directory / str(step)).rename(target)
        logging.warning('renamed the unreadable checkpoint %d to %s', step, target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('crossattn_jax.training.checkpoints')
    if self._manager is not None:
      self._manager.reload()


def find_steps(directory: epath.Path) -> list[int]:
  """Returns the steps of the complete checkpoints in a folder, as this process sees it."""
  found = _STEP_NAMES.find_all(directory) if directory.exists() else ()
  return sorted(checkpoint.step for checkpoint in found)


class _Preservation:
  """Adapts a function from all steps to those that are kept to Orbax's policy."""

  def __init__(self, preserved: Callable[[Sequence[int]], set[int]]):
    self._preserved = preserved

  def should_preserve(
    self,
    checkpoints: Sequence[ocp.checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: ocp.checkpoint_managers.PreservationContext,
  ) -> Sequence[bool]:
    del context
    kept = self._preserved([checkpoint.step for checkpoint in checkpoints])
    return [checkpoint.step in kept for checkpoint in checkpoints]


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the leaves as nested dicts: a layout that knows no class of this library or Optax."""
  return traverse_util.unflatten_dict(leaves, sep='/')


def _describe(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
  """Returns [dtype, shape] by path, as JSON holds it."""
  return {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves.items()}


def _checksum(metadata: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _with_checksum(metadata: Mapping[str, Any]) -> dict[str, Any]:
  metadata = json.loads(json.dumps(metadata))  # The checksum is of what will be read back.
  return {'checksum': _checksum(metadata), **metadata}


def _plain(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """Returns a config as JSON gives it back: tuples are lists."""
  if config is None:
    return None
  return json.loads(ml_collections.ConfigDict(config).to_json_best_effort())


def _of_first_process(steps: list[int]) -> list[int]:
  """Returns the first process' steps: on a network file system the processes see different ones."""
  if jax.process_count() == 1:
    return steps
  count = multihost_utils.broadcast_one_to_all(np.asarray(len(steps)))
  own = np.resize(np.asarray([*steps, 0]), int(count))
  return multihost_utils.broadcast_one_to_all(own).tolist()


def _attempt(read: Callable[[], Any]) -> tuple[Any, str | None]:
  """Calls `read`; returns its result, or why some process could not."""
  result, reason = None, None
  try:
    result = read()
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise  # The checkpoint is not to blame.
  except Exception as error:  # Orbax and TensorStore do not say which they raise.
    reason = f'{type(error).__name__}: {error}'.partition('\n')[0]
  if jax.process_count() > 1:
    failed = np.flatnonzero(multihost_utils.process_allgather(np.asarray(reason is not None)))
    if failed.size and reason is None:
      reason = f'process {failed[0]} could not read it'
  return result, reason


def _read_metadata(path: epath.Path) -> dict[str, Any]:
  metadata = ocp.JsonCheckpointHandler().restore(path / _METADATA)
  checksum = metadata.pop('checksum')
  if checksum != _checksum(metadata):
    raise ValueError(f'{_METADATA} was changed after it was written')
  return metadata


def _read_state(path: epath.Path, metadata: Mapping[str, Any], abstract_state: Any) -> Any:
  leaves = parameters.leaves_by_path(abstract_state)
  restore_args = {
    key: ocp.ArrayRestoreArgs(
      sharding=leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    )
    for key, leaf in leaves.items()
  }
  arrays = parameters.leaves_by_path(
    ocp.PyTreeCheckpointHandler().restore(
      path / _STATE,
      args=ocp.args.PyTreeRestore(
        item=_nested(dict.fromkeys(leaves, 0)),
        restore_args=_nested(restore_args),
        partial_restore=True,
      ),
    )
  )
  for key, implementation in metadata['key_implementations'].items():
    if key in arrays:
      arrays[key] = jax.random.wrap_key_data(arrays[key], impl=implementation)
  return jax.tree.unflatten(jax.tree.structure(abstract_state), [arrays[key] for key in leaves])


def _damage(metadata: Mapping[str, Any], state: Any) -> str | None:
  """Returns which arrays are not what was saved; None if all are."""
  damaged = [
    path
    for path, fingerprint in fingerprints.by_path(parameters.leaves_by_path(state)).items()
    if fingerprint != metadata['fingerprints'][path]
  ]
  if not damaged:
    return None
  return f'{len(damaged)} arrays differ from what was saved, the first is {damaged[0]}'


def _check_match(
  path: epath.Path,
  metadata: Mapping[str, Any],
  abstract_state: Any,
  config: ml_collections.ConfigDict | None,
  partial: bool,
) -> None:
  """Raises CheckpointMismatch unless the checkpoint has the arrays that are asked for."""
  differences = []
  names = [_flat(c).get('model.name') for c in (metadata['config'], _plain(config))]
  # A head, which earlier versions did not name, is told by its arrays.
  if None not in names and names[0].partition('+')[0] != names[1].partition('+')[0]:
    differences.append(f'model.name: {names[0]!r} in the checkpoint, {names[1]!r} here')
  saved, wanted = metadata['arrays'], _describe(parameters.leaves_by_path(abstract_state))
  for key in wanted if partial else {**wanted, **saved}:
    if saved.get(key) != wanted.get(key):
      there, here = (_format(arrays.get(key)) for arrays in (saved, wanted))
      differences.append(f'{key}: {there} in the checkpoint, {here} here')
  if not differences:
    return
  hidden = len(differences) - _SHOWN_DIFFERENCES
  shown = differences[:_SHOWN_DIFFERENCES] + ([f'and {hidden} more'] if hidden > 0 else [])
  raise CheckpointMismatch(
    f'checkpoint {path} is of another model, optimizer or precision:\n  '
    + '\n  '.join(shown)
    + '\nUse the config that wrote it, or another workdir.'
  )


def _check_stream(
  path: epath.Path, metadata: Mapping[str, Any], config: ml_collections.ConfigDict | None
) -> None:
  """Raises CheckpointMismatch where the steps of the checkpoint saw other examples."""
  there, here = _flat(metadata['config']), _flat(_plain(config))
  # A key that one of them lacks came later.
  known = [key for key in _STREAM_KEYS if key in there and key in here]
  changed = [key for key in known if there[key] != here[key]]
  if not changed:
    return
  workdir = path.parent.parent
  another = [f'--config={workdir}/config.json'] if messages.config_is_of_workdir() else []
  another += ['--workdir=ANOTHER_WORKDIR', f'--config.weights={workdir}']
  hint = '; config.accumulation_steps takes a batch in pieces' if 'batch_size' in changed else ''
  raise CheckpointMismatch(
    f'step {metadata["step"]} of {workdir} stands for other examples than it would here:\n  '
    + '\n  '.join(f'{k}: {there[k]!r} in the checkpoint, {here[k]!r} here' for k in changed)
    + f'\nContinue with what it was{hint}:\n  '
    + messages.this_command(*(f'--config.{key}={there[key]}' for key in changed))
    + '\nor begin another run from its weights:\n  '
    + messages.this_command(*another)
  )


def _format(description: Sequence[Any] | None) -> str:
  if description is None:
    return 'absent'
  dtype, shape = description
  return f'{dtype}[{",".join(map(str, shape))}]'


def _warn_of_config(
  path: epath.Path, metadata: Mapping[str, Any], config: ml_collections.ConfigDict | None
) -> None:
  """Logs the keys that have another value in the checkpoint's config; not those that came later."""
  if metadata['config'] is None or config is None:
    return
  there, here = _flat(metadata['config']), _flat(_plain(config))
  here.pop('weights', None)  # With which a run began, and which it does not need again.
  here.pop('checkpoint.use', None)  # Of the caller, who has this one now.
  changed = [
    f'{key}: {there[key]!r} in the checkpoint, {here[key]!r} here'
    for key in here
    # What is searched for belongs to a call, not to a run.
    if key in there and there[key] != here[key] and not key.startswith('predict.')
  ]
  if changed:
    logging.warning('config differs from that of checkpoint %s:\n  %s', path, '\n  '.join(changed))


def _flat(config: dict[str, Any] | None) -> dict[str, Any]:
  """Returns the values of nested sections by dotted key."""
  return traverse_util.flatten_dict(config or {}, sep='.')
