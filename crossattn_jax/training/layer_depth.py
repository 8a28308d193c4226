"""How deep in its network a parameter is, by the names that all models share."""

from collections.abc import Iterable
import re

# A stage, as its blocks, what is before them and what is after them are called.
_STAGE = re.compile(
  r'(?:.*/)?(?:(?P<before>downsampling|embedding(?=_\d+/(?:conv|norm)/))|stage|encoder|layer'
  r'|(?P<cross>cross)|(?P<scale>scale))_(?P<stage>\d+)(?:[/_].*)?'
)
_BLOCK = re.compile(r'(?:.*[/_])?block_(\d+)(?:/.*)?')
_BEGINNING = re.compile(r'(?:backbone/|bert/)?(?:stem|patch|\w*embedding).*')

_Place = tuple[int, int, int]


def layers(paths: Iterable[str]) -> dict[str, int]:
  """Numbers the layers from the image to the result.

  Stems and embeddings are layer 0. A block is one, the same as the blocks beside it in other
  branches; so are what halves the maps before a stage, and what joins branches after it. Heads, the
  last norm and everything else that belongs to no stage are the last layer.

  Args:
    paths: of parameters.

  Returns:
    The layer of each.

  Raises:
    ValueError: the network has no numbered stages or layers.
  """
  places = {path: _place(path) for path in paths}
  found = {place for place in places.values() if place is not None}
  if not any(stage >= 0 for stage, *_ in found):
    raise ValueError(
      'optimizer.layer_decay: this model has no numbered stages or layers; set '
      'optimizer.multipliers'
    )
  numbers = {place: number for number, place in enumerate(sorted(found | {(-1, 0, 0)}))}
  return {path: numbers.get(place, len(numbers)) for path, place in places.items()}


def _place(path: str) -> _Place | None:
  """(stage, part of it, block); None for what comes after all stages."""
  match = _STAGE.fullmatch(path)
  if match is None or (match['before'] == 'embedding' and match['stage'] == '0'):
    return (-1, 0, 0) if _BEGINNING.fullmatch(path) else None
  block = _BLOCK.fullmatch(path)
  if match['before']:
    part = 0
  elif match['cross'] or (path.startswith('encoder_') and block is None):
    part = 2
  else:
    part = 3 if match['scale'] else 1
  return int(match['stage']), part, int(block[1]) if block else 0
