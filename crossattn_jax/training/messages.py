"""What a run says to the person at the terminal, and commands to paste that go on from there."""

import pathlib
import re
import shlex
import sys

from etils import epath
import jax


def say(*messages: str) -> None:
  """Tells the person at the terminal, a line each, once for all processes."""
  if messages and jax.process_index() == 0:
    print(*messages, sep='\n', file=sys.stderr, flush=True)


def this_command(*flags: str) -> str:
  """The command that this program was started with.

  Args:
    *flags: further ones, which win over its own.

  Returns:
    One line for a shell. In an interactive session, where there is no such command, words.
  """
  if hasattr(sys, 'ps1'):
    return ' '.join(['the same call', *flags])
  return shlex.join([*sys.orig_argv, *flags])


def config_is_of_workdir() -> bool:
  """Whether `this_command` leaves the config to the workdir, and so needs one for another."""
  return not any(re.match(r'--?config(=|$)', argument) for argument in sys.orig_argv)


def program(mode: str) -> list[str]:
  """The words that start this program in a mode, as the person at the terminal started it."""
  if pathlib.Path(sys.argv[0]).stem == 'crossattn':
    return ['crossattn', mode]
  return ['python', 'main.py', *([] if mode == 'train' else [f'--mode={mode}'])]


def command_for(mode: str, workdir: epath.PathLike, *flags: str) -> str:
  """The command that uses what a run has learnt.

  Args:
    mode: of `main.py`.
    workdir: of the run.
    *flags: further ones.

  Returns:
    One line for a shell.
  """
  return shlex.join([*program(mode), f'--workdir={workdir}', *flags])
