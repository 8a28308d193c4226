r"""Recommends `dataset.buckets`: to how many rows scenes of about one size are padded.

  python -m crossattn_jax.data.scene_points.buckets --name=scannet --data_dir=DIR --voxel_size=0.02

Each scene is measured about as large as training may make it. For every number of buckets up to
four it prints those with the least padding, the share of rows that is padding, and how many of the
scenes are too large, which training cuts and evaluation gives a size of their own.
"""

import argparse
from collections.abc import Sequence
import itertools
import sys

import numpy as np
import rich.console
import rich.progress

from crossattn_jax.data.scene_points import batches, sources, tables

_CANDIDATES = 24


def recommend(rows: np.ndarray, count: int, percentile: float = 100.0) -> list[tuple[int, ...]]:
  """The buckets with the least padding.

  Args:
    rows: `[scenes, levels]`, of each scene.
    count: of buckets.
    percentile: of the scenes that the largest one holds.

  Returns:
    At most `count` buckets, ascending.
  """
  rows = rows[np.argsort(rows[:, 0], kind='stable')]
  # A bucket holds the scenes up to some place in the order of their sizes.
  most = np.maximum.accumulate(rows, axis=0)
  last = max(int(np.ceil(len(rows) * percentile / 100)) - 1, 0)
  places = np.unique(np.linspace(0, last, _CANDIDATES).astype(int)).tolist()
  held = most.sum(axis=1)

  def padded(ends: Sequence[int]) -> int:
    sizes = np.diff([-1, *ends])
    return sum(size * held[end] for size, end in zip(sizes, ends, strict=True))

  chosen = min(
    ((*ends, last) for ends in itertools.combinations(places[:-1], min(count, len(places)) - 1)),
    key=padded,
  )
  return sorted({tables.rounded_up(most[end].tolist()) for end in chosen})


def waste(rows: np.ndarray, buckets: Sequence[Sequence[int]]) -> tuple[float, float]:
  """The share of rows that is padding, and that of scenes that no bucket holds."""
  fits = (rows[:, None] <= np.asarray(buckets)).all(axis=-1)
  index = np.where(fits.any(axis=1), fits.argmax(axis=1), len(buckets) - 1)
  padded = np.asarray(buckets)[index]
  return float(1 - np.minimum(rows, padded).sum() / padded.sum()), float(
    1 - fits.any(axis=1).mean()
  )


def main(args: Sequence[str] | None = None) -> None:
  """The command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--name', required=True, help=', '.join(sources.KNOWN))
  parser.add_argument('--data_dir', help='folder of the data set')
  parser.add_argument('--split', help='by default that which a run would train on')
  parser.add_argument('--voxel_size', type=float, default=0.05, help='metres')
  parser.add_argument('--percentile', type=float, default=99.0, help='that the largest one holds')
  parser.add_argument('--scenes', type=int, default=400, help='that are measured, at most')
  options = parser.parse_args(args)
  config = batches.default_config()
  config.update(name=options.name, data_dir=options.data_dir, voxel_size=options.voxel_size)
  try:
    if options.split is None:
      sources.complete(config)
    examples = batches.SegmentationExamples(config, options.split or config.train_split)
    count = len(examples.source)
    chosen = np.unique(np.linspace(0, count - 1, min(count, options.scenes)).astype(int)).tolist()
    console = rich.console.Console(stderr=True)
    found = batches.in_threads(examples.widest_rows, chosen)
    tracked = rich.progress.track(found, 'scenes', len(chosen), console=console)
    rows = np.array([each for each in tracked if each is not None])
  except ValueError as error:
    sys.exit(f'error: {error}')
  print(f'{len(rows)} scenes, voxels at each level:')
  for share in (5, 50, 95, 100):
    print(f'  {share:3} %: {tuple(np.percentile(rows, share, axis=0).astype(int).tolist())}')
  for count in range(1, batches.MOST_BUCKETS + 1):
    buckets = recommend(rows, count, options.percentile)
    padding, cut = waste(rows, buckets)
    print(f'padding {padding:5.1%}, too large {cut:5.1%}: dataset.buckets={tuple(buckets)}')


if __name__ == '__main__':
  main()
