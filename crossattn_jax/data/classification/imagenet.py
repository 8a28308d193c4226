"""The classes of ImageNet (ILSVRC 2012) by name."""

import functools
import importlib.resources

from crossattn_jax.data import sources

NUM_CLASSES = 1000


@functools.cache
def names() -> dict[str, str]:
  """What each class is called, by its WordNet id such as 'n01440764', in the order of the labels.

  A class is called by the first word of its WordNet synset; where two would be called the same, one
  says more: 'crane bird', 'maillot tank suit'.
  """
  text = importlib.resources.files(__package__).joinpath('imagenet_classes.txt').read_text()
  return dict(line.split(' ', 1) for line in text.splitlines())


def has_its_classes(dataset: str, num_classes: int) -> bool:
  """Whether a data set's labels are those of ImageNet, by its name and number of classes.

  Others, such as `imagenet_resized`, have the classes in an order of their own.
  """
  return num_classes == NUM_CLASSES and sources.bare_name(dataset).startswith('imagenet2012')
