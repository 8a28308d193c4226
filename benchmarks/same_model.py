"""Whether a plain PyTorch module computes what this library's model of that name computes."""

import numpy as np
import torch

import crossattn_jax
from crossattn_jax.conversion import convert


def check(name: str, model: torch.nn.Module, side: int, bound: float = 1e-4, **fields) -> None:
  """Gives the library's model the module's weights and both the same random image.

  Args:
    name: of the library's model.
    model: in evaluation mode; takes `[1, 3, side, side]`, returns logits of the image or of a map.
    side: of the image.
    bound: of the relative difference of the logits.
    **fields: of the library's model.

  Raises:
    SystemExit: they differ by more.
  """
  state = {key: value.numpy() for key, value in model.state_dict().items()}
  variables = convert.to_flax(name, state).variables
  image = np.random.default_rng(0).standard_normal((1, side, side, 3)).astype(np.float32)
  with torch.inference_mode():
    theirs = model(torch.from_numpy(image).permute(0, 3, 1, 2)).movedim(1, -1).numpy()
  ours, _ = crossattn_jax.create_model(name, **fields).apply(variables, image)
  error = np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)
  print(f'{name}: logits differ by {error:.1e}')
  if not error < bound:
    raise SystemExit('not the same model')
