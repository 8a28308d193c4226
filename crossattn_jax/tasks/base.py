"""The interface between the training loop and what is learnt."""

import abc
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, ClassVar

from etils import epath
from flax import linen as nn
import grain
import jax
import ml_collections

from crossattn_jax import models
from crossattn_jax.data import pipeline

Batch = Mapping[str, jax.Array]
Variables = Mapping[str, Any]


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


@dataclasses.dataclass(frozen=True)
class Serving:
  """The forward pass as others use it, without this library; see `training.export_model`.

  Attributes:
    run: `(variables, inputs) -> outputs`, both named arrays with the batch first. Inside jit.
    inputs: shape and dtype of one example of each input, without the batch.
    description: what makes the inputs of files and reads the outputs, as JSON can hold it.
    script: Python file that does so by the description; put beside the exported model as
      `load_and_run.py`.
    batches: what the examples of an input are called, by its name, where inputs have batches of
      different sizes, such as 'images'; 'batch' by default.
  """

  run: Callable[[Variables, Batch], dict[str, jax.Array]]
  inputs: Mapping[str, jax.ShapeDtypeStruct]
  description: Mapping[str, Any]
  script: pathlib.Path
  batches: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FrozenModel:
  """A trained model that the loss uses and nothing changes, such as a teacher.

  Attributes:
    name: of the model in the registry.
    init: rng -> its variables.
    weights: a file that `python -m crossattn_jax.parity convert` wrote, or the workdir of a run;
      None where nobody said.
    config_key: that says so, for messages.
  """

  name: str
  init: Callable[[jax.Array], Variables]
  weights: str | None
  config_key: str


class Task(abc.ABC):
  """A model, its data, its loss, its metrics and its pictures.

  The loop knows only this class. Everything that is called inside jit is a pure function of its
  arguments.

  Attributes:
    Examples: of a split, as the task wants them.
    config: the whole experiment.
    model: the Flax module.
  """

  Examples: ClassVar[type[pipeline.Examples]]

  def __init__(self, config: ml_collections.ConfigDict):
    self.config = config
    self.model: nn.Module = self.create_model()

  # What is learnt.

  def create_model(self) -> nn.Module:
    """Builds the model that `config.model` names."""
    return models.create_model(**self.config.model)

  @abc.abstractmethod
  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch of `batch_size` examples."""

  @abc.abstractmethod
  def init(self, rng: jax.Array) -> Variables:
    """Initial variables of the model: 'params' and further collections."""

  def frozen_models(self) -> dict[str, FrozenModel]:
    """Models that the loss uses besides the one that is learnt, by name; none by default.

    The state of the run holds their variables, split over the devices like parameters. The loop
    reads them from their own files, and checkpoints do not repeat them.
    """
    return {}

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

  def check_data(self) -> None:  # noqa: B027  (a hook)
    """Refuses data that the model does not fit; takes all by default.

    Raises:
      ValueError: naming the keys that contradict each other.
    """

  def train_data(self, batch_size: int, block: int, num_blocks: int) -> grain.IterDataset:
    """Endless batches; rows `block` of `num_blocks` of every global batch of `batch_size`."""
    self.check_data()
    dataset = self.config.dataset
    return self.Examples(dataset, dataset.train_split).train_batches(
      batch_size=batch_size,
      seed=self.config.seed,
      process_index=block,
      process_count=num_blocks,
    )

  def eval_data(self, batch_size: int, block: int, num_blocks: int) -> grain.IterDataset:
    """One pass over the evaluation split; 'mask' `[batch]` is False for padding."""
    self.check_data()
    dataset = self.config.dataset
    return self.Examples(dataset, dataset.eval_split).eval_batches(
      batch_size=batch_size, process_index=block, process_count=num_blocks
    )

  def steps_per_epoch(self, batch_size: int) -> int:
    """Training batches in an epoch."""
    dataset = self.config.dataset
    return self.Examples(dataset, dataset.train_split).steps_per_epoch(batch_size)

  # How well it is learnt.

  @abc.abstractmethod
  def evaluate(self, variables: Variables, batch: Batch) -> Evaluation:
    """Contribution of one batch of `eval_data`."""

  @abc.abstractmethod
  def metrics(self, evaluation: Evaluation) -> dict[str, float]:
    """Final metrics from the total contribution of all batches."""

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

  # What it looks like.

  def list_inputs(self, inputs: epath.Path) -> list[epath.Path]:
    """The files that `--input` names: itself, or those in the folder.

    Raises:
      FileNotFoundError: there are none.
    """
    files = (
      sorted(path for path in inputs.glob('*') if path.is_file()) if inputs.is_dir() else [inputs]
    )
    if not files or not files[0].exists():
      raise FileNotFoundError(f'--input={inputs}: no such file, or an empty folder')
    return files

  @abc.abstractmethod
  def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Per-example predictions of a batch that needs no labels."""

  @abc.abstractmethod
  def write_predictions(
    self, variables: Variables, inputs: Sequence[epath.Path], output: epath.Path
  ) -> list[dict[str, Any]]:
    """Predicts for files and writes results and pictures into a folder.

    Args:
      variables: of the model.
      inputs: files, as `list_inputs` returns them.
      output: an existing folder.

    Returns:
      One JSON-able record per file, which are also in `output/predictions.json`.
    """

  @abc.abstractmethod
  def write_samples(self, variables: Variables, path: epath.Path) -> None:
    """Writes a picture with predictions for some evaluation examples."""

  # How others use it.

  @abc.abstractmethod
  def serving(self) -> Serving:
    """What `training.export_model` writes."""
