"""How far from PyTorch's float64 truth a result may be.

Exactness is judged in float64, against one figure for every array. Stability is judged in float32,
against the error that PyTorch itself makes there. Every figure is a relative error ||a-b|| / ||b||,
or the absolute one where ||b|| is 0.
"""

from collections.abc import Mapping

import numpy as np

PRECISIONS = ('float64', 'float32')

_EXACT = 1e-8
# Of arrays that the original rounded to float32 on its way, in any run.
_ROUNDED = 2e-6
_STABLE_FACTOR = 4.0
_STABLE_FLOOR = {'float32': 2e-6, 'bfloat16': 1e-2}
_STABLE_GRADIENT_FLOOR = 1e-4
# Recorded errors above this belong to gradients that are zero in exact arithmetic.
_MEANINGLESS_GRADIENT_ERROR = 0.1
# Differences of parameter gradients below this share of the case's largest one always pass.
_NEGLIGIBLE_GRADIENT = {'float64': 1e-7, 'float32': 1e-5}


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
  """Returns ||actual - expected|| / ||expected|| over all elements, computed in float64.

  Where ||expected|| is 0, the absolute error. Elements that are not finite must agree exactly,
  otherwise the error is infinite.
  """
  actual = np.asarray(actual, dtype=np.float64)
  expected = np.asarray(expected, dtype=np.float64)
  finite = np.isfinite(expected)
  if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
    return np.inf
  if not np.isfinite(actual[finite]).all():
    return np.inf
  difference = float(np.linalg.norm((actual[finite] - expected[finite]).ravel()))
  norm = float(np.linalg.norm(expected[finite].ravel()))
  return difference / norm if norm else difference


def output_bound(precision: str, torch_error: float, rounded: bool = False) -> float:
  """The bound of an output or tap, given PyTorch's own error for it.

  Args:
    precision: 'float64', 'float32', or 'bfloat16', which only comparisons use.
    torch_error: of PyTorch in float32, or in bfloat16.
    rounded: whether the original rounded it to float32 on its way, also where it ran in float64.
  """
  if precision == 'float64':
    return _ROUNDED if rounded else _EXACT
  return max(_STABLE_FACTOR * torch_error, _STABLE_FLOOR[precision])


def gradient_bound(
  precision: str, torch_errors: Mapping[str, float], rounded: bool = False
) -> float:
  """The bound of a gradient of a case, given all its recorded float32 errors by array name.

  Args:
    precision: 'float64' or 'float32'.
    torch_errors: of PyTorch in float32.
    rounded: see `output_bound`.
  """
  if precision == 'float64':
    return _ROUNDED if rounded else _EXACT
  errors = [
    error
    for name, error in torch_errors.items()
    if name.startswith('grad_') and error <= _MEANINGLESS_GRADIENT_ERROR
  ]
  return max(_STABLE_FACTOR * max(errors, default=0.0), _STABLE_GRADIENT_FLOOR)


def negligible_gradient(precision: str, grad_param: Mapping[str, tuple[float, float]]) -> float:
  """The absolute difference of `[norm, probe product]` vectors below which a gradient passes.

  Args:
    precision: 'float64' or 'float32'.
    grad_param: the case's recorded pairs by parameter key.
  """
  largest = max((abs(norm) for norm, _ in grad_param.values()), default=0.0)
  return _NEGLIGIBLE_GRADIENT[precision] * largest
