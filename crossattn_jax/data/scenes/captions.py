"""Captions of procedural scenes: several sentences about each, and the words that occur in them."""

from collections.abc import Sequence
import dataclasses

from crossattn_jax.data.scenes import shapes as shape_scenes

CAPTIONS_PER_SCENE = 5

_NUMBERS = ('no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven')
_PLURALS = {
  shape: {'cross': 'crosses', 'square': 'squares'}.get(shape, f'{shape}s')
  for shape in shape_scenes.SHAPES
}


@dataclasses.dataclass(frozen=True)
class Item:
  """An object as captions mention it.

  Attributes:
    shape: its name.
    color: its name.
    texture: its name.
  """

  shape: str
  color: str
  texture: str

  @property
  def colored(self) -> str:
    """Colour and shape with an article."""
    return shape_scenes.with_article(f'{self.color} {self.shape}')

  @property
  def detailed(self) -> str:
    """Texture, colour and shape with an article."""
    return f'a {self.texture} {self.color} {self.shape}'


def captions(caption: str, items: Sequence[Item]) -> tuple[str, ...]:
  """Composes the sentences about a scene.

  Args:
    caption: the scene's own, which lists all objects and names the ground.
    items: its objects, nearest first.

  Returns:
    That caption, and four others, each about other properties: the order in depth, numbers of
    shapes, colours, textures.
  """
  listed = shape_scenes.listed
  ground = caption.partition(';')[0].rpartition(' on ')[2]
  by_name = sorted(items, key=lambda item: (item.shape, item.color))
  textured = sorted(items[:4], key=lambda item: (item.texture, item.color))
  return (
    caption,
    f'{items[0].detailed} in front of {listed([item.colored for item in items[1:]] or [ground])}',
    f'{_count(items)} on {ground}: {listed(_shapes(items))}, {listed(_colors(items))}',
    f'{ground} with {listed([item.colored for item in by_name])}',
    f'there is {listed([item.detailed for item in textured])}',
  )


def vocabulary() -> tuple[str, ...]:
  """Every word and mark that captions hold, for a tokenizer; special tokens first as BERT's."""
  words = {'a', 'an', 'and', 'on', 'in', 'front', 'of', 'with', 'there', 'is', 'the'}
  words |= {'left', 'right', 'above', 'below', 'shape', 'shapes', 'small', 'medium', 'large'}
  words |= {*shape_scenes.SHAPES, *_PLURALS.values(), *_NUMBERS}
  words |= {*shape_scenes.COLORS, *shape_scenes.TEXTURES, *shape_scenes.GROUNDS}
  return ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *',:;', *sorted(words))


def _count(items: Sequence[Item]) -> str:
  return f'{_NUMBERS[len(items)]} shape{"s" if len(items) > 1 else ""}'


def _shapes(items: Sequence[Item]) -> list[str]:
  present = [item.shape for item in items]
  counts = {shape: present.count(shape) for shape in shape_scenes.SHAPES if shape in present}
  return [
    f'{_NUMBERS[count]} {shape if count == 1 else _PLURALS[shape]}'
    for shape, count in counts.items()
  ]


def _colors(items: Sequence[Item]) -> list[str]:
  present = {item.color for item in items}
  return [color for color in shape_scenes.COLORS if color in present]
