"""Writes docs/metrics.md, every number that runs print: `python docs/metrics_reference.py`.

What a metric is, and whether more of it is better, is said once, where it is computed
(`Task.metric_words`, `Task.metric_modes`, `metric_writers.TRAINING_WORDS`). Here are added the
range and the source.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import fnmatch
import importlib
import pathlib
import textwrap

import ml_collections

from crossattn_jax import tasks
from crossattn_jax.training import metric_writers

PAGE = pathlib.Path(__file__).with_name('metrics.md')
CLASS = 'CLASS'

_ABOUT = """# Metrics

<!-- Written by `python docs/metrics_reference.py` from the source; change that. -->

Every number that training and evaluation print: what it means, between which values it lies, and
whether a higher or a lower one is better. `crossattn eval` shows the same sentences beside its
numbers, and TensorBoard below its curves. In `metrics.jsonl` those of training are called
`train/NAME`, those of evaluation `eval/NAME` ([Training](training.md) has more on that file).

*IoU*, intersection over union, is the overlap of two boxes, masks or classes: what lies in both,
divided by what lies in either. 0 is no overlap, 1 a perfect one. *Average precision* walks through
all answers from the surest to the least sure and averages how many were right so far; 1 means that
everything was found and nothing wrong came before it. In a name, `CLASS` stands for a class of your
data; one that an evaluation does not meet has no number. ↑: more is better; ↓: less is better."""

_PROGRESS = """## In the line that shows progress

- `step 120/3000`: steps taken, and of how many.
- `412 images/s`: how many examples are trained on in a second, evaluations and checkpoints counted.
- `12% waiting for data`: the share of the time in which devices had nothing to do, where it is a
  tenth or more. [Troubleshooting](troubleshooting.md) says what helps.
- `4:10 left`: until the last step, at this speed.
- `eval accuracy 0.97`: of the last evaluation, the metric that decides which checkpoint is best."""

_TRAINING = """## In training

Of each batch alone: they jump up and down from step to step, and are measured with dropout, mixing
and augmentation on. Those that end in `_loss` or `_penalty` are parts of the loss, of those tasks
and models that have them."""

_EVALUATION = """## In evaluation

Over the whole split that `config.dataset.eval_split` names, every example once. The first metric of
each table decides which checkpoint is the best one, unless `config.checkpoint.best_metric` names
another. Every task also prints `examples`, how many were looked at."""

_SHARE, _ABOVE = '0 to 1', '0 and above'
_RANGES = {
  'learning_rate': _ABOVE,
  'gradient_norm': _ABOVE,
  'skipped_examples': _ABOVE,
  'padding': _SHARE,
  'cardinality_error': _ABOVE,
  'class_error': '0 to 100',
  'region_accuracy': _SHARE,
  'norm_penalty': _ABOVE,
  'lovasz_loss': _SHARE,
  'token_similarity_loss': _ABOVE,
  '*loss': _ABOVE,
  '*accuracy*': _SHARE,
  'mean_average_precision': _SHARE,
  '*iou*': _SHARE,
  'labelled': _SHARE,
  'miss_rate/*': _SHARE,
  '*box_a[pr]*': _SHARE,
  'mask_a[pr]*': _SHARE,
  'map*': _SHARE,
  'precision*': _SHARE,
  'recall*': _SHARE,
  'rsum': '0 to 600',
  '*_r[15]*': '0 to 100',
  '*_me*r': '1 and above',
  'EN': '0 to 8',
  'SD': '0 to 127.5',
  'SF': '0 to 361',
  'AG': '0 to 255',
  'MI_bits': '0 to 16',
  'MI_nats': '0 to 11.1',
  'CC': '-1 to 1',
  'SCD': '-2 to 2',
  'MSE': '0 to 65025',
  'RMSE': '0 to 255',
  'PSNR_255': _ABOVE,
  'PSNR_maxF': 'any',
  'SSIM_sum': '-2 to 2',
  'SSIM_*': '-1 to 1',
  'MS_SSIM': _SHARE,
  'VIF*': _ABOVE,
  'Qabf': _SHARE,
  'better_than_average': '0 to 11',
}
# Of those in training that are no losses, what is better; of the rest nothing is.
_TRAINING_MODES = {'*accuracy': 'max', '*_error': 'min', '*loss': 'min', '*penalty': 'min'}
_MODES = {'max': ' ↑', 'min': ' ↓', None: ''}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A task on the page.

  Attributes:
    title: what it is called.
    config: an experiment of it, from `configs/`.
    changes: of its config, by which it has all metrics.
    source: of its metrics.
    families: beginnings of names, and of what all metrics with that beginning are.
  """

  title: str
  config: str
  source: str
  changes: dict[str, object] = dataclasses.field(default_factory=dict)
  families: dict[str, str] = dataclasses.field(default_factory=dict)


ENTRIES = {
  'classification': Entry(
    'Classification of images',
    'crossvit_digits',
    'Top-1 and top-5 as in the ImageNet challenge '
    '([Russakovsky et al. 2015](https://arxiv.org/abs/1409.0575)). Images with any number of '
    'classes have the metrics of [sounds](#classification-of-sounds) instead.',
  ),
  'audio_classification': Entry(
    'Classification of sounds',
    'mmvit_tones',
    'As papers on AudioSet report it: average precision of each class over all clips (by '
    'scikit-learn), then the mean over classes that occur. Also of images that have any number of '
    'classes.',
  ),
  'segmentation': Entry(
    'Segmentation of images',
    'semantic_fpn_shapes',
    'From one matrix of counts over all pixels of the split, as in Cityscapes '
    '([Cordts et al. 2016](https://arxiv.org/abs/1604.01685)) and mmsegmentation.',
  ),
  'detection': Entry(
    'Detection of objects',
    'mask_rcnn_shapes',
    "COCO's ([Lin et al. 2014](https://arxiv.org/abs/1405.0312)), by hotcoco. `mask_...` are there "
    'where the model has masks.',
    families={'mask_': 'the same of masks'},
  ),
  'paired_detection': Entry(
    'Detection in pairs of photos',
    'icafusion_shapes',
    'The first ones as YOLOv5 and ICAFusion report them (precision interpolated linearly, and '
    'integrated), `box_...` are [those of COCO](#detection-of-objects), `miss_rate/...` those of '
    'KAIST (Hwang et al. 2015), where `config.task.miss_rate.annotations` is given: settings are '
    'times of the day, how far people are, and how much of them is hidden.',
    changes={'task.miss_rate.annotations': 'FILE'},
    families={'box_': "COCO's metrics, as of one photo"},
  ),
  'sketch_localization': Entry(
    'Finding what a sketch shows',
    'sketch_localizer_shapes',
    "COCO's, where a query is an image and a category, and all queries are judged as one class "
    '([Tripathi et al. 2023](https://arxiv.org/abs/2303.08784)).',
    families={
      'seen_': 'the same of categories that were learnt',
      'unseen_': 'the same of categories never seen in training',
    },
  ),
  'retrieval': Entry(
    'Searching images by sentences',
    'mmca_shapes',
    'The protocol of VSE++ ([Faghri et al. 2018](https://arxiv.org/abs/1707.05612)). `i2t`: an '
    'image asks for its captions; `t2i`: a caption asks for its image. With '
    '`config.task.evaluation.rerank_topk` names begin with `rerank_topK/`.',
    changes={'task.evaluation.folds': 5},
    families={'folds/': 'the same, mean over the folds of `config.task.evaluation.folds`'},
  ),
  'image_fusion': Entry(
    'Fusion of infrared and visible images',
    'atfuse_shapes',
    'Each after its paper, which its function in `metrics/image_fusion.py` names. Tables of '
    'papers differ in units and conventions; [ATFuse](atfuse.md) says in which. '
    'Images are grey, with levels of 0 to 255.',
    changes={'task.compare_with_average': True},
    families={'average/': 'the same of the plain mean of both images, to compare with'},
  ),
  'point_segmentation': Entry(
    'Segmentation of points',
    'minkunet_rooms',
    'From one matrix of counts over all points, as in ScanNet '
    '([Dai et al. 2017](https://arxiv.org/abs/1702.04405)) and S3DIS.',
  ),
  'scene_labels': Entry(
    'Points from labels of whole scenes',
    'mit_rooms',
    'As MIT reports them ([Yang et al. 2023](https://arxiv.org/abs/2310.12817)): pseudo labels are '
    'what the model makes of the tags of a scene. The first four need true labels of points, which '
    'training does not. `crossattn label` prints these too, with `scenes` and `points`, how many '
    'got labels.',
  ),
}


def task_of(name: str) -> tasks.Task:
  """A task with every metric it can have, of one class; opens no data set."""
  entry = ENTRIES[name]
  config = importlib.import_module(f'configs.{entry.config}').get_config()
  for key, value in entry.changes.items():
    *sections, last = key.split('.')
    section = config
    for part in sections:
      section = section[part]
    section[last] = value
  _with_one_class(config)
  return tasks.create_task(config)


def _with_one_class(config: ml_collections.ConfigDict) -> None:
  if 'class_names' in config.dataset:
    config.dataset.class_names = (CLASS,)
  if 'unseen_classes' in config.dataset:
    config.dataset.unseen_classes = ()
  if config.task.name in ('point_segmentation', 'scene_labels'):
    config.model.num_classes = 1


def range_of(name: str) -> str:
  """Between which values a metric lies.

  Raises:
    KeyError: nobody says.
  """
  return next((x for key, x in _RANGES.items() if fnmatch.fnmatchcase(name, key)), None) or _no(
    name
  )


def _no(name: str) -> str:
  raise KeyError(f'docs/metrics_reference.py has no range of {name!r}')


def rows_of(name: str) -> Iterator[tuple[str, str, str]]:
  """Name, meaning, and range with what is better of each metric of a task, families last."""
  task, families = task_of(name), ENTRIES[name].families
  for metric, mode in task.metric_modes.items():
    if not metric.startswith(tuple(families)):
      yield metric, task.explain(metric), range_of(metric) + _MODES[mode]
  for beginning, meaning in families.items():
    yield f'{beginning}...', meaning, ''


def training_rows() -> Iterator[tuple[str, str, str]]:
  """The same of the metrics of training steps."""
  for metric, meaning in metric_writers.TRAINING_WORDS.items():
    modes = (x for key, x in _TRAINING_MODES.items() if fnmatch.fnmatchcase(metric, key))
    yield metric, meaning, range_of(metric) + _MODES[next(modes, None)]


def page() -> str:
  """The whole page."""
  parts = [_ABOUT, _PROGRESS, _TRAINING, _table(training_rows()), _EVALUATION]
  for name, entry in ENTRIES.items():
    parts += [f'### {entry.title}', textwrap.fill(entry.source, 120, break_on_hyphens=False)]
    parts += [_table(rows_of(name))]
  return '\n\n'.join(parts) + '\n'


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
  lines = ['| metric | which is | from, to |', '|---|---|---|']
  lines += [f'| `{name}` | {" | ".join(cells)} |' for name, *cells in rows]
  return '\n'.join(lines)


if __name__ == '__main__':
  PAGE.write_text(page())
