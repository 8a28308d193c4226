"""What training knows of a task: how it is learnt, looked at and served."""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import inspect
import pathlib
import re
import types
from typing import Any, ClassVar

from etils import epath
from flax import linen as nn
import grain
import jax
import jax.numpy as jnp
import ml_collections

from crossattn_jax import config_errors, models
from crossattn_jax.data import pipeline, sources
from crossattn_jax.tasks import predictor, review

# In a picture, where a task does not choose.
_MAIN_METRICS = 6

Batch = predictor.Batch
Variables = predictor.Variables


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What one evaluation batch contributes.

  Attributes:
    sums: pytree of sums over the unmasked examples; the loop adds those of all batches exactly
      (integers as Python integers, floats in double precision).
    examples: pytree of per-example arrays `[batch, ...]`, which the loop gathers on the host and
      concatenates without the masked rows, for metrics that are no sums, such as average precision.
  """

  sums: Any
  examples: Any = None


jax.tree_util.register_dataclass(Evaluation, ['sums', 'examples'], [])


def complete_splits(
  config: ml_collections.ConfigDict, complete: Callable[[ml_collections.ConfigDict], list[str]]
) -> list[str]:
  """Has the data set say its splits where the config leaves one open; returns which are chosen."""
  dataset = config.dataset
  return complete(dataset) if None in (dataset.train_split, dataset.eval_split) else []


def complete_num_classes(config: ml_collections.ConfigDict) -> list[str]:
  """Sets the number of classes, where the config leaves it open, to that of the names; says it."""
  names = config.dataset.class_names
  if config.model.get('num_classes') is not None:
    return []
  with config.unlocked():
    config.model.num_classes = len(names)
  return [f'{len(names)} classes: {sources.shown(names)}']


def check_num_classes(config: ml_collections.ConfigDict, own: int, count: int) -> None:
  """Refuses a model of another number of classes than the data set has."""
  if own != count:
    raise config_errors.ConfigError(
      f'config.model.num_classes is {own}, but dataset {config.dataset.name!r} has {count} '
      f'classes; set config.model.num_classes={count}',
      {'model.num_classes': count},
    )


def check_class_weights(config: ml_collections.ConfigDict, count: int) -> None:
  """Refuses weights, if there are any, of another number of classes than the data set has."""
  weights = config.task.class_weights
  if weights and len(weights) != count:
    raise ValueError(
      f'config.task.class_weights has {len(weights)} entries; dataset {config.dataset.name!r} has '
      f'{count} classes'
    )


@dataclasses.dataclass(frozen=True)
class FrozenModel:
  """A trained model that the loss uses and nothing changes, such as a teacher.

  Attributes:
    name: of the model in the registry.
    overrides: of `create_model`.
    init: rng -> its variables.
    weights: what `config.weights` may be; None where nobody said.
    config_key: that says so, for messages.
  """

  name: str
  overrides: Mapping[str, Any]
  init: Callable[[jax.Array], Variables]
  weights: str | None
  config_key: str


class Serving(abc.ABC):
  """The forward pass as others use it, without this library; see `training.export`.

  Attributes:
    task: that was learnt.
    batches: what the examples of an input are called, by its name, where inputs have batches of
      different sizes, such as 'images'; 'batch' by default.
    modules: that the script imports, which need nothing of this library; put beside it.
    onnx: whether the program can be one of ONNX, and the script runs that.
  """

  batches: Mapping[str, str] = {}
  modules: Sequence[types.ModuleType] = ()
  onnx: bool = False

  def __init__(self, task: 'Task'):
    self.task = task

  @property
  def script(self) -> pathlib.Path:
    """Makes inputs of files and reads outputs by the description, as a program of its own.

    It stands beside the task, and is put beside the exported model as `load_and_run.py`.
    """
    return pathlib.Path(inspect.getfile(type(self.task))).with_name('serving_script.py')

  @property
  @abc.abstractmethod
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of one example of each input, without the batch."""

  @property
  @abc.abstractmethod
  def description(self) -> dict[str, Any]:
    """What makes the inputs of files and reads the outputs, as JSON can hold it."""

  @abc.abstractmethod
  def run(self, variables: Variables, inputs: Batch) -> dict[str, jax.Array]:
    """Maps named arrays with the batch first to such arrays. Inside jit."""


class Labels(abc.ABC):
  """Writes what a model says of its training examples, as labels that another one learns from.

  Attributes:
    examples: of a split.
    pending: numbers of those that have no labels yet.
  """

  examples: pipeline.Examples
  pending: Sequence[int]

  @abc.abstractmethod
  def __init__(self, task: 'Task', output: epath.Path, origin: Mapping[str, Any]):
    """Looks at what is there.

    Args:
      task: that was learnt.
      output: a folder, made if it does not exist.
      origin: what labels depend on besides the config, as JSON can hold it.

    Raises:
      ValueError: the folder has labels of another origin.
    """

  @abc.abstractmethod
  def add(self, examples: Any) -> None:
    """Writes labels for the rows of `Evaluation.examples` of a batch, on the host."""

  @abc.abstractmethod
  def finish(self) -> dict[str, float]:
    """Says how many there are and how good, once all are there."""


class Task(abc.ABC):
  """A model, its data, its loss and its metrics.

  Everything that is called inside jit is a pure function of its arguments.

  Attributes:
    Examples: of a split, as the task wants them.
    Predictor: looks at what was learnt.
    Serving: gives it to others.
    Labels: gives it to other models to learn from; None where it cannot.
    config: the whole experiment.
    class_names: in the order of the labels, where the task has classes and their names are known.
    model: the Flax module.
    frozen_models: that the loss uses besides the one that is learnt, by name. The state of the run
      holds their variables, split over the devices like parameters. The loop reads them from their
      own files, and checkpoints do not repeat them.
  """

  Examples: ClassVar[type[pipeline.Examples]]
  Predictor: ClassVar[type[predictor.Predictor]]
  Serving: ClassVar[type[Serving]]
  Labels: ClassVar[type[Labels] | None] = None
  class_names: Sequence[str] = ()

  def __init__(self, config: ml_collections.ConfigDict):
    self.config = config
    self.model: nn.Module = self.create_model()
    self.frozen_models: dict[str, FrozenModel] = {}
    self._examples: dict[str, pipeline.Examples] = {}

  # The model.

  def create_model(self) -> nn.Module:
    """Builds the model that `config.model` names."""
    return models.create_model(**self.config.model)

  @abc.abstractmethod
  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch of `batch_size` examples."""

  def model_inputs(self, batch: Batch) -> tuple[Any, ...]:
    """What the model takes of a batch."""
    return (batch['image'],)

  def init(self, rng: jax.Array, model: nn.Module | None = None) -> Variables:
    """Initial variables, 'params' and further collections, of the model or of one of its inputs."""
    batch = jax.tree.map(lambda spec: jnp.ones(spec.shape, spec.dtype), self.batch_spec(1))
    return (self.model if model is None else model).init({'params': rng}, *self.model_inputs(batch))

  def forward(
    self,
    variables: Variables,
    batch: Batch,
    rngs: Iterable[jax.Array],
    train: bool,
    **inputs: Any,
  ) -> tuple[tuple[Any, dict[str, jax.Array]], Variables]:
    """Applies the model as its loss needs it.

    Args:
      variables: of the model.
      batch: as `batch_spec`.
      rngs: keys of 'dropout' and of 'drop_path'.
      train: whether dropout and batch statistics are on.
      **inputs: what the model takes besides in training.

    Returns:
      The model's outputs and features, and its updated collections other than 'params'.
    """
    return self.model.apply(
      variables,
      *self.model_inputs(batch),
      train=train,
      **inputs,
      rngs=dict(zip(('dropout', 'drop_path'), rngs, strict=True)),
      mutable=[name for name in variables if name != 'params'] if train else [],
    )

  @abc.abstractmethod
  def loss(
    self, variables: Variables, batch: Batch, rng: jax.Array, train: bool
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Variables]]:
    """The loss of a batch.

    Args:
      variables: of the model, and under their names those of the `frozen_models`.
      batch: as `batch_spec`.
      rng: key of this step.
      train: whether dropout, mixing and batch statistics are on.

    Returns:
      The scalar loss, and a pair of scalar metrics and the updated collections of the model other
      than 'params'.
    """

  # Its data.

  def examples(self, split: str) -> pipeline.Examples:
    """The examples of a split of the data set, which is opened once.

    Raises:
      ValueError: a wrong value in `config.dataset`, or a data set that cannot be opened.
    """
    if split not in self._examples:
      self._examples[split] = self.Examples(self.config.dataset, split)
    return self._examples[split]

  def check_data(self) -> None:  # noqa: B027  (a hook)
    """Refuses data that the model does not fit; takes all by default.

    Raises:
      ValueError: naming the keys that contradict each other.
    """

  def train_data(
    self, batch_size: int, block: int, num_blocks: int, start: int = 0
  ) -> grain.IterDataset:
    """Endless batches from number `start` on.

    They have the rows `block` of `num_blocks` of every global batch of `batch_size`.
    """
    self.check_data()
    return self.examples(self.config.dataset.train_split).train_batches(
      batch_size=batch_size,
      seed=self.config.seed,
      process_index=block,
      process_count=num_blocks,
      start=start,
    )

  def eval_data(self, batch_size: int, block: int, num_blocks: int) -> grain.IterDataset:
    """One pass over the evaluation split; 'mask' `[batch]` is False for padding."""
    self.check_data()
    return self.examples(self.config.dataset.eval_split).eval_batches(
      batch_size=batch_size, process_index=block, process_count=num_blocks
    )

  def steps_per_epoch(self, batch_size: int) -> int:
    """Training batches in an epoch."""
    return self.examples(self.config.dataset.train_split).steps_per_epoch(batch_size)

  @property
  def unit(self) -> str:
    """What the rows of a training batch are called, of which a run says how many it takes."""
    return f'{self.Examples.kind}s'

  # How well it is learnt.

  @abc.abstractmethod
  def evaluate(self, variables: Variables, batch: Batch) -> Evaluation:
    """Contribution of one batch of `eval_data`."""

  @property
  @abc.abstractmethod
  def metric_modes(self) -> dict[str, str]:
    """Whether 'max' or 'min' is best of each metric that `metrics` may give, the usual one first.

    Known before anything is evaluated; without 'examples', the number of them.
    """

  @property
  def main_metrics(self) -> Sequence[str]:
    """Those of `metric_modes` that a run's curves show; by default the first few of all classes."""
    return [name for name in self.metric_modes if '/' not in name][:_MAIN_METRICS]

  @property
  def metric_words(self) -> dict[str, str]:
    """What metrics are, in a line of plain words each, by their names.

    In a name `*` is any text, which `{}` of the words repeats: {'iou/*': 'IoU of {} alone'}.
    """
    return {}

  def explain(self, metric: str) -> str:
    """What a metric is, in plain words; '' where nobody says."""
    for name, words in (
      {'examples': f'{self.Examples.kind}s looked at'} | self.metric_words
    ).items():
      if found := re.fullmatch(re.escape(name).replace(r'\*', '(.+)'), metric):
        return words.format(*found.groups())
    return ''

  @abc.abstractmethod
  def metrics(self, evaluation: Evaluation) -> dict[str, float]:
    """Final metrics from the total contribution of all batches."""

  def check_finite(self, sums: Mapping[str, Any], what: str = 'scores') -> None:
    """Refuses to measure what is not finite.

    Args:
      sums: 'not_finite', the examples with such outputs, and 'count' of all.
      what: the outputs are.

    Raises:
      ValueError: there are some.
    """
    if bad := int(sums['not_finite']):
      raise ValueError(
        f'the network gives {what} that are not finite for {bad} of {int(sums["count"])} '
        f'{self.Examples.kind}s: its weights or its dtype are wrong'
      )

  def summary(self, metrics: Mapping[str, float]) -> Sequence[str]:
    """Lines that say the metrics of an evaluation as the field prints them; none by default."""
    del metrics
    return ()

  def reduce_examples(self, examples: Any) -> Any:
    """What is kept of the `Evaluation.examples` of a batch, on the host; everything by default.

    For metrics that no device computes, and for examples whose shape differs between batches.

    Args:
      examples: pytree of numpy arrays `[rows, ...]`, masked rows already removed.

    Returns:
      The same or another pytree of arrays `[rows, ...]`; only the number of rows may differ between
      batches.
    """
    return examples

  def review(self, evaluation: Evaluation, examples: Any) -> review.Review:
    """What an evaluation shows beyond `metrics`; nothing by default. On the host.

    Args:
      evaluation: as `metrics` gets it.
      examples: as `evaluate_examples` gets them.
    """
    del evaluation, examples
    return review.Review()

  def evaluate_examples(self, variables: Variables, examples: Any) -> Any:
    """What all examples give together, such as scores of all pairs of them; themselves by default.

    Every process calls it once per evaluation under the ambient mesh, and may use all devices.

    Args:
      variables: of the model.
      examples: of all batches, as `reduce_examples` left them; None where there are none.

    Returns:
      What `metrics` gets as `Evaluation.examples`.
    """
    return examples
