"""Weights as they were saved, onto the network that is wanted: what fits is kept, the rest is said.

opened = opening.open_weights('small.pth', 'crossvit_small_240')
module = registry.create_model('crossvit_small_240', num_classes=5)
fitted = fit(opened, 'crossvit_small_240', module, template('crossvit_small_240', module))
print('\n'.join(fitted.lines()))
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np

from crossattn_jax.conversion import convert, correspondence, opening, recognition
from crossattn_jax.conversion import mapping as mapping_lib
from crossattn_jax.layers import resize
from crossattn_jax.models import registry

# Fields of a model in which the network that was saved may differ from the one wanted.
CHANGED_BY_FITTING = ('num_classes', 'num_channels', 'image_size')

# The layers that end in classes.
_CLASSIFIER = re.compile(
  r'params/((.*/)?classifier|(backbone/)?head(_\w+|/class_\d+)?)/(kernel|bias)'
)
# The layer that ends in four offsets of a box for each class.
_BOXES_OF_CLASSES = re.compile(r'params/(.*/)?box_head/regressor/(kernel|bias)')
# Tokens of classes.
_CLASS_TOKENS = re.compile(r'params/class_(tokens|positions)')
# The layers that end in box, objectness and classes of every anchor.
_ANCHORS = re.compile(r'params/head/level_\d+/(kernel|bias)')
# Modules at the end of a network, which one use of it has and another has not.
_END = re.compile(
  r'\w+/((backbone/)?((auxiliary_)?head|norm|output_norm)(_\w+)?|region_head/mask_head)/'
)
# The backbone of one kind of image, in a network that has one for each.
_STREAM = 'stream_'
# Of a number in a file of half precision.
_ROUNDING = 1e-3
_HEAD, _DISTILLATION_HEAD = 'params/head/', 'params/head_distillation/'
_POSITIONS = re.compile(r'params/embedding_(\d+)/(position_embedding|positions|rows|columns)')
# Settings that do not change what trained weights mean.
_FREE = re.compile(
  r'num_(classes|channels)|(branch_)?image_sizes?|.*_rate|(param_)?dtype|remat|scan_blocks'
  r'|implementation|backbone|options|name|parent|distillation|auxiliary|frozen_norm|anchor_sizes'
  r'|freeze_text_encoder|unused_parameters|cross_zero_init|drop_convolutions|mask_(channels|convs)'
  r'|training_candidates|sampled_regions|positive_fraction|low_quality'
)
# Modules of a line.
_SHOWN = 3

Arrays = dict[str, np.ndarray]
# (path, how); see `Change`.
Note = Callable[[str, str], None]


@dataclasses.dataclass(frozen=True)
class Change:
  """What became of an array that was not taken as it is.

  Attributes:
    path: in the variables wanted, of a dropped array in those saved; collection first.
    how: in words, such as 'resized from 14x14 to 24x24 patches'; the first one says what it is.
  """

  path: str
  how: str

  @property
  def what(self) -> str:
    """'fresh', 'dropped', 'resized', 'adapted', 'averaged', 'copied' or 'reordered'."""
    return self.how.split()[0].rstrip(',')


@dataclasses.dataclass(frozen=True)
class Fitted:
  """Weights on the network that is wanted.

  Attributes:
    arrays: by path, collection first, in the dtypes wanted; without those that start fresh.
    changes: of all that were not taken as they are.
    origins: paths in the network that was saved, by those of `arrays` that were taken from it.
    differences: settings in which the network that was saved computes something else.
  """

  arrays: Mapping[str, np.ndarray]
  changes: tuple[Change, ...]
  origins: Mapping[str, str]
  differences: tuple[str, ...]

  @property
  def fresh(self) -> tuple[str, ...]:
    """Paths of the arrays that the weights do not give."""
    return tuple(change.path for change in self.changes if change.what == 'fresh')

  def lines(self) -> list[str]:
    """How much was taken as it is, and a line for the changes of each kind, for people."""
    untouched = self.arrays.keys() - {change.path for change in self.changes}
    total = len(self.arrays) + len(self.fresh)
    lines = [f'{len(untouched)} of {total} arrays are taken as they are']
    groups = collections.defaultdict(list)
    for change in self.changes:
      groups[change.how].append(change.path)
    for how, paths in groups.items():
      names = [path.split('/', 1)[1] for path in paths]
      modules = list(dict.fromkeys(name.rpartition('/')[0] or name for name in names))
      if len(modules) > _SHOWN:
        modules = list(dict.fromkeys(module.split('/')[0] for module in modules))
      more = f' and {len(modules) - _SHOWN} more' if len(modules) > _SHOWN else ''
      lines.append(f'{", ".join(modules[:_SHOWN])}{more}: {how}')
    return lines + [f'another setting: {difference}' for difference in self.differences]


def fit(
  opened: opening.OpenedWeights,
  name: str,
  module: nn.Module,
  wanted: Mapping[str, Any],
  *,
  fresh: Iterable[str] = (),
  class_names: Sequence[str] = (),
) -> Fitted:
  """Puts the variables of the network as it was saved onto another use of it.

  - Classifiers keep their weights where the number of classes is the same. Where both sides name
    their classes, other names start fresh, and the same ones in another order take their rows.
  - A network takes the weights of one of its parts, such as its backbone trained as a classifier,
    and a part those of the whole; so does another network on the same backbone. What they do not
    share starts fresh or is dropped.
  - What starts from weights of other networks takes these; the rest starts fresh.
  - A network of two streams takes those of a single one into both, and the other way round its own;
    what follows the streams starts fresh.
  - Heads of anchors keep their weights where the anchors are the same, up to half precision.
  - Without a distillation head, the head becomes the mean of both, as the results were; a
    distillation head that was not saved starts as the head.
  - Position embeddings and bias tables are resized, a class token's stays.
  - Kernels on colours are summed for grey images, and for other numbers of channels repeated and
    scaled, so that equal channels give the results of before (timm's rule).

  Args:
    opened: the weights.
    name: of the network wanted.
    module: that, built.
    wanted: its variables, as nested dicts of anything with shapes and dtypes.
    fresh: patterns, each of whole paths without the collection: what the weights have there is not
      taken.
    class_names: of the network wanted, in the order of its outputs; empty where they are not known.

  Raises:
    mapping.MappingError: anything else differs; the message has every name and both shapes.
  """
  wanted = traverse_util.flatten_dict(dict(wanted), sep='/')
  source = registry.create_model(opened.name, **opened.overrides)
  given = traverse_util.flatten_dict(dict(opened.variables), sep='/')
  places, parts = _place(given, wanted, source, module)
  saved = {path: given[key] for path, key in places.items()}
  changes: dict[str, Change] = {}

  def note(path: str, how: str) -> None:
    changes[path] = Change(path, how)

  for path in [*wanted, *saved]:
    if any(re.fullmatch(pattern, path.partition('/')[2]) for pattern in fresh):
      saved.pop(path, None)
      note(path, 'fresh, as asked for' if path in wanted else 'dropped, as asked for')
  _join_distillation(saved, wanted, note)
  counts = [recognition.field_of(network, 'num_classes') for network in (source, module)]
  _match_classes(saved, wanted, counts, opened.class_names, class_names, note)
  _match_anchors(saved, wanted, source, module, note)
  _resize_positions(saved, wanted, source, module, note)
  _adapt_kernels(saved, wanted, _channels(source), _channels(module), note)
  _resize_biases(saved, wanted, note)

  if any(part.startswith(_STREAM) for part in parts):
    for path in wanted:
      if path in given and path not in saved:
        note(path, 'fresh, that of the weights is for other streams')
  # Their paths may be those of other arrays here.
  known = {*places.values(), *changes}
  dropped = [Change(p, 'dropped, this network has none') for p in given if p not in known]
  if opened.in_part:
    for path in [path for path in wanted if path not in saved and path not in changes]:
      note(path, 'fresh, the weights have none')
  if problems := _settle_rest(saved, wanted, parts, changes, note):
    told, of = opened.told or opened.name, ''
    if opened.name != name:
      of = f' holds variables of {opened.name!r}, not of {name!r}'
    raise mapping_lib.MappingError(
      f'{told}{of}: {len(problems)} arrays differ in more than classes, image size and channels; '
      'build the model as it was saved, or let arrays start fresh (config.weights_fresh):\n  '
      + '\n  '.join(problems)
    )
  arrays = {
    path: np.asarray(saved[path]).astype(leaf.dtype, copy=False)
    for path, leaf in wanted.items()
    if path in saved
  }
  origins = {path: key for path, key in places.items() if path in arrays}
  target = getattr(module, parts[0]) if parts and hasattr(module, parts[0]) else module
  differences = () if parts and target is module else _differences(source, target)
  return Fitted(arrays, (*changes.values(), *dropped), origins, tuple(differences))


def _place(
  given: Iterable[str], wanted: Iterable[str], source: nn.Module, module: nn.Module
) -> tuple[dict[str, str], Sequence[str]]:
  """Finds what two networks have in common.

  Returns:
    The paths in the network that was saved by those in the one wanted, without the modules that
    only the former has; and the top modules that hold them in the network wanted, none the whole.
  """
  backbones = [getattr(network, 'backbone', None) for network in (source, module)]
  if type(source) is not type(module) and all(isinstance(x, nn.Module) for x in backbones):
    # Other heads.
    return {path: path for path in given if _top(path) == 'backbone'}, ('backbone',)
  contexts = [getattr(network, 'context', None) for network in (source, module)]
  if type(source) is type(module) and contexts[0] != contexts[1]:
    # Another head; what else stands on the backbone is the same.
    return {path: path for path in given if _top(path) != 'head'}, ('backbone', 'auxiliary_head')
  theirs, ours = (
    [top for top in dict.fromkeys(map(_top, paths)) if top.startswith(_STREAM)]
    for paths in (given, wanted)
  )
  if len(theirs) != len(ours) and theirs and ours:
    # What follows the streams has learnt to read others.
    origin = {top: top if top in theirs else theirs[0] for top in ours}
    return {
      _under(path, top): path for top in ours for path in given if _top(path) == origin[top]
    }, ours
  candidates = [({path: path for path in given}, ())]
  if len(theirs) == len(ours) == 1:
    candidates = [({_under(p, ours[0]) if _top(p) == theirs[0] else p: p for p in given}, ())]
  for part in dict.fromkeys(map(_top, wanted)):
    candidates.append(({_inside(path, part): path for path in given}, (part,)))
  for part in dict.fromkeys(map(_top, given)):
    of_part = {_inside(path, part): path for path in wanted}
    candidates.append(({of_part.get(p, p): p for p in given if _top(p) == part}, ()))
  wanted = set(wanted)
  return max(candidates, key=lambda candidate: len(wanted & candidate[0].keys()))


def _top(path: str) -> str:
  """The top module of a path that begins with the collection."""
  return path.split('/')[1]


def _inside(path: str, part: str) -> str:
  """The path of an array in a network of which its own network is a part."""
  collection, _, rest = path.partition('/')
  return f'{collection}/{part}/{rest}'


def _under(path: str, top: str) -> str:
  """The path with another top module."""
  collection, _, rest = path.split('/', 2)
  return f'{collection}/{top}/{rest}'


def _is_absent_end(path: str, others: Iterable[str]) -> bool:
  """Whether a path is of a module at the end of a network, of which the others have nothing."""
  end = _END.match(path)
  return end is not None and not any(other.startswith(end[0]) for other in others)


def _join_distillation(saved: Arrays, wanted: Mapping[str, Any], note: Note) -> None:
  """Makes one head of two, or two of one, with the same results."""
  for leaf in ('kernel', 'bias'):
    head, second = _HEAD + leaf, _DISTILLATION_HEAD + leaf
    if head not in saved or head not in wanted or (second in saved) == (second in wanted):
      continue
    if second in wanted:
      saved[second] = saved[head]
      note(second, 'copied from head: the weights have no distillation head')
    else:
      saved[head] = (saved[head] + saved.pop(second)) / 2
      note(head, 'averaged with head_distillation, as the results were: this network has one head')


def _match_classes(
  saved: Arrays,
  wanted: Mapping[str, Any],
  counts: Sequence[int | None],
  names: Sequence[str],
  class_names: Sequence[str],
  note: Note,
) -> None:
  """Takes away layers that end in other classes, and puts classes into the order wanted.

  Args:
    saved: changed in place.
    wanted: by path.
    counts: of the classes in the weights, and of those wanted.
    names: of the classes in the weights.
    class_names: of those wanted.
    note: see there.
  """
  there, here = counts
  other = [name for name in class_names if name not in names]
  named = len(names) == len(class_names) == here and tuple(names) != tuple(class_names)
  for path in [path for path in wanted if path in saved]:
    rows, columns = (_BOXES_OF_CLASSES, _CLASS_TOKENS), (_CLASSIFIER, _ANCHORS)
    if not any(pattern.fullmatch(path) for pattern in rows + columns):
      continue
    axis = -2 if any(pattern.fullmatch(path) for pattern in rows) else -1
    shapes = [list(arrays[path].shape) for arrays in (saved, wanted)]
    lengths = [shape.pop(axis) for shape in shapes]
    if shapes[0] == shapes[1] and lengths[0] != lengths[1]:
      why = f'{there} classes in the weights, {here} here'
    elif shapes[0] != shapes[1] or not named:
      continue
    elif other:
      more = f' and {len(other) - _SHOWN} more' if len(other) > _SHOWN else ''
      why = f'other classes here: {", ".join(other[:_SHOWN])}{more}'
    else:
      order = [names.index(name) for name in class_names]
      others = 5 if _ANCHORS.fullmatch(path) else 0
      saved[path] = _in_order(saved[path], axis, order, others)
      note(path, 'reordered, the same classes in another order')
      continue
    del saved[path]
    note(path, f'fresh, {why}')


def _match_anchors(
  saved: Arrays, wanted: Mapping[str, Any], source: nn.Module, module: nn.Module, note: Note
) -> None:
  """Takes away layers whose results are relative to anchors of other sizes."""
  there, here = (getattr(network, 'anchor_sizes', ()) for network in (source, module))
  if np.shape(there) == np.shape(here) and np.allclose(there, here, rtol=_ROUNDING):
    return
  for path in [path for path in wanted if path in saved and _ANCHORS.fullmatch(path)]:
    del saved[path]
    note(path, f'fresh, other anchors here: the weights are for anchor_sizes={there}')


def _in_order(array: np.ndarray, axis: int, order: Sequence[int], others: int = 0) -> np.ndarray:
  """Puts the classes along an axis into another order.

  There they stand once, or once for each anchor, behind `others` that stay; what follows them
  stays too, as a background does.
  """
  index, step = np.arange(array.shape[axis]), others + len(order)
  rows = index[: len(index) // step * step].reshape(-1, step)
  rows[:, others:] = rows[:, others:][:, order]
  return np.take(array, index, axis)


def _resize_positions(
  saved: Arrays, wanted: Mapping[str, Any], source: nn.Module, module: nn.Module, note: Note
) -> None:
  """Resizes learnt positions to other grids of patches, and separates joint ones."""
  for path in [path for path in saved if _POSITIONS.fullmatch(path)]:
    folder, _, leaf = path.rpartition('/')
    index = int(_POSITIONS.fullmatch(path)[1])
    grid, new_grid = source.grids()[index], module.grids()[index]
    joint = leaf not in ('rows', 'columns')
    if joint and saved[path].shape[-2] - math.prod(grid) not in (0, 1):
      continue  # Not of the grid that the weights say.
    if path in wanted and saved[path].shape != wanted[path].shape:
      if not joint:
        axis = ('rows', 'columns').index(leaf)
        line = resize.resize(saved[path][:, None], (new_grid[axis], 1), 'bilinear')
        saved[path] = np.asarray(line[:, 0])
      else:
        saved[path] = np.asarray(resize.resize_position_embedding(saved[path], grid, new_grid))
      shapes = ('x'.join(map(str, each)) for each in (grid, new_grid))
      note(path, 'resized from {} to {} patches'.format(*shapes))
    elif path not in wanted and f'{folder}/rows' in wanted:
      table = np.asarray(resize.resize_position_embedding(saved.pop(path), grid, new_grid))
      extra = len(table) - math.prod(new_grid)
      places = table[extra:].reshape(*new_grid, -1)
      parts = {
        'rows': places.mean(axis=1),
        'columns': places.mean(axis=0) - places.mean(axis=(0, 1)),
        'class_position': table[:1],
      }
      for name, part in parts.items():
        if f'{folder}/{name}' in wanted:
          saved[f'{folder}/{name}'] = part
          note(f'{folder}/{name}', 'adapted, joint positions as sums of rows and columns')


def _channels(network: nn.Module) -> int | None:
  """Of a network's images."""
  backbone = getattr(network, 'backbone', None)
  return getattr(backbone if isinstance(backbone, nn.Module) else network, 'num_channels', None)


def _settle_rest(
  saved: Arrays,
  wanted: Mapping[str, Any],
  parts: Sequence[str],
  changes: Mapping[str, Change],
  note: Note,
) -> list[str]:
  """Notes the ends of networks that one of both has not; returns all other differences."""
  problems = []
  for path, leaf in wanted.items():
    if path in saved and saved[path].shape != leaf.shape:
      problems.append(f'{path}: {saved[path].shape} in the file, {leaf.shape} in the model')
    elif path not in saved and path not in changes:
      if (parts and _top(path) not in parts) or _is_absent_end(path, saved):
        note(path, 'fresh, the weights have none')
      else:
        problems.append(f'{path}: missing in the file, {leaf.shape} in the model')
  for path, array in saved.items():
    if path not in wanted and path not in changes:
      if _is_absent_end(path, wanted):
        note(path, 'dropped, this network has none')
      else:
        problems.append(f'{path}: {array.shape} in the file, none in the model')
  return problems


def _adapt_kernels(
  saved: Arrays, wanted: Mapping[str, Any], there: int | None, here: int | None, note: Note
) -> None:
  """Makes convolutions of images with `there` channels take images with `here`."""
  if there == here:
    return
  for path in [path for path in wanted if path in saved and path.endswith('/kernel')]:
    kernel, shape = saved[path], wanted[path].shape
    if kernel.ndim < 3 or kernel.shape[-2] != there or shape[-2] != here:
      continue
    if here == 1:
      saved[path] = kernel.sum(axis=-2, keepdims=True)
      note(path, f'adapted, summed over {there} channels')
    else:
      repeated = np.take(kernel, np.arange(here) % there, axis=-2)
      saved[path] = repeated * (there / here)
      note(path, f'adapted, {there} channels repeated and scaled for {here}')


def _resize_biases(saved: Arrays, wanted: Mapping[str, Any], note: Note) -> None:
  """Resizes tables of relative position biases `[heads, offsets, offsets]` to other windows."""
  for path in [path for path in wanted if path in saved]:
    there, here = saved[path].shape, wanted[path].shape
    if path.endswith('/relative_position_bias') and there != here and there[0] == here[0]:
      table = np.moveaxis(saved[path], 0, -1)
      saved[path] = np.moveaxis(np.asarray(resize.resize(table, here[1:])), -1, 0)
      note(path, f'resized from {there[1]} to {here[1]} offsets a side')


def _differences(source: nn.Module, target: nn.Module) -> list[str]:
  """Settings in which two networks of one kind compute something else with equal weights."""
  if type(source) is not type(target):
    return []
  owners = [getattr(network, 'options', network) for network in (source, target)]
  differences = []
  for field in dataclasses.fields(owners[0]):
    there, here = (getattr(owner, field.name) for owner in owners)
    if there != here and not _FREE.fullmatch(field.name):
      differences.append(f'{field.name}={there!r} in the weights, {here!r} here')
  backbones = [getattr(network, 'backbone', None) for network in (source, target)]
  if all(isinstance(backbone, nn.Module) for backbone in backbones):
    differences += _differences(*backbones)
  return differences


def inherit(
  saved_name: str, saved: Mapping[str, Any], name: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """Fields of the model `name`: those given, and where they are missing or None those saved.

  The number of classes of another network is its own.
  """
  known = registry.model_config(name)
  given = {field: value for field, value in overrides.items() if value is not None}
  saved = {field: value for field, value in saved.items() if field in known}
  if saved_name != name:
    saved.pop('num_classes', None)
  if 'image_size' in given and tuple(given['image_size']) != tuple(saved.get('image_size', ())):
    # What follows from the size of the images.
    saved.pop('branch_image_sizes', None)
  return saved | given


def refit(
  opened: opening.OpenedWeights,
  name: str | None = None,
  overrides: Mapping[str, Any] | None = None,
  *,
  fresh: Iterable[str] = (),
  seed: int = 0,
) -> opening.OpenedWeights:
  """Weights of a model built otherwise, complete: `fit`, and what starts fresh initialised.

  Args:
    opened: the weights.
    name: of the model wanted; that of the weights by default.
    overrides: of `create_model`; where they say nothing the model is as it was saved.
    fresh: as in `fit`.
    seed: of the initialisation.

  Returns:
    The weights, their report with a line for every array that was changed.

  Raises:
    mapping.MappingError: as in `fit`.
  """
  name = opened.name if name is None else name
  overrides = inherit(opened.name, opened.overrides, name, overrides or {})
  module = registry.create_model(name, **overrides)
  fitted = fit(opened, name, module, template(name, module), fresh=fresh)
  arrays = {**fitted.arrays, **initialise(name, module, fitted.fresh, seed)}
  report = {line.flax_path or line.torch_key: line for line in opened.report}
  lines = {}
  for path, array in arrays.items():
    line = report.pop(fitted.origins.get(path), convert.Line('', (), path, (), 'as it was'))
    lines[path] = dataclasses.replace(line, flax_path=path, flax_shape=array.shape)
  for change in fitted.changes:
    if change.path in lines:
      lines[change.path] = dataclasses.replace(lines[change.path], action=change.how)
    elif change.path in report:
      line = report.pop(change.path)
      lines[change.path] = dataclasses.replace(line, flax_path='', flax_shape=(), action=change.how)
  return dataclasses.replace(
    opened,
    name=name,
    overrides=overrides,
    variables=traverse_util.unflatten_dict(arrays, sep='/'),
    report=(*lines.values(), *report.values()),
  )


def template(name: str, module: nn.Module) -> dict[str, Any]:
  """The shapes and dtypes of the variables of the registered model `name`, built as `module`."""
  call, inputs = _trial(name, module)
  return correspondence.model_template(module, call, inputs)


def initialise(
  name: str, module: nn.Module, paths: Sequence[str], seed: int = 0
) -> dict[str, np.ndarray]:
  """Initial values of the variables at the paths, collection first."""
  call, inputs = _trial(name, module)
  return correspondence.initialise(module, call, inputs, paths, seed)


def _trial(name: str, module: nn.Module) -> tuple[Callable[..., Any], correspondence.Inputs]:
  """A call of the model that makes its variables, and the shapes of its inputs."""
  try:
    described = correspondence.describe_model(name, module)
  except correspondence.NoCorrespondence:
    shape = (1, *module.image_size, _channels(module))
    return lambda model, inputs: model(**inputs), {'image': jax.ShapeDtypeStruct(shape, np.float32)}
  return described.call, described.inputs
