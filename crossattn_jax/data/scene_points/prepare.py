r"""Prepares a data set of point clouds: a file for each scene, which is quick to read.

  python -m crossattn_jax.data.scene_points.prepare --name=scannet --data_dir=SCANNET --output=DIR

Points, colours, labels, supervoxels (grown where there are none) and photographs, resized, are in
`DIR/SPLIT/SCENE.npz`; a table of tags is copied. DIR is then a `point_folder`, and the `data_dir`
of the data set itself. It may be stopped at any time: the same command continues.
"""

import argparse
from collections.abc import Iterator, Sequence
import concurrent.futures
import io
import os
import pathlib
import shutil
import sys

import rich.console
import rich.progress

from crossattn_jax.data import image_ops, pipeline, splits
from crossattn_jax.data.scene_points import batches, files, folder, sources
from crossattn_jax.geometry import supervoxels

_JPEG = {'format': 'jpeg', 'quality': 90}


def prepare(
  source: sources.PointSource, output: pathlib.Path, size: Sequence[int] | None, workers: int = 1
) -> list[str]:
  """Writes the scenes of a split that are not there yet, with a progress bar.

  Args:
    source: of the scenes.
    output: folder of the split.
    size: (height, width) of photographs; None: without them.
    workers: threads.

  Returns:
    A line for each scene that cannot be read.
  """
  missing = [index for index, key in enumerate(source.keys) if not _path(output, key).is_file()]
  failures = []
  pool = concurrent.futures.ThreadPoolExecutor(workers)
  try:
    tasks = {pool.submit(_write, source, index, output, size): index for index in missing}
    done = concurrent.futures.as_completed(tasks)
    console = rich.console.Console(stderr=True)
    for task in rich.progress.track(done, output.name, len(tasks), console=console):
      try:
        task.result()
      except pipeline.UnreadableError as error:
        failures.append(f'{source.keys[tasks[task]]}: {error}')
  finally:
    pool.shutdown(cancel_futures=True)
  return failures


def _path(output: pathlib.Path, key: str) -> pathlib.Path:
  return output / f'{key}.npz'


def _write(
  source: sources.PointSource, index: int, output: pathlib.Path, size: Sequence[int] | None
) -> None:
  scene = source.scene(index)
  if scene.supervoxels is None:
    scene = scene._replace(supervoxels=supervoxels.grow(scene.points, scene.colors))
  frames = () if size is None else _frames(source, index, size)
  files.write(_path(output, source.keys[index]), scene, frames)


def _frames(source: sources.PointSource, index: int, size: Sequence[int]) -> Iterator[bytes]:
  for number in range(source.views(index)):
    image = image_ops.resize(source.view(index, number), tuple(size), 'bilinear')
    file = io.BytesIO()
    image.save(file, **_JPEG)
    yield file.getvalue()


def _write_classes(output: pathlib.Path, class_names: Sequence[str]) -> None:
  """Writes the table of classes; raises ValueError where another one is there."""
  path = output / folder.CLASSES
  if path.is_file() and folder.class_names(output) != tuple(class_names):
    raise ValueError(f'{str(output)!r} has scenes of other classes ({path.name}): take another one')
  output.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(class_names) + '\n')


def _copy_tags(data_dir: str | None, output: pathlib.Path) -> None:
  """Copies what says of scenes without labels what they hold."""
  for name in folder.TAGS if data_dir else ():
    path = pathlib.Path(data_dir) / name
    if path.is_file():
      shutil.copyfile(path, output / name)


def main(args: Sequence[str] | None = None) -> int:
  """The command; returns 1 if scenes could not be read."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--name', required=True, help=', '.join(sources.KNOWN))
  parser.add_argument('--data_dir', help='folder of the data set')
  parser.add_argument('--output', required=True, type=pathlib.Path, help='folder that is written')
  parser.add_argument('--splits', help='train,val,test; by default those that a run would take')
  parser.add_argument(
    '--image_size', default='240,320', help='height,width of photographs; none leaves them out'
  )
  parser.add_argument('--workers', type=int, default=os.cpu_count(), help='threads')
  options = parser.parse_args(args)
  config = batches.default_config()
  config.name, config.data_dir = options.name, options.data_dir
  size = None if options.image_size == 'none' else [*map(int, options.image_size.split(','))]
  try:
    if options.splits is None:
      sources.complete(config)
    chosen = (options.splits or f'{config.train_split},{config.eval_split}').split(',')
    # Whole ones, of which a run may take shares then as before.
    chosen = dict.fromkeys(splits.FolderSplit.parse(split).name for split in chosen)
    opened = {split: sources.open_source(config, split) for split in chosen}
    _write_classes(options.output, next(iter(opened.values())).class_names)
    _copy_tags(options.data_dir, options.output)
    failures = []
    for split, source in opened.items():
      failures += prepare(source, options.output / split, size, options.workers)
  except ValueError as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit('stopped: the same command continues')
  for failure in failures:
    print(f'cannot read {failure}', file=sys.stderr)
  return int(bool(failures))


if __name__ == '__main__':
  sys.exit(main())
