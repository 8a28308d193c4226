"""What a detector of pairs finds of objects that only one of the two images shows.

  python -m benchmarks.night_scenes WORKDIR ...

Evaluates runs of `configs/icafusion_shapes.py`, and counts objects apart that show in the RGB image
only (as warm as the ground), in the thermal image only (more than half of them in the dark), and in
both: AP50 where neither the other objects count nor what is found of them.
"""

import argparse
from unittest import mock

from etils import epath
import numpy as np

from crossattn_jax.data import sources
from crossattn_jax.data.scenes import dataset
from crossattn_jax.metrics import coco, yolo
from crossattn_jax.tasks.paired_detection import task
from crossattn_jax.training import config as config_lib
from crossattn_jax.training import loop

KINDS = ('RGB only', 'thermal only', 'both')


def true_objects(config) -> tuple[coco.Instances, np.ndarray]:
  """The objects of the evaluation split, and the place of each one's kind in `KINDS`."""
  _, name = config.name.split('/')
  [scenes] = [x for x in dataset.ShapeScenes.BUILDER_CONFIGS if x.name == name]
  _, examples = sources.open_tfds(config.name, config.eval_split, config.data_dir)
  rows, kinds = [], []
  for image in range(len(examples)):
    _, seed, index = examples[image]['id'].decode().split('_')
    for item in scenes.render(int(seed), int(index)).objects:
      top, left, bottom, right = item.box
      rows.append((image, item.label - 1, left, top, right, bottom))
      kinds.append(0 if item.tepid else 1 if item.lit < 0.5 else 2)
  rows = np.array(rows)
  truths = coco.Instances(image=rows[:, 0], label=rows[:, 1], box=rows[:, 2:].astype(float))
  return truths, np.array(kinds)


def chosen(objects: coco.Instances, mask: np.ndarray) -> coco.Instances:
  """Some of the objects."""
  score = None if objects.score is None else objects.score[mask]
  return coco.Instances(
    image=objects.image[mask], label=objects.label[mask], box=objects.box[mask], score=score
  )


def detections(config, workdir: epath.Path) -> coco.Instances:
  """What a run finds in its evaluation split."""
  evaluate = task.PairedDetection.evaluate_examples
  with mock.patch.object(
    task.PairedDetection, 'evaluate_examples', autospec=True, side_effect=evaluate
  ) as spy:
    loop.evaluate(config, workdir)
  rows = spy.call_args.args[2]
  return coco.Instances(
    image=rows['image'], label=rows['label'], box=rows['box'].astype(float), score=rows['score']
  )


def ap50(truths: coco.Instances, found: coco.Instances) -> float:
  """YOLOv5's AP50, the mean over the classes."""
  right = yolo.match(truths, found)
  return yolo.average_precision(right, found.score, found.label, truths.label).ap[:, 0].mean()


def main():
  """Prints a row per run."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('workdirs', nargs='+', type=epath.Path)
  print('| run | all |', *(f'{kind} |' for kind in KINDS))
  for workdir in parser.parse_args().workdirs:
    config = config_lib.load(workdir / 'config.json')
    truths, kinds = true_objects(config.dataset)
    found = detections(config, workdir)
    row = [ap50(truths, found)]
    for kind in range(len(KINDS)):
      others = yolo.match(chosen(truths, kinds != kind), found)[:, 0]
      row.append(ap50(chosen(truths, kinds == kind), chosen(found, ~others)))
    print(f'| {workdir.name} |', *(f'{value:.3f} |' for value in row), flush=True)
  shares = np.bincount(kinds) / len(kinds)
  print(
    f'{len(kinds)} objects:', *(f'{x:.0%} {kind}' for x, kind in zip(shares, KINDS, strict=True))
  )


if __name__ == '__main__':
  main()
