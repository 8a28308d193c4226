r"""RoIAlign and suppression on a CPU: ours beside torchvision's.

  python -m benchmarks.roi_align [--json FILE]

RoIAlign cuts 1,000 boxes, 7 x 7 bins of 256 channels, adaptive samples, out of a map of 200 x 304
(`map`) and out of the four maps of a pyramid (`pyramid`), in float32, forward and with the maps'
gradients. Suppression is that of 1,000 boxes at an IoU of 0.7. Both take turns in one process, and
the ratio is that of the fastest runs; above 1 ours is faster.
"""

import argparse
import json
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from crossattn_jax import kernels
from crossattn_jax.geometry import suppression

IMAGE = (800, 1216)
STRIDES = (4, 8, 16, 32)
COUNT, CHANNELS, SIZE = 1000, 256, 7


def proposals(count: int = COUNT, smallest: float = 16, largest: float = 512) -> np.ndarray:
  """Boxes as a region proposal network has them: sides' scale and ratio are log-uniform.

  Args:
    count: of boxes.
    smallest: square root of the area, in pixels.
    largest: likewise.

  Returns:
    `[count, 4]` float32 in an image of `IMAGE`.
  """
  rng = np.random.default_rng(0)
  scale = np.exp(rng.uniform(math.log(smallest), math.log(largest), count))
  ratio = np.exp(rng.uniform(-math.log(2), math.log(2), count) / 2)
  sides = np.stack([scale * ratio, scale / ratio], axis=-1)
  center = rng.uniform(0, 1, (count, 2)) * IMAGE[::-1]
  corners = np.concatenate([center - sides / 2, center + sides / 2], axis=-1)
  return np.clip(corners, 0, [*IMAGE[::-1]] * 2).astype(np.float32)


def level_sizes(levels: int) -> list[tuple[int, int]]:
  return [(-(-IMAGE[0] // stride), -(-IMAGE[1] // stride)) for stride in STRIDES[:levels]]


def align_functions(levels: int):
  """(ours, torchvision's) of the forward pass, and of a step with gradients."""
  import torch
  import torchvision

  # On one map alone, boxes are those that a pyramid would cut from it.
  boxes = proposals(largest=512 if levels > 1 else 112)
  rng = np.random.default_rng(1)
  maps = [rng.standard_normal((1, *size, CHANNELS), np.float32) for size in level_sizes(levels)]
  cotangent = rng.standard_normal((1, COUNT, SIZE, SIZE, CHANNELS), np.float32)
  options = {'size': SIZE, 'strides': STRIDES[:levels]}
  align = jax.jit(lambda maps, boxes: kernels.roi_align_pyramid(maps, boxes, **options))

  @jax.jit
  def step(maps, boxes, cotangent):
    out, pull_back = jax.vjp(lambda maps: align(maps, boxes), maps)
    return out, pull_back(cotangent)

  given = jax.tree.map(jnp.asarray, (maps, boxes[None]))
  torch_maps = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous() for x in maps]
  torch_boxes = torch.from_numpy(boxes)
  torch_cotangent = torch.from_numpy(cotangent[0]).permute(0, 3, 1, 2).contiguous()
  pooler = torchvision.ops.MultiScaleRoIAlign(
    [str(level) for level in range(levels)], SIZE, 0, canonical_scale=224, canonical_level=4
  )

  def their_align(maps):
    if levels == 1:
      return torchvision.ops.roi_align(maps[0], [torch_boxes], SIZE, 1 / 4, 0, True)
    named = {str(level): x for level, x in enumerate(maps)}
    return pooler(named, [torch_boxes], [IMAGE])

  def their_forward():
    with torch.no_grad():
      return their_align(torch_maps)

  def their_step():
    inputs = [x.detach().requires_grad_() for x in torch_maps]
    out = their_align(inputs)
    return out, torch.autograd.grad(out, inputs, torch_cotangent)

  return (
    (lambda: jax.block_until_ready(align(*given)), their_forward),
    (lambda: jax.block_until_ready(step(*given, cotangent)), their_step),
  )


def suppression_functions():
  """(ours, torchvision's) suppression."""
  import torch
  import torchvision

  boxes, scores = proposals(), np.random.default_rng(2).random(COUNT, np.float32)
  ours = jax.jit(
    lambda boxes, scores: suppression.non_maximum_suppression(
      boxes, scores, iou_threshold=0.7, max_boxes=COUNT
    )
  )
  given, theirs = jax.tree.map(jnp.asarray, (boxes, scores)), map(torch.from_numpy, (boxes, scores))
  torch_boxes, torch_scores = theirs
  kept = np.asarray(ours(*given))
  np.testing.assert_array_equal(
    kept[kept >= 0], torchvision.ops.nms(torch_boxes, torch_scores, 0.7).numpy()
  )
  return (
    lambda: jax.block_until_ready(ours(*given)),
    lambda: torchvision.ops.nms(torch_boxes, torch_scores, 0.7),
  )


def measure(pair, seconds: float) -> dict[str, float]:
  """The fastest runs in milliseconds; the first one of each warms up."""
  fastest, rounds, end = [math.inf] * 2, 0, math.inf
  while rounds < 4 or time.perf_counter() < end:
    for i, function in enumerate(pair):
      start = time.perf_counter()
      function()
      if rounds:
        fastest[i] = min(fastest[i], time.perf_counter() - start)
    if not rounds:
      end = time.perf_counter() + seconds
    rounds += 1
  return {'jax_ms': 1e3 * fastest[0], 'torch_ms': 1e3 * fastest[1]}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--json', help='file to which the results are written')
  parser.add_argument('--seconds', type=float, default=5.0, help='for every row')
  options = parser.parse_args()
  pairs = {'suppression of 1,000 boxes': suppression_functions()}
  for name, levels in (('map', 1), ('pyramid', 4)):
    forward, step = align_functions(levels)
    pairs |= {f'RoIAlign, {name}, forward': forward, f'RoIAlign, {name}, with gradients': step}
  records = {}
  print('| case | ours, ms | torchvision, ms | ratio |\n|---|---|---|---|')
  for name, pair in pairs.items():
    records[name] = measure(pair, options.seconds)
    ours, theirs = records[name].values()
    print(f'| {name} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.2f} |', flush=True)
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(records, indent=1) + '\n')


if __name__ == '__main__':
  main()
