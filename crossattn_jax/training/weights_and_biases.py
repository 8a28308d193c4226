"""Metrics and pictures of a run in Weights & Biases (extra `wandb`)."""

from collections.abc import Mapping
import importlib.util
import json
import os
import secrets
from typing import Any

from etils import epath
import ml_collections
from PIL import Image

from crossattn_jax import config_errors
from crossattn_jax.training import files

# Which run of the project continues this workdir.
_FILE = 'wandb.json'


def check(project: str | None) -> None:
  """Refuses a project where the package is missing.

  Raises:
    ConfigError: names the extra.
  """
  if project and importlib.util.find_spec('wandb') is None:
    raise config_errors.ConfigError(
      f'config.logging.wandb={project!r} needs the package wandb: pip install '
      "'crossattn_jax[wandb]', or set config.logging.wandb=None"
    )


class Tracker:
  """A run of a project; that of the workdir goes on where it has one.

  The environment says where: WANDB_MODE=offline writes into the workdir, `wandb sync` uploads that.
  """

  def __init__(self, project: str, workdir: epath.Path, config: ml_collections.ConfigDict):
    """Begins the run, or goes on with it.

    Args:
      project: 'PROJECT' or 'ENTITY/PROJECT'.
      workdir: of the run.
      config: of the experiment.

    Raises:
      ConfigError: wandb refuses, as without a key.
    """
    check(project)
    import wandb

    self._image = wandb.Image
    entity, _, name = project.rpartition('/')
    local = '://' not in os.fspath(workdir)
    try:
      self._run = wandb.init(
        project=name,
        entity=entity or None,
        id=_run_id(workdir, project),
        name=workdir.name,
        dir=os.fspath(workdir) if local else None,
        config=config.to_dict(),
        resume='allow',
      )
    except wandb.Error as error:
      reason = str(error).rstrip('.')
      raise config_errors.ConfigError(
        f'config.logging.wandb={project!r}: {reason}; `wandb login` once, set WANDB_MODE=offline, '
        'or config.logging.wandb=None'
      ) from error
    # Steps after the last checkpoint come once more after a restart.
    self._run.define_metric('*', step_metric='step')

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Sends metrics of a step."""
    self._run.log({'step': step, **scalars})

  def write_picture(self, step: int, name: str, picture: Image.Image) -> None:
    """Sends a picture."""
    self._run.log({'step': step, f'pictures/{name}': self._image(picture)})

  def close(self) -> None:
    """Ends the run once all is sent."""
    self._run.finish()


def _run_id(workdir: epath.Path, project: str) -> str:
  """That of the workdir's run in a project; a new one is kept there."""
  path = workdir / _FILE
  known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
  if project not in known:
    known[project] = secrets.token_hex(4)
    files.replace_text(path, json.dumps(known) + '\n')
  return known[project]
