r"""The compile reports of docs/measurements/tpu.md: CrossViT-18-dagger-408 on three TPU slices.

  python -m benchmarks.tpu_reports --json reports.json [v5e:4x4/fsdp ...]

Each report is `main.py --mode=compile` in a process of its own, one after the other; a report that
is in the file already is not made again. Prints the table of
docs/measurements/tpu.md. Needs no TPU, but libtpu, and minutes per report.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = 'configs/crossvit_imagenet.py:crossvit_18_dagger_408'

# Name -> topology, images per chip, keys of the config.
REPORTS = {
  'v5e:4x4/data': ('v5e:4x4', 64, {}),
  'v5e:4x4/data/remat': ('v5e:4x4', 64, {'model.remat': True}),
  'v5e:4x4/data/small': ('v5e:4x4', 16, {}),
  'v5e:4x4/fsdp/remat': ('v5e:4x4', 64, {'model.remat': True, 'mesh.fsdp': 16}),
  'v5e:4x4/tensor/remat': ('v5e:4x4', 64, {'model.remat': True, 'mesh.tensor': 2}),
  'v5e:16x16/data/remat': ('v5e:16x16', 64, {'model.remat': True}),
  'v5e:16x16/fsdp/remat': ('v5e:16x16', 64, {'model.remat': True, 'mesh.fsdp': 16}),
  'v5p:4x4x4/data': ('v5p:4x4x4', 64, {}),
  'v5p:4x4x4/fsdp': ('v5p:4x4x4', 64, {'mesh.fsdp': 64}),
}


def command(name: str) -> list[str]:
  """The command line of a report."""
  topology, images_per_chip, keys = REPORTS[name]
  chips = 1
  for side in topology.split(':')[1].split('x'):
    chips *= int(side)
  keys = {'batch_size': images_per_chip * chips, **keys}
  return [
    'python',
    'main.py',
    '--mode=compile',
    f'--topology={topology}',
    f'--config={CONFIG}',
    *(f'--config.{key}={value}' for key, value in keys.items()),
  ]


def make(arguments: list[str]) -> dict:
  """The record of a report, or the error of a step that cannot be compiled.

  Args:
    arguments: the command line, 'python' first.
  """
  result = subprocess.run(
    [sys.executable, *arguments[1:]], cwd=ROOT, capture_output=True, text=True, check=False
  )
  if result.returncode:
    return {'error': result.stderr.splitlines()[-1]}
  return json.loads(result.stdout.splitlines()[-1])


def row(name: str, record: dict) -> str:
  """One row of the table, in Markdown."""
  topology, images_per_chip, keys = REPORTS[name]
  mesh = ', '.join(f'{key[5:]} {size}' for key, size in keys.items() if key.startswith('mesh.'))
  remat = 'on' if keys.get('model.remat') else 'off'
  head = f'| {topology} | {mesh or "data"} | {images_per_chip} | {remat} | '
  if 'error' in record:
    return f'{head}{record["error"]} |'
  memory, collectives = record['memory'], record['collectives']
  moved = sum(each['bytes'] for each in collectives.values())
  cells = (
    f'{memory["arguments"] / 2**20:.0f}',
    f'{memory["temporaries"] / 2**30:.2f}',
    f'{memory["total"] / 2**30:.2f} of {record["chip"]["hbm_bytes"] / 2**30:.0f}',
    f'{record["flops"] / 1e12:.2f}',
    f'{record["hbm_bytes"] / 2**30:.0f}',
    f'{moved / 2**20:.0f}',
    f'{record["step_seconds"] * 1e3:.0f} + {record["communication_seconds"] * 1e3:.1f}',
    f'{record["images_per_second"]:,.0f}',
    f'{record["mfu"]:.0%}',
    f'{record["compile_seconds"]:.0f}',
  )
  return head + ' | '.join(cells) + ' |'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='*', default=list(REPORTS), help='of reports; all by default')
  parser.add_argument('--json', type=pathlib.Path, required=True, help='where the records are')
  arguments = parser.parse_args()
  unknown = set(arguments.names) - set(REPORTS)
  if unknown:
    parser.error(f'unknown report {min(unknown)!r}; known: {", ".join(REPORTS)}')
  records = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
  for name in arguments.names:
    if name not in records:
      print(' '.join(command(name)), file=sys.stderr)
      records[name] = make(command(name))
      arguments.json.write_text(json.dumps(records, indent=1) + '\n')
  print(
    '| slice | mesh | images per chip | remat | state, MiB | temporaries, GiB | total, GiB | TFLOP '
    '| HBM traffic, GiB | collectives, MiB | step + communication, ms | images/s | MFU '
    '| compile, s |'
  )
  print('|' + '---|' * 14)
  for name in arguments.names:
    print(row(name, records[name]))


if __name__ == '__main__':
  main()
