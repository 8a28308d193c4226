"""How good a fused image is: the metrics of infrared and visible image fusion.

Pure functions on grey images `[height, width]` with levels in 0..255, computed in float64 on the
host: several of them subtract large numbers. Images with other levels, such as fractions of 1, are
refused with a ValueError that names the argument. Published tables differ in units and
conventions; each function says which ones are followed, and docs/atfuse.md what to look out for.
"""

from collections.abc import Mapping

from etils import epy
import numpy as np

with epy.lazy_imports():  # Slow to import, and few runs need it.
  from scipy import ndimage

# Whether more ('up') or less ('down') of a metric is better, in the order of tables.
DIRECTIONS: Mapping[str, str] = {
  'EN': 'up',
  'SD': 'up',
  'SF': 'up',
  'AG': 'up',
  'MI_bits': 'up',
  'MI_nats': 'up',
  'CC': 'up',
  'SCD': 'up',
  'MSE': 'down',
  'RMSE': 'down',
  'PSNR_255': 'up',
  'PSNR_maxF': 'up',
  'SSIM_a': 'up',
  'SSIM_b': 'up',
  'SSIM_mean': 'up',
  'SSIM_sum': 'up',
  'MS_SSIM': 'up',
  'VIF_a': 'up',
  'VIF_b': 'up',
  'VIF': 'up',
  'Qabf': 'up',
}
# Each in plain words; a is the visible image, b the infrared one.
WORDS: Mapping[str, str] = {
  'EN': 'entropy of the fused image, in bits: how much its levels tell',
  'SD': 'standard deviation of its levels: contrast',
  'SF': 'spatial frequency: how much neighbouring pixels differ',
  'AG': 'average gradient: sharpness',
  'MI_bits': 'mutual information with both images, in bits: how much of them it tells',
  'MI_nats': 'mutual information with both images, in nats',
  'CC': 'correlation with the images, mean over both',
  'SCD': 'correlation of what was added to one image with the other, sum over both',
  'MSE': 'squared difference from the images, in levels of 0 to 255, mean over both',
  'RMSE': 'root of the squared difference from the images, in levels, mean over both',
  'PSNR_255': 'peak signal-to-noise ratio, in dB, peak 255',
  'PSNR_maxF': 'peak signal-to-noise ratio, in dB, peak the brightest fused pixel',
  'SSIM_a': 'structural similarity with the visible image; 1 is equal',
  'SSIM_b': 'structural similarity with the infrared image; 1 is equal',
  'SSIM_mean': 'structural similarity, mean over both images',
  'SSIM_sum': 'structural similarity, sum over both images',
  'MS_SSIM': 'structural similarity at five scales, mean over both images',
  'VIF_a': 'visual information fidelity for the visible image; 1 keeps all',
  'VIF_b': 'visual information fidelity for the infrared image; 1 keeps all',
  'VIF': 'visual information fidelity, sum over both images',
  'Qabf': 'how well strength and direction of edges are kept; 1 keeps all',
}
# One of each kind: what papers print.
HEADLINE = ('EN', 'SD', 'SF', 'AG', 'MI_bits', 'CC', 'SCD', 'PSNR_255', 'SSIM_sum', 'VIF', 'Qabf')

_LEVELS = 256
_SSIM_CONSTANTS = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_SSIM_SIDE = 11
# Wang, Simoncelli, Bovik 2003, section 3.2.
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_MS_SSIM_SIDE = _SSIM_SIDE * 2 ** (len(_MS_SSIM_WEIGHTS) - 1)
# Below, a scale of `visual_information_fidelity` has no pixel.
SMALLEST_SIDE = 41


def entropy(image: np.ndarray) -> float:
  """EN: Shannon entropy of the levels, rounded to integers, in bits (Roberts et al. 2008)."""
  (image,) = _levels(image=image)
  share = np.bincount(_integers(image).ravel(), minlength=_LEVELS) / image.size
  share = share[share > 0]
  return float(-np.sum(share * np.log2(share)))


def standard_deviation(image: np.ndarray) -> float:
  """SD: of the levels, over the population."""
  (image,) = _levels(image=image)
  return float(np.std(image))


def spatial_frequency(image: np.ndarray) -> float:
  """SF: root of the mean squared horizontal plus the mean squared vertical differences."""
  (image,) = _levels(image=image)
  across, down = np.diff(image, axis=1), np.diff(image, axis=0)
  return float(np.sqrt(np.mean(across**2) + np.mean(down**2)))


def average_gradient(image: np.ndarray) -> float:
  """AG: mean of sqrt((gx^2 + gy^2) / 2), central differences, one-sided at the edges."""
  (image,) = _levels(image=image)
  down, across = np.gradient(image)
  return float(np.mean(np.sqrt((across**2 + down**2) / 2)))


def mutual_information(first: np.ndarray, second: np.ndarray) -> float:
  """Mutual information of the levels of two images, rounded to integers, in nats."""
  first, second = _levels(first=first, second=second)
  pairs = _integers(first).ravel() * _LEVELS + _integers(second).ravel()
  joint = np.bincount(pairs, minlength=_LEVELS**2).reshape(_LEVELS, _LEVELS) / pairs.size
  independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
  found = joint > 0
  return float(np.sum(joint[found] * np.log(joint[found] / independent[found])))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
  """Pearson correlation of the pixels; 0 where one image is flat."""
  return _correlation(*_levels(first=first, second=second))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
  first, second = (x - np.mean(x) for x in (first, second))
  scale = np.sqrt(np.sum(first**2) * np.sum(second**2))
  return float(np.sum(first * second) / scale) if scale > 0 else 0.0


def correlation_of_differences(
  fused: np.ndarray, visible: np.ndarray, infrared: np.ndarray
) -> float:
  """SCD: what fusion added to each image, correlated with the other (Aslantas and Bendes 2015)."""
  fused, visible, infrared = _levels(fused=fused, visible=visible, infrared=infrared)
  return _correlation(visible, fused - infrared) + _correlation(infrared, fused - visible)


def mean_squared_error(first: np.ndarray, second: np.ndarray) -> float:
  """Mean squared difference of the levels."""
  first, second = _levels(first=first, second=second)
  return float(np.mean((first - second) ** 2))


def peak_signal_to_noise(error: float, peak: float = 255.0) -> float:
  """PSNR of a mean squared error, in dB; infinite without any, minus infinite of a black image.

  Examples:
    >>> round(peak_signal_to_noise(100.0), 2)
    28.13
  """
  if error == 0:
    return float('inf')
  return float(10 * np.log10(peak**2 / error)) if peak > 0 else float('-inf')


def structural_similarity(first: np.ndarray, second: np.ndarray) -> float:
  """SSIM: Gaussian window of 11 x 11 pixels and sigma 1.5, where it fits (Wang et al. 2004).

  Raises:
    ValueError: the images are smaller than the window.
  """
  luminance, structure = _similarity_maps(*_levels(first=first, second=second))
  return float(np.mean(luminance * structure))


def multi_scale_structural_similarity(first: np.ndarray, second: np.ndarray) -> float:
  """MS-SSIM: contrast and structure at five scales, luminance at the coarsest (Wang et al. 2003).

  Scales are means of 2 x 2 pixels. Negative structure counts as 0.

  Raises:
    ValueError: a side is shorter than 176 pixels.
  """
  if min(first.shape) < _MS_SSIM_SIDE:
    raise ValueError(
      f'MS-SSIM needs at least {_MS_SSIM_SIDE} x {_MS_SSIM_SIDE} pixels, not {first.shape}'
    )
  first, second = _levels(first=first, second=second)
  result = 1.0
  for scale, weight in enumerate(_MS_SSIM_WEIGHTS):
    if scale:
      first, second = _halved(first), _halved(second)
    luminance, structure = _similarity_maps(first, second)
    last = scale == len(_MS_SSIM_WEIGHTS) - 1
    similarity = np.mean(luminance * structure if last else structure)
    result *= max(float(similarity), 0.0) ** weight
  return result


def visual_information_fidelity(reference: np.ndarray, distorted: np.ndarray) -> float:
  """Pixel-domain VIF of an image for a reference, over four scales (Sheikh and Bovik 2006).

  Raises:
    ValueError: a side is shorter than 41 pixels.
  """
  if min(reference.shape) < SMALLEST_SIDE:
    raise ValueError(
      f'VIF needs at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, not {reference.shape}'
    )
  tiny, noise = 1e-10, 2.0
  reference, distorted = _levels(reference=reference, distorted=distorted)
  found = available = 0.0
  for scale in range(1, 5):
    side = 2 ** (5 - scale) + 1
    window = _gaussian(side, side / 5)
    if scale > 1:
      reference, distorted = (_filtered(x, window)[::2, ::2] for x in (reference, distorted))
    variance, distorted_variance, covariance = _moments(reference, distorted, window)[2:]
    variance, distorted_variance = np.maximum(variance, 0), np.maximum(distorted_variance, 0)
    gain = covariance / (variance + tiny)
    rest = distorted_variance - gain * covariance
    flat = variance < tiny
    gain[flat], rest[flat], variance[flat] = 0, distorted_variance[flat], 0
    flat = distorted_variance < tiny
    gain[flat], rest[flat] = 0, 0
    negative = gain < 0
    rest[negative], gain[negative] = distorted_variance[negative], 0
    rest = np.maximum(rest, tiny)
    found += np.sum(np.log10(1 + gain**2 * variance / (rest + noise)))
    available += np.sum(np.log10(1 + variance / noise))
  return float(found / available) if available > 0 else 1.0


def edge_preservation(fused: np.ndarray, visible: np.ndarray, infrared: np.ndarray) -> float:
  """Qabf: how well strength and direction of edges are kept (Xydeas and Petrovic 2000).

  Where an edge of an image is exactly as strong as that of the fused one, the usual evaluators take
  its strength in place of the quotient 1; so does this. 0 where neither image has an edge.
  """
  fused, visible, infrared = _levels(fused=fused, visible=visible, infrared=infrared)
  strength, angle = _edges(fused)
  kept = total = 0.0
  for image in (visible, infrared):
    image_strength, image_angle = _edges(image)
    low, high = np.minimum(image_strength, strength), np.maximum(image_strength, strength)
    different = low != high
    quotient = np.where(different, low / np.where(different, high, 1), strength)
    alignment = 1 - np.abs(image_angle - angle) / (np.pi / 2)
    preserved = 0.9994 / (1 + np.exp(-15 * (quotient - 0.5)))
    preserved *= 0.9879 / (1 + np.exp(-22 * (alignment - 0.8)))
    kept += np.sum(preserved * image_strength)
    total += np.sum(image_strength)
  return float(kept / total) if total > 0 else 0.0


def fusion_metrics(
  fused: np.ndarray, visible: np.ndarray, infrared: np.ndarray
) -> dict[str, float]:
  """The whole suite for one pair of images.

  Args:
    fused: grey levels in 0..255, `[height, width]`; papers evaluate the 8-bit file.
    visible: the same, called A or a in the names.
    infrared: the same, called B or b in the names.

  Returns:
    Values by the names in `DIRECTIONS`. 'MS_SSIM', a mean over both images, is left out where the
    images have a side of less than 176 pixels.

  Raises:
    ValueError: the images differ in size, have a side of less than 41 pixels, or levels that are
      not finite or not in 0..255.
  """
  fused, visible, infrared = _levels(fused=fused, visible=visible, infrared=infrared)
  sources = (visible, infrared)
  for image in sources:
    if image.shape != fused.shape or fused.ndim != 2:
      raise ValueError(
        f'metrics compare grey images of one size, not {fused.shape}, {visible.shape} and '
        f'{infrared.shape}'
      )
  information = sum(mutual_information(fused, image) for image in sources)
  errors = [mean_squared_error(image, fused) for image in sources]
  error = float(np.mean(errors))
  similarities = [structural_similarity(fused, image) for image in sources]
  fidelities = [visual_information_fidelity(image, fused) for image in sources]
  results = {
    'EN': entropy(fused),
    'SD': standard_deviation(fused),
    'SF': spatial_frequency(fused),
    'AG': average_gradient(fused),
    'MI_bits': information / np.log(2),
    'MI_nats': information,
    'CC': float(np.mean([correlation(image, fused) for image in sources])),
    'SCD': correlation_of_differences(fused, visible, infrared),
    'MSE': error,
    'RMSE': float(np.mean(np.sqrt(errors))),
    'PSNR_255': peak_signal_to_noise(error),
    'PSNR_maxF': peak_signal_to_noise(error, float(fused.max())),
    'SSIM_a': similarities[0],
    'SSIM_b': similarities[1],
    'SSIM_mean': float(np.mean(similarities)),
    'SSIM_sum': sum(similarities),
    'VIF_a': fidelities[0],
    'VIF_b': fidelities[1],
    'VIF': sum(fidelities),
    'Qabf': edge_preservation(fused, visible, infrared),
  }
  if min(fused.shape) >= _MS_SSIM_SIDE:
    scores = [multi_scale_structural_similarity(fused, image) for image in sources]
    results['MS_SSIM'] = float(np.mean(scores))
  return {name: results[name] for name in DIRECTIONS if name in results}


def better(name: str, value: float, other: float) -> bool:
  """Whether a value of a metric is better than another."""
  return value > other if DIRECTIONS[name] == 'up' else value < other


def _levels(**images: np.ndarray) -> list[np.ndarray]:
  """The images in float64.

  Raises:
    ValueError: one has levels that are not finite, not in 0..255, or fractions of 1.
  """
  for name, image in images.items():
    if not np.size(image):
      raise ValueError(f'{name} has no pixels: its shape is {np.shape(image)}')
    unusable = np.size(image) - np.count_nonzero(np.isfinite(image))
    if unusable:
      raise ValueError(f'{unusable} of the {np.size(image)} levels of {name} are not finite')
    low, high = np.min(image), np.max(image)
    if low < 0 or high >= _LEVELS:
      raise ValueError(
        f'{name} has levels of {low:g} to {high:g}; expected 0 to {_LEVELS - 1}: convert them, or '
        f'np.clip(x, 0, {_LEVELS - 1}) what a network overshoots'
      )
    if high <= 1 and np.any(image != np.rint(image)):
      raise ValueError(
        f'{name} has levels of {low:g} to {high:g}, which are fractions of 1; expected 0 to '
        f'{_LEVELS - 1}: multiply by {_LEVELS - 1}'
      )
  return [np.asarray(image, np.float64) for image in images.values()]


def _integers(image: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(image), 0, _LEVELS - 1).astype(np.int64)


def _gaussian(side: int, sigma: float) -> np.ndarray:
  """One axis of a separable window of sum 1."""
  values = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * sigma**2))
  return values / values.sum()


def _filtered(image: np.ndarray, window: np.ndarray) -> np.ndarray:
  """The window's means wherever it fits."""
  margin = len(window) // 2
  for axis in (0, 1):
    image = ndimage.correlate1d(image, window, axis=axis, mode='constant')
  return image[margin : image.shape[0] - margin, margin : image.shape[1] - margin]


def _moments(first: np.ndarray, second: np.ndarray, window: np.ndarray) -> list[np.ndarray]:
  """Local means, variances and covariance."""

  def mean(x: np.ndarray) -> np.ndarray:
    return _filtered(x, window)

  a, b = mean(first), mean(second)
  return [a, b, mean(first**2) - a**2, mean(second**2) - b**2, mean(first * second) - a * b]


def _similarity_maps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Luminance, and contrast times structure, of SSIM."""
  if min(first.shape) < _SSIM_SIDE:
    raise ValueError(f'SSIM needs at least {_SSIM_SIDE} x {_SSIM_SIDE} pixels, not {first.shape}')
  low, high = _SSIM_CONSTANTS
  a, b, variance, other_variance, covariance = _moments(first, second, _gaussian(_SSIM_SIDE, 1.5))
  luminance = (2 * a * b + low) / (a**2 + b**2 + low)
  return luminance, (2 * covariance + high) / (variance + other_variance + high)


def _halved(image: np.ndarray) -> np.ndarray:
  rows, columns = (side // 2 for side in image.shape)
  return image[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(axis=(1, 3))


def _edges(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Strength and direction of edges, zeros around the image."""
  smooth, difference = np.array([1.0, 2.0, 1.0]), np.array([-1.0, 0.0, 1.0])

  def sobel(axis: int) -> np.ndarray:
    x = ndimage.correlate1d(image, smooth, axis=axis, mode='constant')
    return ndimage.correlate1d(x, difference, axis=1 - axis, mode='constant')

  across, down = sobel(0), -sobel(1)
  angle = np.full(image.shape, np.pi / 2)
  np.divide(down, across, out=angle, where=across != 0)
  return np.hypot(across, down), np.where(across != 0, np.arctan(angle), np.pi / 2)
