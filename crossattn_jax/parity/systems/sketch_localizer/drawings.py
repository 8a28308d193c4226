"""Cases of drawings that become pixels."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from crossattn_jax.data.sketch_localization import rasters
from crossattn_jax.geometry import strokes as strokes_lib
from crossattn_jax.parity import adapters, arguments

_FORMATS = ('simplified', 'stroke3')


def _numbered(rows: np.ndarray) -> list[np.ndarray]:
  """Strokes of rows (number of the stroke, x, y)."""
  return [rows[rows[:, 0] == number, 1:] for number in np.unique(rows[:, 0])]


@adapters.register_adapter('sketch_localizer', 'quickdraw_raster')
def _raster(manifest: Mapping[str, Any]) -> adapters.Adapter:
  c = manifest['constructor']
  size, form = c['size'], c['format']
  if form not in _FORMATS:
    raise arguments.ArgumentError(f'format is {form!r}; known are {", ".join(_FORMATS)}')
  style = rasters.Style(c['line_width'], c['rescale'], c['invert'], c.get('padding', 10))
  mean, std = c.get('mean'), c.get('std')
  if (mean is None) != (std is None):
    raise arguments.ArgumentError(f'mean is {mean} and std {std}: images are normalised by both')

  def run(
    stroke_x_y: jax.Array | None = None, stroke3: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    given = np.asarray(stroke_x_y if stroke3 is None else stroke3)
    strokes = _numbered(given) if form == 'simplified' else strokes_lib.from_stroke3(given)
    pixels = style.raster(strokes, size)
    outputs = {
      'white_pixels_row_col': np.argwhere(pixels == 255),
      'dark_pixels_row_col': np.argwhere(pixels == 0),
    }
    if mean is not None:
      # In float64; batches are float32.
      image = (pixels[..., None] / 255 - mean) / np.array(std)
      outputs['channel_mean_after_normalise'] = image.mean(axis=(0, 1))
    return jax.tree.map(jax.numpy.asarray, outputs)

  return adapters.function_adapter(run)
