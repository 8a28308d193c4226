"""A mask head's answer on the image.

Needs nothing but numpy: exported models take this file with them.
"""

import numpy as np


def paste_masks(
  probabilities: np.ndarray,
  boxes: np.ndarray,
  size: tuple[int, int],
  threshold: float | None = 0.5,
) -> np.ndarray:
  """Masks of boxes on their image: probabilities resampled bilinearly at the image's pixel centres.

  The probabilities' outer cells fade to zero within a cell around the box. In NumPy on the host,
  where images have sizes of their own; costs the boxes' area. Rounds as PyTorch's `grid_sample`
  does (float32, fused multiply-adds), so that the same pixels pass the threshold.

  Args:
    probabilities: `[count, rows, columns]`.
    boxes: `[count, 4]`, corners in pixels of the image. Boxes without area have an empty mask.
    size: height and width of the image.
    threshold: a pixel belongs to the mask from this probability on; None for the probabilities.

  Returns:
    bool `[count, height, width]`, or float32 without a threshold.
  """
  pasted = np.zeros((len(boxes), *size), np.float32 if threshold is None else bool)
  cells = np.pad(np.asarray(probabilities, np.float32), ((0, 0), (2, 2), (2, 2)))
  for mask, cell, box in zip(pasted, cells, np.asarray(boxes, np.float32), strict=True):
    x_min, y_min, x_max, y_max = box
    if x_max > x_min and y_max > y_min:
      rows, *row = _pasted_axis(y_min, y_max, size[0], cell.shape[0] - 4)
      columns, *column = _pasted_axis(x_min, x_max, size[1], cell.shape[1] - 4)
      values = np.float32(0)
      for y, row_weights in zip(*row, strict=True):
        for x, column_weights in zip(*column, strict=True):
          product = np.multiply.outer(row_weights, column_weights).astype(np.float64)
          values = (cell[:, x][y] * product + values).astype(np.float32)
      mask[rows, columns] = values if threshold is None else values >= threshold
  return pasted


def _pasted_axis(
  low: np.float32, high: np.float32, length: int, count: int
) -> tuple[slice, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """How the pixels of an axis that a box reaches are made of its cells.

  Returns:
    The pixels, their two cells each, counted with a margin of two before, and these cells' weights.
  """
  start, stop = np.clip([np.floor(low) - 1, np.ceil(high) + 1], 0, length).astype(int)
  one = np.float32(1)
  at = (np.arange(start, stop, dtype=np.float32) + one / 2 - low) / (high - low) * 2 - one
  at = ((at + one).astype(np.float64) * (count / 2) - 0.5).astype(np.float32)
  cell = np.floor(at)
  index = np.clip(cell.astype(int) + 2, 0, count + 2)
  return slice(start, stop), (index, index + 1), (one - (at - cell), at - cell)
