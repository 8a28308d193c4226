"""Keeps compiled programs from one start to the next, in the user's cache folder."""

import pathlib

import jax

from crossattn_jax.conversion import published

_MOST_BYTES = 4 << 30
# Faster ones are compiled again; reading their files takes as long.
_LEAST_SECONDS = 0.2


def enable() -> pathlib.Path | None:
  """Turns jax's cache of compiled programs on, where nothing else was chosen.

  `JAX_COMPILATION_CACHE_DIR` chooses another folder, `JAX_ENABLE_COMPILATION_CACHE=false` none. Of
  those that are used least, files are deleted where all would take over 4 GiB.

  Returns:
    The folder; None where something else was chosen or the folder cannot be made.
  """
  chosen = jax.config.jax_compilation_cache_dir is not None
  if chosen or not jax.config.jax_enable_compilation_cache:
    return None
  folder = published.default_cache_dir() / 'programs'
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_compilation_cache_max_size', _MOST_BYTES)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _LEAST_SECONDS)
  return folder
