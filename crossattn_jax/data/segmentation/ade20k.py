"""The 150 classes of the scene parsing benchmark of ADE20K (Zhou et al. 2017)."""

import numpy as np

from crossattn_jax.data.segmentation import cityscapes

# In the order of the labels 1 to 150; 0 is everything else.
_NAMES = """
  wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
  person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
  house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
  railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
  skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
  screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
  bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
  arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
  television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman,
  bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
  swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
  step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
  sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
  monitor, bulletin board, shower, radiator, glass, clock, flag
"""
CLASS_NAMES = tuple(name.strip() for name in _NAMES.split(','))
PALETTE = cityscapes.voc_palette(len(CLASS_NAMES) + 1)[1:]
IGNORE_LABEL = 255


def to_classes(labels: np.ndarray) -> np.ndarray:
  """Maps labels, as the files have them, to classes: 0 to 255, others down by one."""
  return labels.astype(np.uint8) - np.uint8(1)


def to_labels(classes: np.ndarray) -> np.ndarray:
  """Maps classes to labels as the files have them."""
  return classes.astype(np.uint8) + np.uint8(1)
