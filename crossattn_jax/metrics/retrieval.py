"""How well texts are found by images, and images by texts: the recalls that papers print.

Source: the protocol of VSE++ and SCAN on the Karpathy splits, which SAEM and MMCA follow. Computed
on the host; of equal scores, the larger index comes first.
"""

import numpy as np

RECALLS = (1, 5, 10)
# Of each metric of `retrieval_metrics`, what it is in plain words.
WORDS = {'rsum': 'sum of the six recalls, at most 600'} | {
  f'{direction}_{name}': words
  for direction, found in (
    ('i2t', 'images find a caption of theirs'),
    ('t2i', 'captions find their image'),
  )
  for name, words in [
    *((f'r{k}', f'% of times that {found} among the first {k}') for k in RECALLS),
    ('medr', f'median place at which {found}; 1 is first'),
    ('meanr', f'mean place at which {found}; 1 is first'),
  ]
}
# Of each metric of `retrieval_metrics`, whether 'max' or 'min' is best.
MODES = {'rsum': 'max'} | {
  f'{direction}_{name}': mode
  for direction in ('i2t', 't2i')
  for name, mode in [*((f'r{k}', 'max') for k in RECALLS), ('medr', 'min'), ('meanr', 'min')]
}


def image_to_text_ranks(scores: np.ndarray, captions_per_image: int = 5) -> np.ndarray:
  """The place, from 0, of the first caption of each image in its list of captions.

  Args:
    scores: `[images, captions]`; caption c belongs to image c // captions_per_image.
    captions_per_image: of every image.

  Returns:
    int `[images]`.

  Raises:
    ValueError: there are not that many captions, or scores are not finite.

  Examples:
    >>> scores = np.array([[0.9, 0.1], [0.3, 0.2]])
    >>> image_to_text_ranks(scores, captions_per_image=1).tolist()
    [0, 1]
  """
  scores = _checked(scores, captions_per_image)
  own = np.arange(scores.shape[1]).reshape(-1, captions_per_image)
  return np.min([_ranks(scores, column) for column in own.T], axis=0)


def text_to_image_ranks(scores: np.ndarray, captions_per_image: int = 5) -> np.ndarray:
  """The place, from 0, of each caption's image in its list of images.

  Args:
    scores: as `image_to_text_ranks` takes them.
    captions_per_image: of every image.

  Returns:
    int `[captions]`.

  Raises:
    ValueError: there are not that many captions, or scores are not finite.
  """
  scores = _checked(scores, captions_per_image)
  return _ranks(scores.T, np.arange(scores.shape[1]) // captions_per_image)


def retrieval_metrics(
  scores: np.ndarray,
  captions_per_image: int = 5,
  folds: int = 1,
  text_scores: np.ndarray | None = None,
) -> dict[str, float]:
  """The table of a paper.

  Args:
    scores: as `image_to_text_ranks` takes them.
    captions_per_image: of every image.
    folds: in how many parts of as many images the data is cut, in order; each is searched alone,
      and the metrics are means. COCO's 5,000 test images are "5K" at 1 and "1K" at 5.
    text_scores: of the same shape, by which captions look for images where that is not by `scores`.

  Returns:
    'i2t_r1', 'i2t_r5', 'i2t_r10': how many images in 100 have one of their captions among the first
      1, 5 and 10.
    'i2t_medr', 'i2t_meanr': median, rounded down, and mean of the first caption's place, from 1.
    't2i_...': the same of images that captions look for.
    'rsum': sum of the six recalls.

  Raises:
    ValueError: there are not that many captions, scores are not finite, or folds are not equal.
  """
  scores = _checked(scores, captions_per_image)
  text_scores = scores if text_scores is None else _checked(text_scores, captions_per_image)
  if text_scores.shape != scores.shape:
    raise ValueError(f'text_scores have shape {text_scores.shape}, scores {scores.shape}')
  images = scores.shape[0]
  if folds < 1 or images % folds:
    raise ValueError(f'{images} images cannot be cut into folds={folds} equal parts')
  size = images // folds
  tables = []
  for start in range(0, images, size):
    rows = slice(start, start + size)
    columns = slice(start * captions_per_image, (start + size) * captions_per_image)
    table = {
      f'{direction}_{name}': value
      for direction, ranks in (
        ('i2t', image_to_text_ranks(scores[rows, columns], captions_per_image)),
        ('t2i', text_to_image_ranks(text_scores[rows, columns], captions_per_image)),
      )
      for name, value in rank_metrics(ranks).items()
    }
    table['rsum'] = sum(table[f'{way}_r{k}'] for way in ('i2t', 't2i') for k in RECALLS)
    tables.append(table)
  return {name: float(np.mean([table[name] for table in tables])) for name in tables[0]}


def rank_metrics(ranks: np.ndarray) -> dict[str, float]:
  """Recalls in percent, median and mean of places that are counted from 0.

  Args:
    ranks: int `[queries]`, at least one.

  Returns:
    'r1', 'r5', 'r10', 'medr' and 'meanr', as `retrieval_metrics` describes them.
  """
  recalls = {f'r{k}': 100 * float(np.mean(ranks < k)) for k in RECALLS}
  median, mean = np.floor(np.median(ranks)) + 1, np.mean(ranks) + 1
  return recalls | {'medr': float(median), 'meanr': float(mean)}


def _checked(scores: np.ndarray, captions_per_image: int) -> np.ndarray:
  scores = np.asarray(scores)
  if scores.ndim != 2 or scores.shape[1] != scores.shape[0] * captions_per_image:
    raise ValueError(
      f'expected scores [images, {captions_per_image} * images], not of shape {scores.shape}; '
      'captions_per_image says how many captions each image has'
    )
  unusable = scores.size - np.count_nonzero(np.isfinite(scores))
  if unusable:
    # A NaN compares false with everything; it must not count as the best.
    raise ValueError(f'{unusable} of {scores.size} scores are not finite')
  return scores


def _ranks(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
  """The place of column `target[row]` in each row, sorted from the largest score."""
  ranks = np.empty(len(scores), np.int64)
  for row, (line, index) in enumerate(zip(scores, target, strict=True)):
    ahead = np.count_nonzero(line > line[index])
    ranks[row] = ahead + np.count_nonzero(line[index + 1 :] == line[index])
  return ranks
