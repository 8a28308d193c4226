"""What trained models make of files and of evaluation examples, as people look at it."""

import abc
import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import itertools
import json
import os
from typing import Any, ClassVar

from absl import logging
from etils import epath
import grain
import jax
import numpy as np

from crossattn_jax.data import sources
from crossattn_jax.tasks import review

Batch = Mapping[str, jax.Array]
Variables = Mapping[str, Any]
Record = dict[str, Any]
# What `predict` made of one example, or what a batch has of it.
Row = Mapping[str, np.ndarray]

PICTURES = ('none', 'sheet', 'each')
# Places of an image that can be let look, in either direction.
_PLACES = 8
# Up to so many inputs have a picture each by default, and so many a sheet shows.
MOST_PICTURES = 32
SHEET = 'predictions.png'
# Of the examples in one picture.
_MOST_SHAPES = 2
# Files that cannot be read, in messages.
_MOST_NAMED = 20


@dataclasses.dataclass(frozen=True)
class Input:
  """Something to predict for.

  Attributes:
    name: of its pictures: its path below the folder that was given, without the extension.
    paths: of the files that it is read from.
  """

  name: str
  paths: tuple[str, ...]

  def __str__(self) -> str:
    return ', '.join(self.paths)


@dataclasses.dataclass(frozen=True)
class Field:
  """Something that a person gives for one prediction, on a page.

  Attributes:
    name: a word, of the folder that it is stored in.
    kind: 'image', 'sound', 'drawing' and any other 'file' are files, 'text' is one that the page
      writes.
    label: what it is, for people.
    extensions: of any other 'file'.
  """

  name: str
  kind: str
  label: str
  extensions: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Loaded:
  """An input that was read.

  Attributes:
    example: what the model takes of it, without a batch axis.
    shown: what records and pictures are made of besides.
  """

  example: dict[str, np.ndarray]
  shown: Any = None

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Only examples of equal shapes share a batch."""
    return {name: x.shape for name, x in self.example.items()}


class Predictor(abc.ABC):
  """Predicts for what `--input` names, and draws what comes of it.

  Attributes:
    task: that was learnt.
    variables: of its model.
    extensions: of the files that folders are searched for.
    expected: what `--input` names, for messages.
    fields: that make up one input.
    shown_files: of a record, the files that are pictures for people.
    looking: number of the place of an image that looks, where pictures show attention of a place:
      by rows from 1 to `num_places`; 0 where the model says it.
  """

  extensions: ClassVar[Sequence[str]] = sources.IMAGE_EXTENSIONS
  expected: ClassVar[str] = 'an image, or a folder with images'
  fields: ClassVar[Sequence[Field]] = (Field('image', 'image', 'Image'),)
  shown_files: ClassVar[Sequence[str]] = ('picture',)
  looking: int = 0

  def __init__(self, task: Any, variables: Variables):
    self.task, self.variables = task, variables

  # What is a task's own.

  @abc.abstractmethod
  def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Predictions of a batch that needs no labels. Inside jit."""

  @abc.abstractmethod
  def predictions(
    self,
    inputs: Sequence[Input],
    output: epath.Path,
    drawn: str | None,
    unreadable: dict[str, Exception],
  ) -> Iterator[Record]:
    """Yields records while files and pictures are written; see `write_predictions`.

    Args:
      inputs: as `find_inputs` returns them.
      output: an existing folder.
      drawn: one of `PICTURES`, or None for `default_pictures`.
      unreadable: is filled with the inputs that cannot be read, and why.
    """

  @abc.abstractmethod
  def write_samples(self, path: epath.Path) -> None:
    """Writes a picture with predictions for some evaluation examples."""

  @abc.abstractmethod
  def write_worst(self, path: epath.Path, mistakes: Sequence[review.Mistake]) -> None:
    """Writes a picture of the first of some evaluation examples, true against predicted.

    Args:
      path: of the PNG.
      mistakes: at least one, the worst first.
    """

  def mistake_name(self, mistake: review.Mistake) -> str:
    """How tables name the example of a mistake."""
    examples = self.task.examples(self.task.config.dataset.eval_split)
    return examples.describe(examples.example_of(mistake.index))

  def summarize(self, records: Sequence[Record], output: epath.Path) -> None:  # noqa: B027  (a hook)
    """Writes what all records together say into the output folder; nothing by default."""

  def input_of(self, files: Mapping[str, epath.Path]) -> epath.Path:
    """What `--input` is where the fields were given.

    Args:
      files: by the names of the fields. Each is in a folder of that name, all in one folder and
        with the same name but for extensions.

    Returns:
      The file; of several fields, the folder that they are all below.
    """
    first, *others = files.values()
    return first.parent.parent if others else first

  @classmethod
  def check(cls, task: Any) -> Sequence[str]:
    """Refuses what nothing can be predicted with, before weights are loaded.

    Returns:
      Lines for the person at the terminal; none by default.
    """
    del task
    return ()

  # What is the same for all.

  @classmethod
  def find_inputs(
    cls, given: epath.Path, apart_from: epath.Path | None = None
  ) -> tuple[list[Input], collections.Counter[str]]:
    """What `--input` names: a file, or those below a folder that have one of the `extensions`.

    Args:
      given: a local file, whatever its name, or a folder.
      apart_from: a folder whose files are none, as it has the results.

    Returns:
      The inputs, and how many other files there are, by their extension.

    Raises:
      FileNotFoundError: there are none.
    """
    if not given.exists():
      raise FileNotFoundError(f'--input={given} does not exist; expected {cls.expected}')
    if not given.is_dir():
      return [Input(given.stem, (str(given),))], collections.Counter()
    paths, left_out = sources.find_files(given, cls.extensions, apart_from)
    if not paths:
      found = f' but {sources.counted(left_out)}' if left_out else ''
      raise FileNotFoundError(
        f'--input={given}: expected {cls.expected} ({", ".join(cls.extensions)}); there is none in '
        f'that folder or below{found}'
      )
    return [Input(relative_name(path, given), (path,)) for path in paths], left_out

  @functools.cached_property
  def _predict(self) -> Callable[[Variables, Batch], dict[str, jax.Array]]:
    return jax.jit(self.predict)

  @property
  def num_places(self) -> int:
    """How many places of an image `looking` can name; 0 where none looks in the pictures."""
    return _PLACES**2 if hasattr(self.task.model, 'attention_queries') else 0

  def outputs(self, batch: Batch) -> dict[str, Any]:
    """`predict` of a batch, compiled, on the host.

    Where `looking` names a place, the batch has its shares of height and width as 'place',
    `[batch, 2]`.
    """
    if self.looking:
      if not 0 < self.looking <= self.num_places:
        raise ValueError(
          f'no place {self.looking} can look: they are 1 to {self.num_places}, 0 is as the model '
          'has it'
        )
      place = (np.array(divmod(self.looking - 1, _PLACES), np.float32) + 0.5) / _PLACES
      batch = {**batch, 'place': np.tile(place, (len(next(iter(batch.values()))), 1))}
    return jax.device_get(self._predict(self.variables, batch))

  def write_predictions(
    self,
    given: epath.Path,
    output: epath.Path,
    pictures: str | None = None,
    on_record: Callable[[Record], None] = lambda record: None,
  ) -> list[Record]:
    """Predicts for files; writes results and pictures into a folder.

    What of a folder is of another kind or cannot be read is left out, which is logged.

    Args:
      given: a file or a folder, or what else `find_inputs` takes.
      output: folder of the results, made if it does not exist. `predictions.json` has the records,
        also where an error or Ctrl-C ended this early.
      pictures: 'each' draws every input as `NAME.png`, 'sheet' up to `MOST_PICTURES` of them,
        evenly spread, in `predictions.png`; 'none'. See `default_pictures`.
      on_record: is called with each record as soon as it is there.

    Returns:
      JSON-able records, mostly one per file.

    Raises:
      FileNotFoundError: there is no input.
      ValueError: no input can be read, or a result would overwrite one.
    """
    if pictures not in (None, *PICTURES):
      raise ValueError(f'pictures={pictures!r} is not one of {", ".join(PICTURES)}')
    inputs, left_out = self.find_inputs(given, output)
    records: list[Record] = []
    unreadable: dict[str, Exception] = {}
    output.mkdir(parents=True, exist_ok=True)
    try:
      for record in self.predictions(inputs, output, pictures, unreadable):
        records.append(record)
        on_record(record)
      if len(unreadable) == len(inputs):
        raise _none_readable(given, unreadable)
    finally:
      (output / 'predictions.json').write_text(json.dumps(records, indent=2) + '\n')
      self.summarize(records, output)
      _report(left_out, unreadable if records else {})
    return records


class FilePredictor(Predictor):
  """Predicts for each file, or for each few that belong together, by itself.

  A task says how an input is loaded, what is recorded and what is drawn.

  Attributes:
    kinds: of the files that are written besides pictures, each in a folder of that name.
    suffixes: of the files of a kind; '.png' of those that are not named.
    batch_size: most examples of one shape that are predicted together.
    num_samples: evaluation examples in the picture of a run.
  """

  kinds: ClassVar[Sequence[str]] = ()
  suffixes: ClassVar[Mapping[str, str]] = {}
  batch_size: ClassVar[int] = 1
  num_samples: ClassVar[int] = 16

  # What is a task's own.

  @abc.abstractmethod
  def load(self, source: Input) -> Loaded:
    """Reads an input; is called in threads.

    Raises:
      ValueError: it cannot be read.
      OSError: likewise.
    """

  @abc.abstractmethod
  def record(self, shown: Any, result: Row, files: Mapping[str, epath.Path]) -> Record:
    """What is said of an input, as JSON can hold it; writes the files, one of each of `kinds`."""

  @abc.abstractmethod
  def sample(self, shown: Any, result: Row) -> Any:
    """What pictures need of an input, as a dataclass; sheets show its `name` too."""

  @abc.abstractmethod
  def evaluation_sample(self, example: Row, result: Row) -> Any:
    """What pictures need of an evaluation example, the truth included."""

  @abc.abstractmethod
  def draw(self, path: epath.Path, sample: Any) -> None:
    """Writes the picture of one sample."""

  @abc.abstractmethod
  def draw_sheet(self, path: epath.Path, samples: Sequence[Any]) -> None:
    """Writes a picture of several samples."""

  def begin(self, inputs: Sequence[Input]) -> None:
    """Is called before inputs are loaded; does nothing by default."""

  def source_record(self, source: Input) -> Record:
    """How records name an input."""
    return {'input': source.paths[0]}

  # What is the same for all.

  def predictions(
    self,
    inputs: Sequence[Input],
    output: epath.Path,
    drawn: str | None,
    unreadable: dict[str, Exception],
  ) -> Iterator[Record]:
    """See `Predictor.predictions`; records have the order of the inputs."""
    self.begin(inputs)
    drawn = drawn or default_pictures(len(inputs))
    kinds = [*self.kinds, *(['picture'] if drawn == 'each' else [])]
    suffixes = {kind: self.suffixes.get(kind, '.png') for kind in kinds}
    files = dict(zip(inputs, output_files(inputs, output, suffixes), strict=True))
    on_sheet = set(evenly_spread(inputs, MOST_PICTURES) if drawn == 'sheet' else ())
    samples = []
    for source, shown, result in self._results(inputs, unreadable):
      for file in files[source].values():
        file.parent.mkdir(parents=True, exist_ok=True)
      record = self.source_record(source) | self.record(shown, result, files[source])
      if drawn == 'each':
        self.draw(files[source]['picture'], self.sample(shown, result))
      elif source in on_sheet:
        samples.append(dataclasses.replace(self.sample(shown, result), name=source.name))
      yield record | {kind: str(file) for kind, file in files[source].items()}
    if samples:
      self.draw_sheet(output / SHEET, samples)

  def _results(
    self, inputs: Sequence[Input], unreadable: dict[str, Exception]
  ) -> Iterator[tuple[Input, Any, Row]]:
    """What is shown of each input and what is predicted for it.

    All batches of examples of one shape have the same size, for one program; in the last one a row
    is repeated for those that lack.
    """
    most = min(self.batch_size, self.task.config.evaluation.batch_size or self.batch_size)
    # No larger than it must be for as few batches.
    size = -(-len(inputs) // -(-len(inputs) // most))
    readable = self._load_ahead(inputs, unreadable)
    for _, alike in itertools.groupby(readable, key=lambda pair: pair[1].shapes):
      while rows := list(itertools.islice(alike, size)):
        examples = [loaded.example for _, loaded in rows]
        examples += examples[-1:] * (size - len(rows))
        outputs = self.outputs(jax.tree.map(lambda *each: np.stack(each), *examples))
        for number, (source, loaded) in enumerate(rows):
          yield source, loaded.shown, row_of(outputs, number)

  def _load_ahead(
    self, inputs: Sequence[Input], unreadable: dict[str, Exception]
  ) -> Iterator[tuple[Input, Loaded]]:
    """The inputs that can be read, loaded in threads while the device computes."""
    threads = self.task.config.dataset.num_threads
    options = grain.ReadOptions(threads, prefetch_buffer_size=max(threads, self.batch_size))
    loaded = grain.MapDataset.source(inputs).map(self._try_to_load).to_iter_dataset(options)
    with contextlib.closing(iter(loaded)) as iterator:
      for source, result in zip(inputs, iterator, strict=True):
        if isinstance(result, Exception):
          unreadable[str(source)] = result
        else:
          yield source, result

  def _try_to_load(self, source: Input) -> Loaded | Exception:
    try:
      return self.load(source)
    except (ValueError, OSError) as error:
      return error

  def write_samples(self, path: epath.Path) -> None:
    """Writes a picture with predictions for some evaluation examples."""
    examples = self.task.examples(self.task.config.dataset.eval_split)
    batch = examples.sample_batch(self.num_samples)
    self.draw_sheet(path, self._samples(batch))

  def write_worst(self, path: epath.Path, mistakes: Sequence[review.Mistake]) -> None:
    """See `Predictor.write_worst`. Examples of further shapes, each a program, are left out."""
    examples = self.task.examples(self.task.config.dataset.eval_split)
    buckets, alike = examples.buckets(), collections.defaultdict(list)
    shown = []
    for mistake in mistakes:
      bucket = buckets[mistake.index]
      if len(shown) < self.num_samples and (bucket in alike or len(alike) < _MOST_SHAPES):
        alike[bucket].append(mistake.index)
        shown.append(mistake)
    samples = {}
    for indices in alike.values():
      batch = examples.batch_of(indices, self.num_samples)
      samples |= zip(indices, self._samples(batch), strict=True)
    self.draw_sheet(path, [self.mistake_sample(samples[x.index], x) for x in shown])

  def mistake_sample(self, sample: Any, mistake: review.Mistake) -> Any:
    """What a picture shows of a mistake: a sample with what is wrong in the place of its name."""
    return dataclasses.replace(sample, name=mistake.text)

  def _samples(self, batch: dict[str, np.ndarray]) -> list[Any]:
    """What pictures need of the examples of a batch that can be read."""
    mask = batch.pop('mask')
    batch.pop('skipped', None)
    outputs = self.outputs(batch)
    return [
      self.evaluation_sample(row_of(batch, row), row_of(outputs, row))
      for row in np.flatnonzero(mask)
    ]


def with_class_names(draw: Callable[..., None]) -> Callable[..., None]:
  """A method to draw, of a function that takes the names of the task's classes too."""
  return lambda self, path, shown: draw(path, shown, self.task.class_names)


def class_shares(classes: np.ndarray, names: Sequence[str]) -> list[Record]:
  """What records say of the classes of pixels or points that occur, the largest share first."""
  present, counts = np.unique(classes, return_counts=True)
  return [
    {'index': int(present[i]), 'name': names[present[i]], 'share': float(counts[i] / classes.size)}
    for i in np.argsort(-counts, kind='stable')
  ]


def row_of(batch: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
  """One example of a batch."""
  return {name: x[row] for name, x in batch.items()}


def relative_name(path: str, folder: epath.Path) -> str:
  """A file's path below a folder, without the extension."""
  return os.path.splitext(os.path.relpath(path, folder))[0]


def output_files(
  inputs: Sequence[Input], output: epath.Path, suffixes: Mapping[str, str]
) -> list[dict[str, epath.Path]]:
  """Files for the results of each input, by kind, of which no two are the same.

  Those of kind 'picture' are `NAME.png` in the folder, others `KIND/NAME` and the suffix of that
  kind. A name that was there before gets a number.

  Raises:
    ValueError: such a file is an input.
  """
  taken = {SHEET}
  given = {os.path.abspath(path) for source in inputs for path in source.paths}
  folders = {kind: '' if kind == 'picture' else f'{kind}/' for kind in suffixes}
  results = []
  for source in inputs:
    for number in itertools.count(1):
      name = source.name if number == 1 else f'{source.name}_{number}'
      files = {kind: f'{folder}{name}{suffixes[kind]}' for kind, folder in folders.items()}
      # Some file systems do not tell case.
      if not taken.intersection(file.lower() for file in files.values()):
        break
    taken.update(file.lower() for file in files.values())
    for file in files.values():
      if os.path.abspath(output / file) in given:
        raise ValueError(
          f'--output={output}: {file} is an input there, and would be overwritten; give another '
          'folder'
        )
    results.append({kind: output / file for kind, file in files.items()})
  return results


def default_pictures(count: int) -> str:
  """A picture of each of a few inputs, a sheet of some of many."""
  return 'each' if count <= MOST_PICTURES else 'sheet'


def evenly_spread(items: Sequence[Any], most: int) -> list[Any]:
  """Up to `most` of the items, from the first to the last."""
  return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).astype(int))]


def _none_readable(given: epath.Path, unreadable: Mapping[str, Exception]) -> Exception:
  """The error where nothing could be read: that of the only input, or of the first."""
  first = next(iter(unreadable.values()))
  if len(unreadable) == 1:
    return first
  return ValueError(f'--input={given}: none of {len(unreadable)} files can be read; {first}')


def _report(left_out: Mapping[str, int], unreadable: Mapping[str, Exception]) -> None:
  """Logs how many files were left out, and which could not be read and why."""
  for source, error in itertools.islice(unreadable.items(), _MOST_NAMED):
    logging.warning('left out %s: %s', source, error)
  parts = [sources.counted(left_out)] if left_out else []
  if unreadable:
    parts.append(f'{len(unreadable)} unreadable')
  if len(unreadable) > _MOST_NAMED:
    parts.append(f'of which {_MOST_NAMED} are named above')
  if parts:
    logging.warning('left out: %s', ', '.join(parts))
