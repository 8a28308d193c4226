r"""The library under jit, PyTorch eager and torch.compile side by side on this machine.

  python -m benchmarks.vs_torch crossvit_tiny_240 crossvit_small_240 --json=vs_torch.json
  python -m benchmarks.vs_torch crossvit_small_240 --device=cuda --dtype=bfloat16 --batch=128

For each model the forward pass and a whole training step (forward, loss, backward, AdamW) in
float32, or in bfloat16 with float32 parameters (`torch.autocast` there). The loss is the cross-
entropy; of MMCA, which scores all pairs of the batch's images and sentences, the triplet loss; of
ATFuse, which fuses pairs of images, its loss of gradients and intensities; of RetinaNet, on images
of 320 x 320 pixels, and ICAFusion, on pairs of 640 x 640, their losses of 12 objects each, anchors
assigned; of the sketch localizer, on photos of 480 x 640 and a sketch of each, its losses of 5
objects, which queries of seven levels are matched with; of MinkUNet, on rooms of 15,000 cells, the
cross-entropy of all cells. Each side is a process of its own with the same cores; they take turns,
one sample each, and the one that waits sleeps. Prints the medians and the ratio PyTorch / this
library of each round: above 1 this library is faster. PyTorch's models are timm's (extra `torch`),
and plain modules for those that no package has: MMViT, CrossFormer, MMCA, ATFuse, RetinaNet,
ICAFusion, the sketch localizer and MinkUNet (`benchmarks/torch_*.py`). On a GPU both multiply
float32 in TF32. On a machine that others use, `--clock=processor` times what the cores spend on
each side.
"""

import argparse
from collections.abc import Callable
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

SIDES = ('jax', 'eager', 'compiled')
KINDS = ('forward', 'train')
# Seconds that pass, and seconds of all cores together.
CLOCKS = {'wall': time.perf_counter, 'processor': time.process_time}
DETECTOR_SIDE = 320
PHOTO_SIZE, SKETCHED_OBJECTS = (480, 640), 5


def jax_problem(model: Any, batch: int) -> tuple[tuple[Any, ...], Callable[..., Any]]:
  """Returns inputs of a model of this library, and the loss of its result and those inputs."""
  import jax
  import jax.numpy as jnp
  import optax

  from crossattn_jax.models import atfuse, detector, icafusion, minkunet, mmca
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
  labels = jax.random.randint(keys[1], (batch,), 0, model.num_classes)
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
  own = torch_atfuse, torch_icafusion, torch_minkunet, torch_mmca, torch_retinanet
  own += (torch_sketch_localizer,)
  modules = torch_crossformer, torch_mmvit, *own
  build = next((module for module in modules if model_name in module.VARIANTS), timm)
  model = build.create_model(model_name).to(device)
  if build in own:
    inputs, objective = build.problem(batch, device)
  else:
    inputs = (torch.randn(batch, *model.default_cfg['input_size'], device=device),)
    labels = torch.randint(0, model.num_classes, (batch,), device=device)
    objective = functools.partial(torch.nn.functional.cross_entropy, target=labels)
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
  optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)

  def run():
    optimizer.zero_grad()
    with autocast:
      loss = objective(forward(*inputs))
    loss.backward()
    optimizer.step()
    finish()

  return run


def work(
  side: str, model_name: str, kind: str, batch: int, dtype: str, device: str, clock_name: str
) -> None:
  """Answers each line of standard input with the seconds of one sample, after a warm-up."""
  if side == 'jax':
    function = jax_function(model_name, kind, batch, dtype)
  else:
    function = torch_function(model_name, kind, batch, dtype, device, side == 'compiled')
  for _ in range(3):
    function()
  print('ready', flush=True)
  clock = CLOCKS[clock_name]
  for _ in sys.stdin:
    start = clock()
    function()
    print(clock() - start, flush=True)


class Worker:
  """One side as a process that sleeps until it is asked for a sample."""

  def __init__(self, side: str, model_name: str, kind: str, setting: argparse.Namespace):
    command = [sys.executable, '-m', 'benchmarks.vs_torch', '--worker', side, kind, model_name]
    command += [
      f'--{name}={getattr(setting, name)}' for name in ('batch', 'dtype', 'device', 'clock')
    ]
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      # A waiting thread that spins would take the other side's cores, memory held ahead its memory.
      env=os.environ
      | {
        'OMP_WAIT_POLICY': 'passive',
        'JAX_PLATFORMS': setting.device,
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
      },
    )

  def ready(self) -> str | None:
    """Waits for the warm-up; returns the last line of the error if it failed."""
    for line in self._process.stdout:
      if line == 'ready\n':
        return None
    return self._process.stderr.read().strip().splitlines()[-1]

  def sample(self) -> float:
    """Seconds of one sample."""
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    return float(self._process.stdout.readline())

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()


def measure(model_name: str, kind: str, setting: argparse.Namespace) -> dict:
  """Returns medians in milliseconds and ratios; a side that does not work says why."""
  record = {'model': model_name, 'kind': kind, 'errors': {}}
  record |= {name: getattr(setting, name) for name in ('batch', 'dtype', 'device', 'clock')}
  workers, samples = {}, {}
  try:
    for side in setting.sides:
      worker = Worker(side, model_name, kind, setting)
      workers[side] = worker
      if error := worker.ready():
        record['errors'][side] = error
      else:
        samples[side] = []
    for _ in range(setting.rounds):
      for side in samples:
        samples[side].append(workers[side].sample())
  finally:
    for worker in workers.values():
      worker.close()
  record['milliseconds'] = {side: 1e3 * statistics.median(each) for side, each in samples.items()}
  if 'jax' in samples:
    record['ratios'] = {
      side: [theirs / ours for theirs, ours in zip(samples[side], samples['jax'], strict=True)]
      for side in samples
      if side != 'jax'
    }
  return record


def row(record: dict) -> str:
  """The record as a row of the Markdown table."""

  def time_of(side):
    return f'{record["milliseconds"][side]:.3g}' if side in record['milliseconds'] else '-'

  def ratio(side):
    values = record.get('ratios', {}).get(side)
    if not values:
      return '-'
    low, middle, high = statistics.quantiles(values, n=4)
    return f'{middle:.2f} ({low:.2f} to {high:.2f})'

  cells = [record['model'], record['kind'], *map(time_of, SIDES), *map(ratio, SIDES[1:])]
  return '| ' + ' | '.join(cells) + ' |'


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('models', nargs='+', metavar='MODEL')
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  parser.add_argument('--clock', choices=CLOCKS, default='wall')
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS)
  parser.add_argument('--sides', nargs='+', choices=SIDES, default=SIDES)
  parser.add_argument('--json', type=pathlib.Path, help='where the records are written')
  parser.add_argument('--worker', nargs=2, metavar=('SIDE', 'KIND'), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    side, kind = args.worker
    work(side, args.models[0], kind, args.batch, args.dtype, args.device, args.clock)
    return
  where = f'{len(os.sched_getaffinity(0))} cores' if args.device == 'cpu' else args.device
  print(f'{where}, {args.dtype}, batch {args.batch}, {args.clock} time, medians of {args.rounds}')
  print('| model | work | jit, ms | eager, ms | torch.compile, ms | vs eager | vs torch.compile |')
  print('|' + '---|' * 7, flush=True)
  records = []
  for name in args.models:
    for kind in args.kinds:
      records.append(measure(name, kind, args))
      print(row(records[-1]), flush=True)
      for side, error in records[-1]['errors'].items():
        print(f'{name} {kind} {side} does not work: {error}', file=sys.stderr)
      if args.json:
        args.json.write_text(json.dumps(records, indent=1) + '\n')


if __name__ == '__main__':
  main()
