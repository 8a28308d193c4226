r"""Finds the settings of training steps that a TPU slice runs fastest, as its compiler estimates.

  nohup python -m benchmarks.tpu_models ['swiftformer_*' configs/ccnet_cityscapes.py ...] > log &
  python -m benchmarks.tpu_models --table

By default every variant's official recipe. The compiler (`main.py --mode=compile`, a process of
its own, at low priority) is given the settings one after the other, in the order of `search`: first
neither rematerialisation nor loops, then more images per chip while that is faster and memory
allows, and what saves memory only where it must. Every report is kept in a file; one that is there
with equal settings is not made again, so a search that was stopped goes on. Those of older code, or
of another compiler, are named; `--anew` makes them again. Prints the winners, the flags that set
them, what takes most of their time, and the table of docs/measurements/tpu.md; with `--table` only
that, of the reports in the file. Needs no TPU, but libtpu, and 4 to 30 minutes of processor time
per report.
"""

import argparse
import ast
from collections.abc import Callable, Iterator, Sequence
import datetime
import fnmatch
import functools
import hashlib
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import types
from typing import Any, NamedTuple

from crossattn_jax import models
from crossattn_jax.training.compile import aot

ROOT = pathlib.Path(__file__).parents[1]
RECORDS = ROOT / 'benchmarks' / 'tpu_models.json'
HEADER = (
  'model',
  'slice',
  'images a chip',
  'settings',
  'GFLOP an image',
  'memory, GiB',
  'step, ms',
  'images/s a chip',
  'MFU',
  'made',
)
# What is gained by less is not worth other settings.
_WORTH = 1.01
# Twice the images take a little less than twice the temporaries. The compiler refuses what does not
# fit, so a guess that is a little too large costs one compilation.
_OVER = 1.1
# Operations of a report that are kept.
_COSTLIEST = 20


class Setting(NamedTuple):
  """What a search may choose.

  Attributes:
    images: per chip.
    remat: whether blocks are computed again in the backward pass.
    loops: whether equal blocks are loops (`model.scan_blocks`).
    fsdp: chips that share one copy of the state.
  """

  images: int
  remat: bool = False
  loops: bool = False
  fsdp: int = 1

  def keys(self, chips: int) -> dict[str, Any]:
    """What it sets in a config, for so many chips."""
    keys = {
      'batch_size': self.images * chips,
      'model.remat': self.remat,
      'model.scan_blocks': self.loops,
    }
    return keys | ({'mesh.fsdp': self.fsdp} if self.fsdp > 1 else {})

  @property
  def words(self) -> str:
    """The settings but for the images."""
    words = ['remat'] * self.remat + ['loops'] * self.loops
    return ', '.join(words + [f'fsdp {self.fsdp}'] * (self.fsdp > 1)) or 'plain'


def search(
  report: Callable[[Setting], dict[str, Any]],
  images: int,
  chips: int,
  choices: Sequence[str],
  most: float = math.inf,
) -> None:
  """Asks for the reports that may be of the fastest setting, the likeliest first.

  Neither rematerialisation nor loops makes a step faster. So the plain step comes first: with more
  images per chip while those are faster, or, where it does not fit, with fewer, against the
  rematerialised one. Loops are for steps that the compiler did not finish in time; splitting the
  state is for those of which one image is too much.

  Args:
    report: makes the report of a setting, or has it already.
    images: per chip, to begin with.
    chips: of the slice.
    choices: fields of the model's config: it may have no `remat` or `scan_blocks`.
    most: images per chip that are tried.
  """
  record = report(Setting(images))
  if 'error' not in record:
    memory = record['memory']
    needed = memory['arguments'] + 2 * (memory['total'] - memory['arguments'])
    if 2 * images <= most and needed <= _OVER * record['chip']['hbm_bytes']:
      larger = report(Setting(2 * images))
      if speed(larger) > _WORTH * speed(record):
        search(report, 2 * images, chips, choices, most)
    return

  def fewer(setting: Setting) -> bool:
    """Halves the images until the step fits; says whether it does."""
    while setting.images > 1:
      setting = setting._replace(images=setting.images // 2)
      if 'error' not in report(setting):
        return True
    return False

  unfinished = record.get('unfinished', False)
  saving = Setting(images, 'remat' in choices, unfinished and 'scan_blocks' in choices)
  fits = saving != Setting(images) and 'error' not in report(saving)
  # Without loops it would not be finished with fewer images either.
  fits |= not unfinished and fewer(Setting(images))
  if not fits and not fewer(saving) and chips > 1:
    report(saving._replace(images=1, fsdp=chips))


def speed(record: dict[str, Any]) -> float:
  """Images per second and chip; 0 of what was not compiled."""
  return 0.0 if 'error' in record else record['images_per_second'] / record['devices']


def winner(records: dict[Setting, dict[str, Any]]) -> Setting | None:
  """The fastest of those tried, the one with fewest images of those that are nearly so."""
  best = max(map(speed, records.values()), default=0.0)
  near = [each for each, record in records.items() if speed(record) * _WORTH > best > 0]
  return min(near, default=None)


def recipes() -> dict[str, str]:
  """Config of each variant's recipe, by name. Of names for the same model the last one."""
  found, names = {}, {}
  for path in sorted((ROOT / 'configs').glob('*_imagenet.py')):
    for name in models.list_models(f'{path.stem.removesuffix("_imagenet")}_*'):
      audio = name.endswith('_audio')
      found[name] = 'configs/mmvit_audioset.py' if audio else f'configs/{path.name}:{name}'
      names[models.create_model(name)] = name
  return {name: found[name] for name in names.values()}


@functools.cache
def code_of(model: str) -> str:
  """Hash of the source of a model and of everything of this package that it names.

  Comments and the layout of lines do not count, nor do the kernels of other platforms.

  Args:
    model: name in the registry.
  """
  network = models.create_model(model)
  parts = [network, *vars(network).values()]
  waiting, found = [type(part).__module__ for part in parts], {}
  while waiting:
    name = waiting.pop()
    other = name.rpartition('.')[2] in ('cpu', 'gpu')
    if name in found or other or not name.startswith('crossattn_jax.'):
      continue
    module = sys.modules[name]
    found[name] = ast.unparse(ast.parse(pathlib.Path(module.__file__).read_text()))
    for value in vars(module).values():
      inner = isinstance(value, types.ModuleType)
      waiting.append(value.__name__ if inner else str(getattr(value, '__module__', '')))
  return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:12]


def older(record: dict[str, Any], code: str) -> str:
  """What a report is of that is not at hand now, in words; nothing for one that is up to date."""
  words = ['older code'] * (record.get('code') != code)
  if record.get('libtpu') != importlib.metadata.version('libtpu'):
    words.append(f'libtpu {record.get("libtpu", "unknown")}')
  return ', '.join(words)


def make(command: list[str], limit: float | None = None) -> dict[str, Any]:
  """The report of a command line, 'python' first, or the error of a step that is not compiled."""
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'}
  before = _processor_seconds()
  try:
    result = subprocess.run(
      [sys.executable, *command[1:]],
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
      timeout=limit,
    )
  except subprocess.TimeoutExpired:
    return {'error': f'not compiled in {limit:g} s', 'unfinished': True}
  if result.returncode:
    return {'error': (result.stderr.splitlines() or ['no message'])[-1]}
  record = json.loads(result.stdout.splitlines()[-1])
  return record | {'processor_seconds': _processor_seconds() - before}


def _processor_seconds() -> float:
  """What the processes that have ended have used."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


class Recipe:
  """A recipe on a slice, with its reports.

  Attributes:
    name: in the file of reports: a variant's, or the config.
    config: file and variant.
    choices: fields of its model's config.
    code: see `code_of`.
    chips: of the slice.
    records: by setting, of the slice and the effort asked for.
  """

  def __init__(self, name: str, kept: dict[str, list], arguments: argparse.Namespace):
    self.name, self.config = name, recipes().get(name, name)
    path, _, variant = self.config.partition(':')
    module = importlib.import_module(path.removesuffix('.py').replace('/', '.'))
    model = module.get_config(*[variant] if variant else []).model
    self.choices, self.code = list(model), code_of(model.name)
    self.chips = math.prod(aot.parse_topology(arguments.topology)[1])
    self._arguments, self._all = arguments, kept
    self.records = {
      Setting(**each['setting']): each
      for each in kept.get(name, [])
      if each['command'] == self.command(Setting(**each['setting']))
      and not (arguments.anew and older(each, self.code))
    }

  def command(self, setting: Setting) -> list[str]:
    """The command line of a report."""
    return [
      'python',
      'main.py',
      '--mode=compile',
      f'--topology={self._arguments.topology}',
      f'--compile_effort={self._arguments.effort:g}',
      f'--config={self.config}',
      *self.flags(setting),
    ]

  def flags(self, setting: Setting) -> list[str]:
    """What sets a setting; nothing for what the model does not have."""
    return [
      f'--config.{key}={value}'
      for key, value in setting.keys(self.chips).items()
      if not key.startswith('model.') or key.removeprefix('model.') in self.choices
    ]

  def report(self, setting: Setting) -> dict[str, Any]:
    """The report of a setting, made and kept if there is none yet."""
    if setting in self.records:
      if why := older(self.records[setting], self.code):
        print(f'{self.name}, {setting.images} images a chip, {setting.words}: kept, of {why}')
      return self.records[setting]
    command = self.command(setting)
    print(' '.join(command), file=sys.stderr, flush=True)
    record = make([*command, f'--top={_COSTLIEST}'], self._arguments.limit) | {
      'setting': setting._asdict(),
      'command': command,
      'made': datetime.date.today().isoformat(),
      'libtpu': importlib.metadata.version('libtpu'),
      'code': self.code,
    }
    said = record.get('error') or f'{speed(record):,.0f} images/s a chip'
    print(f'{self.name}: {said}', file=sys.stderr, flush=True)
    self.records[setting] = record
    kept = [each for each in self._all.get(self.name, []) if each['command'] != command]
    self._all[self.name] = [*kept, record]
    self._arguments.json.write_text(json.dumps(self._all, indent=1) + '\n')
    return record

  def verdict(self) -> str:
    """The winner, the flags that set it, and what takes most of its time."""
    best = winner(self.records)
    if best is None:
      return f'{self.name}: nothing fits on {self._arguments.topology}'
    found = f'{self.name}: {speed(self.records[best]):,.0f} images/s a chip'
    flags = ' '.join(self.flags(best))
    lines = [f'{found}, {best.images} images on each of {self.chips}: {flags}']
    for each in self.records[best].get('costliest', []):
      name = f'{each["count"]} x {each["name"]}'
      lines.append(f'{each["share"]:6.1%} {name} {each["source"]}'.rstrip())
    return '\n'.join(lines)


def row(name: str, record: dict[str, Any]) -> str:
  """One row of the table, in Markdown; with a star if the code or the compiler is older."""
  star = ' *' if older(record, code_of(record['model'])) else ''
  setting = Setting(**record['setting'])
  memory = record['memory']
  kernels = f' ({record["kernel_seconds"] * 1e3:.1f})' if record['kernels'] else ''
  cells = (
    name,
    record['topology'],
    f'{setting.images}',
    setting.words,
    f'{record["model_flops"] / record["batch_size"] / 1e9:.1f}',
    f'{memory["total"] / 2**30:.1f} ({memory["temporaries"] / 2**30:.1f})',
    f'{record["step_seconds"] * 1e3:.0f}{kernels}',
    f'{speed(record):,.0f}',
    f'{record["mfu"] * 100:.1f} %',
    record['made'] + star,
  )
  return f'| {" | ".join(cells)} |'


def table(kept: dict[str, list], names: Sequence[str], chip: str) -> Iterator[str]:
  """The fastest report of each recipe on slices of a kind of chip, in lines of Markdown."""
  yield f'| {" | ".join(HEADER)} |'
  yield '|---' * len(HEADER) + '|'
  for name in names:
    found = [
      record
      for record in kept.get(name, [])
      if speed(record) and record['chip']['name'] == chip and not record['effort']
    ]
    if found:
      yield row(name, max(found, key=speed))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    'patterns',
    nargs='*',
    default=['*'],
    help='of variants, all by default; or configs, such as configs/mask_rcnn_coco.py:VARIANT',
  )
  parser.add_argument('--json', type=pathlib.Path, default=RECORDS, help='where the records are')
  parser.add_argument('--table', action='store_true', help='compiles nothing')
  parser.add_argument('--anew', action='store_true', help='makes reports of older code again')
  parser.add_argument('--topology', default='v5e:4x4')
  parser.add_argument('--images_per_chip', type=int, default=64, help='to begin with')
  parser.add_argument(
    '--most_images', type=float, default=math.inf, help='per chip, that are tried'
  )
  parser.add_argument('--effort', type=float, default=0.0, help='see main.py --compile_effort')
  parser.add_argument(
    '--limit', type=float, help='seconds per report; steps that take longer become loops'
  )
  arguments = parser.parse_args()
  try:
    aot.parse_topology(arguments.topology)
  except aot.CompileError as error:
    parser.error(str(error))
  configs = [pattern for pattern in arguments.patterns if '.py' in pattern]
  names = [
    name
    for name in recipes()
    if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.patterns)
  ] + configs
  if not names:
    parser.error(f'no variant matches {arguments.patterns}; known: {", ".join(recipes())}')
  kept = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
  if not arguments.table:
    os.nice(10)
    for name in names:
      recipe = Recipe(name, kept, arguments)
      images, most = arguments.images_per_chip, arguments.most_images
      search(recipe.report, images, recipe.chips, recipe.choices, most)
      print(recipe.verdict(), flush=True)
  print('\n'.join(table(kept, names, aot.parse_topology(arguments.topology)[0].name)))


if __name__ == '__main__':
  main()
