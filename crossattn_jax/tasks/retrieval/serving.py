"""Retrieval without this library."""

from typing import Any

import jax

from crossattn_jax.tasks import base
from crossattn_jax.tasks.retrieval import scoring

_IMAGES, _TEXTS = ('regions', 'region_mask'), ('words', 'word_mask')


class Serving(base.Serving):
  """Images' regions and sentences' words in, scores of all their pairs and embeddings out."""

  batches = dict.fromkeys(_IMAGES, 'images') | dict.fromkeys(_TEXTS, 'texts')

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An image and a sentence."""
    specs = self.task.batch_spec(1)
    return {
      name: jax.ShapeDtypeStruct(specs[name].shape[1:], specs[name].dtype) for name in self.batches
    }

  @property
  def description(self) -> dict[str, Any]:
    """The vocabulary of sentences; None where words are features."""
    return {'vocabulary': None if self.task.takes_features else self.task.tokenizer.vocabulary}

  def run(self, variables: base.Variables, inputs: base.Batch) -> dict[str, jax.Array]:
    """See `scoring.score_batch`."""
    return scoring.score_batch(self.task.model, variables, inputs)
