"""All processes of a run run the same: config, packages and this library's code."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
import socket

from flax import traverse_util
import jax
import ml_collections

from crossattn_jax import config_errors, parallel

# What numbers, checkpoints and the order of examples depend on.
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
_ROOT = pathlib.Path(__file__).parents[1]
# Differences in a message; one host that is set up differently may have hundreds.
_SHOWN = 5


def check(config: ml_collections.ConfigDict) -> None:
  """Compares what the processes run; collective, and with one process nothing.

  Raises:
    ConfigError: in every process, where one differs from process 0. It names the processes and
      what differs.
  """
  if jax.process_count() == 1:
    return
  own = _facts(config) | {'host': socket.gethostname()}
  first, *others = [json.loads(text) for text in parallel.gather_texts(json.dumps(own))]
  found = []
  for index, other in enumerate(others, 1):
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    found += [
      f'  {name}: {first.get(name)} in process 0 on {first["host"]}, {other.get(name)} in process '
      f'{index} on {other["host"]}'
      for name in names
      if name != 'host'
    ]
  if found:
    more = len(found) - _SHOWN
    raise config_errors.ConfigError(
      '\n'.join(
        [
          'the processes of this run are not the same. Give all the same command and install the '
          'same on all:',
          *found[:_SHOWN],
          *([f'  and {more} more'] if more > 0 else []),
        ]
      )
    )


def _facts(config: ml_collections.ConfigDict) -> dict[str, str]:
  """What must be the same everywhere, by a name that a person knows."""
  keys = traverse_util.flatten_dict(json.loads(config.to_json_best_effort()), sep='.')
  return {
    **{f'config.{name}': json.dumps(value) for name, value in keys.items()},
    'Python': '.'.join(platform.python_version_tuple()[:2]),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
    'code of crossattn_jax': _code(),
  }


def _code() -> str:
  """Eight digits for the bytes of all modules."""
  digest = hashlib.sha256()
  for path in sorted(_ROOT.rglob('*.py')):
    digest.update(path.relative_to(_ROOT).as_posix().encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:8]
