r"""The library under jit, PyTorch eager and torch.compile side by side on this machine.

  python -m benchmarks.vs_torch crossvit_tiny_240 crossvit_small_240 --json=vs_torch.json
  python -m benchmarks.vs_torch crossvit_small_240 --device=cuda --dtype=bfloat16 --batch=128
  python -m benchmarks.vs_torch ALL --device=cuda --dtype=bfloat16 --minutes=8 \
    --report=docs/measurements/gpu.md

For each model the forward pass and a whole training step (forward, loss, backward, AdamW) in
float32, or in bfloat16 with float32 parameters (`torch.autocast` there). The loss is the cross-
entropy; of MMCA, which scores all pairs of the batch's images and sentences, the triplet loss; of
ATFuse, which fuses pairs of images, its loss of gradients and intensities; of RetinaNet, on images
of 320 x 320 pixels, and ICAFusion, on pairs of 640 x 640, their losses of 12 objects each, anchors
assigned; of the sketch localizer, on photos of 480 x 640 and a sketch of each, its losses of 5
objects, which queries of seven levels are matched with; of MinkUNet, on rooms of 15,000 cells, the
cross-entropy of all cells, as it is of CCNet, on crops of 769 x 769. Each side is a process of its
own with the same cores; they take turns, one sample each, and the one that waits sleeps. Prints the
medians and the ratio PyTorch / this library of each round: above 1 this library is faster.
PyTorch's models are timm's (extra `torch`), and plain modules for those that no package has
(`benchmarks/torch_*.py`). On a GPU both multiply float32 in TF32, and PyTorch has what its users
would give it there: maps with their channels last, a fused optimizer, convolutions chosen by
trying; its attention is the fused one wherever the module says so. On a machine that others use,
`--clock=processor` times what the cores spend on each side.

`ALL` is a model of every system that has a PyTorch side, with batches for one GPU. `--minutes`
bounds the whole: models share it in groups that are compiled together (`--together`) and then
measured one after the other. A side that is not ready in 85 % of its group's time is left
out, and says so. `--report` writes a page with the date and the versions.
"""

import argparse
from collections.abc import Callable, Sequence
import concurrent.futures
import contextlib
import datetime
import functools
from importlib import metadata
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

SIDES = ('jax', 'eager', 'compiled')
KINDS = ('forward', 'train')
# Seconds that pass, and seconds of all cores together.
CLOCKS = {'wall': time.perf_counter, 'processor': time.process_time}
DETECTOR_SIDE = 320
PHOTO_SIZE, SKETCHED_OBJECTS = (480, 640), 5
# A model of each system, and its batch on one GPU.
SYSTEMS = {
  'crossvit_small_240': 128,
  'swiftformer_l1': 128,
  'crossformer_small': 64,
  'biformer_tiny': 64,
  'mmvit_small': 64,
  'ccnet_resnet50': 8,
  'atfuse': 64,
  'mmca': 128,
  'resnet50_deep_stem+retinanet': 64,
  'icafusion_s': 16,
  'sketch_localizer_tiny': 8,
  'minkunet18a': 4,
}
# Of the time of a group, for compiling.
WARM_UP = 0.85


def jax_problem(model: Any, batch: int) -> tuple[tuple[Any, ...], Callable[..., Any]]:
  """Returns inputs of a model of this library, and the loss of its result and those inputs."""
  import jax
  import jax.numpy as jnp
  import optax

  from crossattn_jax.models import atfuse, ccnet, detector, icafusion, minkunet, mmca
  from crossattn_jax.models.sketch_localizer import model as sketch_localizer
  from crossattn_jax.tasks.detection import losses as detection_losses
  from crossattn_jax.tasks.detection import yolo_losses
  from crossattn_jax.tasks.image_fusion import losses as image_fusion_losses
  from crossattn_jax.tasks.retrieval import losses as retrieval_losses
  from crossattn_jax.tasks.sketch_localization import losses as sketch_losses

  keys = jax.random.split(jax.random.key(0), 3)
  if isinstance(model, mmca.MMCA):
    pairs = {
      'regions': jax.random.normal(keys[0], (batch, model.num_regions, model.region_dim)),
      'words': jax.random.normal(keys[1], (batch, model.max_words, model.word_dim)),
      'word_mask': jnp.arange(model.max_words) < jax.random.randint(keys[2], (batch, 1), 8, 33),
    }
    return (pairs,), lambda scores, _: retrieval_losses.triplet_loss(scores).sum()
  if isinstance(model, atfuse.ATFuse):
    shape = (batch, *model.image_size, 1)
    images = tuple(jax.random.uniform(key, shape, maxval=255) for key in keys[:2])
    return images, lambda *images: image_fusion_losses.fusion_loss(*images).total.mean()
  if isinstance(model, detector.RetinaNet):
    truths, grid = jax_objects(model, batch, DETECTOR_SIDE)
    sizes = jnp.full((batch, 2), DETECTOR_SIDE)

    def retinanet_loss(outputs, _):
      return sum(detection_losses.retinanet_losses(outputs, truths, sizes, grid).values())

    image = jax.random.normal(keys[0], (batch, DETECTOR_SIDE, DETECTOR_SIDE, 3))
    return (image,), retinanet_loss
  if isinstance(model, icafusion.ICAFusion):
    truths, grid = jax_objects(model, batch, model.image_size[0])
    gains = yolo_losses.scaled_gains(model.num_classes, model.image_size)

    def yolo_loss(outputs, *_):
      positives = yolo_losses.assign(truths, grid)
      return sum(yolo_losses.yolo_losses(outputs, positives, grid, gains=gains).values())

    shape = (batch, *model.image_size, 3)
    return tuple(jax.random.uniform(key, shape) for key in keys[:2]), yolo_loss
  if isinstance(model, sketch_localizer.SketchLocalizer):
    truths = jax_truths(batch, SKETCHED_OBJECTS, PHOTO_SIZE, 1)
    sizes = jnp.tile(jnp.array(PHOTO_SIZE), (batch, 1))
    weights = {'class_loss': 2.0, 'box_loss': 5.0, 'giou_loss': 2.0}

    def sketch_loss(outputs, *_):
      losses = sketch_losses.localizer_losses(outputs, truths, sizes, weights)
      return sum(loss for name, loss in losses.items() if name.endswith('_loss'))

    shapes = (batch, *PHOTO_SIZE, 3), (batch, 1, model.sketch_size, model.sketch_size, 3)
    return tuple(map(jax.random.normal, keys[:2], shapes)), sketch_loss
  cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
  if isinstance(model, minkunet.MinkUNet):
    windows, levels = jax_room(batch)
    labels = jax.random.randint(keys[1], windows.shape[:2], 0, model.num_classes)
    return (windows, levels), lambda logits, *_: cross_entropy(logits, labels).mean()
  image = jax.random.normal(keys[0], (batch, *model.image_size, 3))
  cells = [(side - 1) // 8 + 1 for side in model.image_size if isinstance(model, ccnet.CCNet)]
  labels = jax.random.randint(keys[1], (batch, *cells), 0, model.num_classes)
  return (image,), lambda logits, _: cross_entropy(logits, labels).mean()


def jax_room(batch: int) -> tuple[Any, Any]:
  """Returns windows and levels of so many copies of the benchmark's room."""
  import jax
  import jax.numpy as jnp

  from benchmarks import point_tables
  from crossattn_jax.conversion.systems import mit
  from crossattn_jax.geometry import points

  cells, colors = point_tables.colored_cells()
  arrays = mit.scene_inputs(points.levels(cells, 5), jnp.asarray(colors))
  return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), batch, axis=0), arrays)


def jax_objects(model: Any, batch: int, side: int) -> tuple[Any, Any]:
  """Returns 12 objects in each of a batch of square images, and the anchors of a detector."""
  truths = jax_truths(batch, 12, (side, side), model.num_classes)
  return truths, model.anchors().of_input((side, side))


def jax_truths(batch: int, objects: int, size: tuple[int, int], num_classes: int) -> Any:
  """Returns so many objects in each of a batch of images."""
  import jax
  import jax.numpy as jnp

  from crossattn_jax.heads.detection import types

  keys = jax.random.split(jax.random.key(1), 3)
  sides = jnp.array(size[::-1])
  low = jax.random.uniform(keys[0], (batch, objects, 2), maxval=0.7 * sides)
  extent = jax.random.uniform(keys[1], (batch, objects, 2), minval=16, maxval=0.3 * sides)
  labels = jax.random.randint(keys[2], (batch, objects), 0, num_classes)
  return types.Truths(jnp.concatenate([low, low + extent], axis=-1), labels)


def jax_function(model_name: str, kind: str, batch: int, dtype: str) -> Callable[[], None]:
  """Returns what runs one sample of this library."""
  import jax
  import optax

  import crossattn_jax
  from crossattn_jax.training import host_memory

  host_memory.keep_freed_memory()  # as main.py does
  model = crossattn_jax.create_model(model_name, dtype=dtype)
  inputs, objective = jax_problem(model, batch)
  variables = jax.jit(model.init)(jax.random.key(2), *inputs)
  if kind == 'forward':
    forward = jax.jit(lambda variables, *inputs: model.apply(variables, *inputs)[0])
    return lambda: jax.block_until_ready(forward(variables, *inputs))
  params, constants = variables.pop('params'), variables
  optimizer = optax.adamw(1e-3, weight_decay=0.05)

  def loss(params, constants, inputs):
    (result, _), constants = model.apply(
      {'params': params, **constants},
      *inputs,
      train=True,
      rngs={'drop_path': jax.random.key(3), 'dropout': jax.random.key(4)},
      mutable=list(constants),
    )
    return objective(result, *inputs), constants

  # Inputs are arguments: what depends on constants alone would be computed when it is compiled.
  def step(state, inputs):
    params, constants, moments = state
    gradients, constants = jax.grad(loss, has_aux=True)(params, constants, inputs)
    updates, moments = optimizer.update(gradients, moments, params)
    return optax.apply_updates(params, updates), constants, moments

  step = jax.jit(step, donate_argnums=0)
  state = params, constants, optimizer.init(params)

  def run():
    nonlocal state
    state = jax.block_until_ready(step(state, inputs))

  return run


def torch_function(
  model_name: str, kind: str, batch: int, dtype: str, device: str, compiled: bool
) -> Callable[[], None]:
  """Returns what runs one sample of timm's model of that name, or of a plain module."""
  import timm
  import torch

  from benchmarks import (
    torch_atfuse,
    torch_biformer,
    torch_ccnet,
    torch_crossformer,
    torch_icafusion,
    torch_minkunet,
    torch_mmca,
    torch_mmvit,
    torch_retinanet,
    torch_sketch_localizer,
  )

  torch.manual_seed(0)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_float32_matmul_precision('high')  # TF32 on GPUs, nothing on CPUs
  own = torch_atfuse, torch_ccnet, torch_icafusion, torch_minkunet, torch_mmca
  own += torch_retinanet, torch_sketch_localizer
  modules = torch_biformer, torch_crossformer, torch_mmvit, *own
  build = next((module for module in modules if model_name in module.VARIANTS), timm)
  model = build.create_model(model_name).to(device)
  if build in own:
    inputs, objective = build.problem(batch, device)
  else:
    inputs = (torch.randn(batch, *model.default_cfg['input_size'], device=device),)
    labels = torch.randint(0, model.num_classes, (batch,), device=device)
    objective = functools.partial(torch.nn.functional.cross_entropy, target=labels)
  if device == 'cuda':
    torch.backends.cudnn.benchmark = True
    last = {'memory_format': torch.channels_last}
    model = model.to(**last)
    inputs = [x.to(**last) if torch.is_tensor(x) and x.ndim == 4 else x for x in inputs]
  autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16')

  def finish():
    if device == 'cuda':
      torch.cuda.synchronize()

  if kind == 'forward':
    model.eval()
    forward = torch.compile(model) if compiled else model

    def run():
      with torch.inference_mode(), autocast:
        forward(*inputs)
      finish()

    return run
  model.train()
  forward = torch.compile(model) if compiled else model
  optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=device == 'cuda')

  def run():
    optimizer.zero_grad()
    with autocast:
      loss = objective(forward(*inputs))
    loss.backward()
    optimizer.step()
    finish()

  return run


def peak_memory(side: str, device: str) -> int | None:
  """Bytes of the GPU that the process had at most so far; None on a CPU."""
  if device == 'cpu':
    return None
  if side == 'jax':
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  import torch

  return torch.cuda.max_memory_allocated()


def work(side: str, model_name: str, setting: argparse.Namespace) -> None:
  """Warms up, and then answers each line of standard input, a kind, with the seconds of a sample.

  Of each kind of work it first prints a line of JSON: the memory, or why it cannot be done.
  """
  functions = {}
  options = {'batch': setting.batch, 'dtype': setting.dtype}
  if side != 'jax':
    options |= {'device': setting.device, 'compiled': side == 'compiled'}
  build = jax_function if side == 'jax' else torch_function
  for kind in setting.kinds:
    try:
      function = build(model_name, kind, **options)
      for _ in range(3):
        function()
    except Exception as error:
      reason = (str(error).strip().splitlines() or [''])[0]
      print(json.dumps({'kind': kind, 'error': f'{type(error).__name__}: {reason}'}), flush=True)
      continue
    functions[kind] = function
    found = {'kind': kind, 'memory': peak_memory(side, setting.device)}
    print(json.dumps(found), flush=True)
  print('ready', flush=True)
  clock = CLOCKS[setting.clock]
  for line in sys.stdin:
    function = functions[line.strip()]
    start = clock()
    function()
    print(clock() - start, flush=True)


class Worker:
  """One side as a process that sleeps until it is asked for a sample.

  Attributes:
    memory: peak bytes of each kind of work that it can do, None where that is not known.
    errors: why it cannot do others.
  """

  def __init__(self, side: str, model_name: str, batch: int, setting: argparse.Namespace):
    command = [sys.executable, '-m', 'benchmarks.vs_torch', model_name, f'--worker={side}']
    command += [f'--{name}={getattr(setting, name)}' for name in ('dtype', 'device', 'clock')]
    command += [f'--batch={batch}', '--kinds', *setting.kinds]
    self.memory, self.errors = {}, {}
    self._kinds, self._late = setting.kinds, False
    # A pipe that nobody reads would fill up.
    self._messages = tempfile.TemporaryFile('w+')  # noqa: SIM115 (closed by `close`)
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._messages,
      text=True,
      start_new_session=True,  # With the compilers that it starts.
      # A waiting thread that spins would take the other side's cores, memory held ahead its memory.
      env=os.environ
      | {
        'OMP_WAIT_POLICY': 'passive',
        'JAX_PLATFORMS': setting.device,
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
      },
    )

  def wait(self) -> None:
    """Waits for the warm-up, or for the end of the process."""
    for line in self._process.stdout:
      if line == 'ready\n':
        return
      if line.startswith('{"kind": '):
        found = json.loads(line)
        if 'error' in found:
          self.errors[found['kind']] = found['error']
        else:
          self.memory[found['kind']] = found['memory']
    if self._late:
      return
    self._messages.seek(0)
    last = (self._messages.read().strip().splitlines() or ['ended'])[-1]
    self.memory = {}
    self.errors = dict.fromkeys(self._kinds, last) | self.errors

  def give_up(self, seconds: float) -> None:
    """Ends a process that is not ready after so long."""
    self._late = True
    self.memory = {}
    self.errors = dict.fromkeys(self._kinds, f'not ready after {seconds:.0f} s') | self.errors
    if self._process.poll() is None:
      os.killpg(self._process.pid, signal.SIGKILL)

  def sample(self, kind: str) -> float | None:
    """Seconds of one sample; None where the process has ended, as when its memory is full."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(f'{kind}\n')
      self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      self.errors[kind] = 'ended while it was measured'
    return float(line) if line else None

  def close(self) -> None:
    """Ends the process."""
    if self._process.poll() is None:
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.communicate()
    self._messages.close()


def measure(
  batches: dict[str, int], setting: argparse.Namespace, seconds: float | None = None
) -> list[dict]:
  """Measures models that are warmed up together.

  Args:
    batches: of the models, by name.
    setting: of the command line.
    seconds: that it may take; None for as long as it takes.

  Returns:
    For each model and kind of work medians in milliseconds, ratios and peak bytes; a side that does
    not work says why.
  """
  start = time.monotonic()
  workers = {}
  try:
    for name, batch in batches.items():
      for side in setting.sides:
        workers[name, side] = Worker(side, name, batch, setting)
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
      waiting = {pool.submit(worker.wait): worker for worker in workers.values()}
      limit = None if seconds is None else WARM_UP * seconds
      _, late = concurrent.futures.wait(waiting, limit)
      for future in late:
        waiting[future].give_up(limit)
    todo = [(name, kind) for name in batches for kind in setting.kinds]
    records = []
    for i, (name, kind) in enumerate(todo):
      sides = {side: workers[name, side] for side in setting.sides}
      end = None
      if seconds is not None:
        now = time.monotonic()
        end = now + max(0.0, start + seconds - now) / (len(todo) - i)
      samples = _samples({s: w for s, w in sides.items() if kind in w.memory}, kind, setting, end)
      record = {name_: getattr(setting, name_) for name_ in ('dtype', 'device', 'clock')}
      record |= {'model': name, 'kind': kind, 'batch': batches[name]}
      record['errors'] = {s: w.errors[kind] for s, w in sides.items() if kind in w.errors}
      record['memory'] = {s: w.memory[kind] for s, w in sides.items() if kind in w.memory}
      records.append(record | _summary(samples))
    return records
  finally:
    for worker in workers.values():
      worker.close()


def _samples(
  workers: dict[str, Worker], kind: str, setting: argparse.Namespace, end: float | None
) -> dict[str, list[float]]:
  """Seconds of each side, in turns; at least two rounds, and no more after `end`."""
  samples = {side: [] for side in workers}
  for i in range(setting.rounds):
    if end is not None and i > 1 and time.monotonic() > end:
      break
    for side in list(samples):
      seconds = workers[side].sample(kind)
      if seconds is None:
        del samples[side]
      else:
        samples[side].append(seconds)
  return samples


def _summary(samples: dict[str, list[float]]) -> dict:
  medians = {side: 1e3 * statistics.median(each) for side, each in samples.items()}
  ours = samples.get('jax', [])
  ratios = {
    side: [theirs / mine for theirs, mine in zip(each, ours, strict=True)]
    for side, each in samples.items()
    if side != 'jax' and ours
  }
  return {'milliseconds': medians, 'ratios': ratios}


def row(record: dict) -> str:
  """The record as a row of the Markdown table."""

  def time_of(side):
    return f'{record["milliseconds"][side]:.3g}' if side in record['milliseconds'] else '-'

  def ratio(side):
    values = record.get('ratios', {}).get(side)
    if not values:
      return '-'
    if len(values) == 1:
      return f'{values[0]:.2f}'
    low, middle, high = statistics.quantiles(values, n=4)
    return f'{middle:.2f} ({low:.2f} to {high:.2f})'

  def memory_of(side):
    peak = record['memory'].get(side)
    return '-' if peak is None else f'{peak / 2**30:.1f}'

  cells = [record['model'], str(record['batch']), record['kind'], *map(time_of, SIDES)]
  cells += [*map(ratio, SIDES[1:]), ', '.join(map(memory_of, SIDES))]
  return '| ' + ' | '.join(cells) + ' |'


HEADER = (
  '| model | batch | work | jit, ms | eager, ms | compiled, ms | vs eager | vs compiled | GiB |\n'
  '|' + '---|' * 9
)


def where(device: str) -> str:
  """What measures: the GPU and its driver, or the number of cores."""
  if device == 'cpu':
    return f'{len(os.sched_getaffinity(0))} cores'
  command = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
  return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def page(records: Sequence[dict], setting: argparse.Namespace) -> str:
  """The records as a page of docs/measurements."""
  versions = ', '.join(
    f'{package} {metadata.version(package)}' for package in ('jax', 'jaxlib', 'torch', 'timm')
  )
  lines = [
    f'# Whole models beside PyTorch: {where(setting.device)}',
    '',
    f'{datetime.date.today():%d %B %Y}; {versions}; {setting.dtype}. Medians of up to',
    f'{setting.rounds} interleaved rounds; ratios are PyTorch over this library (above 1 this',
    'library is faster), quartiles in brackets; memory is the peak of this library, eager and',
    'compiled, of the process so far.',
    '',
    '```',
    f'python -m benchmarks.vs_torch {" ".join(sys.argv[1:])}',
    '```',
    '',
    HEADER,
    *map(row, records),
    '',
  ]
  for record in records:
    for side, error in record['errors'].items():
      lines.append(f'- {record["model"]}, {record["kind"]}, {side}: {error[:90]}')
  return '\n'.join(lines).rstrip() + '\n'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('models', nargs='+', metavar='MODEL', help='or ALL')
  parser.add_argument('--batch', type=int, help='8 by default; of ALL, what suits a GPU')
  parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--clock', choices=CLOCKS, default='wall')
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS)
  parser.add_argument('--sides', nargs='+', choices=SIDES, default=SIDES)
  parser.add_argument('--minutes', type=float, help='for everything')
  parser.add_argument('--together', type=int, help='models to compile at once; with --minutes 4')
  parser.add_argument('--json', type=pathlib.Path, help='where the records are written')
  parser.add_argument('--report', type=pathlib.Path, help='where they are written as a page')
  parser.add_argument('--worker', choices=SIDES, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    work(args.worker, args.models[0], args)
    return
  batches = dict(SYSTEMS) if args.models == ['ALL'] else dict.fromkeys(args.models, 8)
  if args.batch:
    batches = dict.fromkeys(batches, args.batch)
  together = args.together or (4 if args.minutes else 1)
  names = list(batches)
  groups = [names[i : i + together] for i in range(0, len(names), together)]
  print(f'{where(args.device)}, {args.dtype}, {args.clock} time, medians of {args.rounds}')
  print(HEADER, flush=True)
  start, records = time.monotonic(), []
  for i, group in enumerate(groups):
    seconds = None
    if args.minutes:
      seconds = (60 * args.minutes - (time.monotonic() - start)) / (len(groups) - i)
    found = measure({name: batches[name] for name in group}, args, seconds)
    records += found
    for record in found:
      print(row(record), flush=True)
      for side, error in record['errors'].items():
        print(f'{record["model"]} {record["kind"]} {side}: {error}', file=sys.stderr)
    if args.json:
      args.json.write_text(json.dumps(records, indent=1) + '\n')
    if args.report:
      args.report.write_text(page(records, args))


if __name__ == '__main__':
  main()
