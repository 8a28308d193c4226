r"""Static estimates for every variant of every classification system on a TPU slice.

  python -m benchmarks.tpu_models ['swiftformer_*' ...]
  python -m benchmarks.tpu_models --table

Compiles the training step of each variant's official recipe (`main.py --mode=compile`, a process of
its own), with blocks as loops and rematerialised where the model offers that. A report that is in
the file already, with equal settings, is not made again. Prints the table of
docs/measurements/tpu.md; with `--table` only that, of the reports in the file. Needs no TPU, but
libtpu, and 4 to 20 minutes of processor time per variant.
"""

import argparse
import fnmatch
import json
import math
import pathlib
import sys

from benchmarks import tpu_reports
from crossattn_jax import models

ROOT = pathlib.Path(__file__).parents[1]
RECORDS = ROOT / 'benchmarks' / 'tpu_models.json'
HEADER = (
  'model',
  'parameters, M',
  'needed per image, GFLOP',
  'memory, GiB',
  'step, ms',
  'of it kernels',
  'images/s',
  'MFU',
)


def recipes() -> dict[str, str]:
  """Config of each variant's recipe, by name. Of names for the same model the last one."""
  found, names = {}, {}
  for path in sorted((ROOT / 'configs').glob('*_imagenet.py')):
    for name in models.list_models(f'{path.stem.removesuffix("_imagenet")}_*'):
      audio = name.endswith('_audio')
      found[name] = 'configs/mmvit_audioset.py' if audio else f'configs/{path.name}:{name}'
      names[models.create_model(name)] = name
  return {name: found[name] for name in names.values()}


def command(name: str, topology: str, images_per_chip: int, effort: float) -> list[str]:
  """The command line of a report."""
  chips = math.prod(int(side) for side in topology.split(':')[1].split('x'))
  keys = {'batch_size': images_per_chip * chips}
  fields = models.model_config(name)
  keys |= {f'model.{field}': True for field in ('remat', 'scan_blocks') if field in fields}
  return [
    'python',
    'main.py',
    '--mode=compile',
    f'--topology={topology}',
    f'--compile_effort={effort:g}',
    f'--config={recipes()[name]}',
    *(f'--config.{key}={value}' for key, value in keys.items()),
  ]


def row(name: str, record: dict) -> str:
  """One row of the table, in Markdown."""
  if 'error' in record:
    return f'| {name} | {record["error"]} |'
  kernels = f'{record["kernel_seconds"] * 1e3:.1f}' if record['kernels'] else ''
  cells = (
    name,
    f'{record["parameters"] / 1e6:.1f}',
    f'{record["model_flops"] / record["batch_size"] / 1e9:.1f}',
    f'{record["memory"]["total"] / 2**30:.1f}',
    f'{record["step_seconds"] * 1e3:.0f}',
    kernels,
    f'{record["images_per_second"]:,.0f}',
    f'{record["mfu"] * 100:.1f} %',
  )
  return f'| {" | ".join(cells)} |'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('patterns', nargs='*', default=['*'], help='of names; all by default')
  parser.add_argument('--json', type=pathlib.Path, default=RECORDS, help='where the records are')
  parser.add_argument('--table', action='store_true', help='compiles nothing')
  parser.add_argument('--topology', default='v5e:4x4')
  parser.add_argument('--images_per_chip', type=int, default=64)
  parser.add_argument('--effort', type=float, default=0.0, help='see main.py --compile_effort')
  arguments = parser.parse_args()
  names = [
    name
    for name in recipes()
    if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.patterns)
  ]
  if not names:
    parser.error(f'no variant matches {arguments.patterns}; known: {", ".join(recipes())}')
  records = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
  if arguments.table:
    names = [name for name in names if name in records]
  for name in [] if arguments.table else names:
    line = command(name, arguments.topology, arguments.images_per_chip, arguments.effort)
    if records.get(name, {}).get('command') != line:
      print(' '.join(line), file=sys.stderr)
      records[name] = tpu_reports.make(line) | {'command': line}
      arguments.json.write_text(json.dumps(records, indent=1) + '\n')
  print(f'| {" | ".join(HEADER)} |')
  print('|---' * len(HEADER) + '|')
  for name in names:
    print(row(name, records[name]))


if __name__ == '__main__':
  main()
