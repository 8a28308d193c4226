"""Writes docs/models.md, the list of all models: `python docs/zoo.py`.

`python docs/zoo.py --measure` first counts parameters and operations of the models that
docs/models.json does not have; operations as XLA counts them in a forward pass of one example.
"""

from collections.abc import Mapping
import dataclasses
import fnmatch
import importlib.util
import json
import pathlib
import sys
import textwrap

import jax
import jax.numpy as jnp

from crossattn_jax import models
from crossattn_jax.conversion import published

DOCS = pathlib.Path(__file__).parent
MEASURED = DOCS / 'models.json'
# Knows the smallest input of each model.
_TREES = DOCS.parent / 'tests' / 'models' / 'test_parameter_trees.py'
_UNKNOWN = (0, None, '')

_ABOUT = """# Models

<!-- Written by `python docs/zoo.py`; change that file instead. -->

Every name is one for `crossattn_jax.create_model(NAME)` and for `--config.model.name`. Names with
`+` are a backbone with a head. `crossattn models 'crossvit_*'` prints those that match, and with
`--weights` those whose weights `crossattn_jax.load_pretrained(NAME, SOURCE)` downloads.

- **Parameters** are those of a network as it is created, for the classes of the paper.
- **G multiply-adds** are for one example of the size beside it: half the operations that XLA
  counts, in billions. Papers often call this number FLOPs.
- **Published** is what papers and authors report. Nothing here was trained on these data sets; what
  was trained, on small ones, is in [quick configs](measurements/small_runs.md).
- **Weights** are other people's: mind their licence. The column names the sources of
  `load_pretrained`. "By hand" means that only a browser gets the file; SOURCE is then its path.
"""


@dataclasses.dataclass(frozen=True)
class System:
  """A section of the page.

  Attributes:
    title: its heading.
    page: the document that says more, or ''.
    patterns: of the names of its models.
    metric: heading of the column of published results; '' where there are none.
    results: those, by name.
    source: who says so.
    config: the experiment of a model; '' where there is none.
    licence: of the official code or weights, where they are.
    note: further on weights.
  """

  title: str
  page: str
  patterns: tuple[str, ...]
  metric: str = ''
  results: Mapping[str, str] = dataclasses.field(default_factory=dict)
  source: str = ''
  config: str = ''
  licence: str = ''
  note: str = ''


SYSTEMS = (
  System(
    'CrossViT',
    'crossvit.md',
    ('crossvit_*',),
    'ImageNet top-1',
    {
      'crossvit_tiny_240': '73.4',
      'crossvit_small_240': '81.0',
      'crossvit_base_240': '82.2',
      'crossvit_9_240': '73.9',
      'crossvit_15_240': '81.5',
      'crossvit_18_240': '82.5',
      'crossvit_9_dagger_240': '77.1',
      'crossvit_15_dagger_240': '82.3',
      'crossvit_18_dagger_240': '82.8',
      'crossvit_15_dagger_408': '83.5',
      'crossvit_18_dagger_408': '83.9',
      'crossvit_18_dagger_504': '84.1',
      'crossvit_18_t2t_240': '83.0',
    },
    'the paper, tables 2 and 4',
    'configs/crossvit_imagenet.py:{}',
    '[IBM/CrossViT](https://github.com/IBM/CrossViT): Apache-2.0',
  ),
  System(
    'SwiftFormer',
    'swiftformer.md',
    ('swiftformer_*', 'regnety_160'),
    'ImageNet top-1',
    {
      'swiftformer_xs': '75.7',
      'swiftformer_s': '78.5',
      'swiftformer_l1': '80.9',
      'swiftformer_l3': '83.0',
      'regnety_160': '82.9',
    },
    'the paper, with a teacher',
    'configs/swiftformer_imagenet.py:{}',
    'see [Amshaker/SwiftFormer](https://github.com/Amshaker/SwiftFormer)',
    '`regnety_160` is the teacher, of the DeiT project.',
  ),
  System(
    'CrossFormer and CrossFormer++',
    'crossformer.md',
    ('crossformer_*',),
    'ImageNet top-1',
    {
      'crossformer_tiny': '81.5',
      'crossformer_small': '82.5',
      'crossformer_base': '83.4',
      'crossformer_large': '84.0',
      'crossformer_pp_small': '83.2',
      'crossformer_pp_base': '84.2',
      'crossformer_pp_large': '84.7',
      'crossformer_pp_huge': '84.9',
    },
    'the official README',
    'configs/crossformer_imagenet.py:{}',
    '[cheerss/CrossFormer](https://github.com/cheerss/CrossFormer): MIT',
  ),
  System(
    'BiFormer',
    'biformer.md',
    ('biformer_*', 'maxvit_stl'),
    'ImageNet top-1',
    {
      'biformer_tiny': '81.4',
      'biformer_small': '83.8',
      'biformer_base': '84.3',
      'biformer_stl': '82.7',
      'biformer_stl_nchw': '82.7',
    },
    'the official README',
    'configs/biformer_imagenet.py:{}',
    'see [rayleizhu/BiFormer](https://github.com/rayleizhu/BiFormer)',
  ),
  System(
    'MMViT',
    'mmvit.md',
    ('mmvit_*',),
    config='configs/mmvit_imagenet.py:{}',
    note='Of sounds: `configs/mmvit_audioset.py`. No code and no weights were published.',
  ),
  System(
    'CCNet, PSPNet, DeepLabv3',
    'ccnet.md',
    ('ccnet*', 'pspnet_*', 'deeplabv3_*'),
    'Cityscapes mIoU',
    {'ccnet_resnet101': '79.74'},
    'the authors, R = 2, one scale, the first of three runs',
    'configs/ccnet_cityscapes.py:{}',
    '[speedinghzl/CCNet](https://github.com/speedinghzl/CCNet): MIT',
    "The authors' checkpoints and mmsegmentation's are taken by their paths.",
  ),
  System(
    'ATFuse',
    'atfuse.md',
    ('atfuse',),
    config='configs/atfuse_msrs.py',
    licence='[songlei-xiong/ATFuse](https://github.com/songlei-xiong/ATFuse) states none',
  ),
  System(
    'ICAFusion',
    'icafusion.md',
    ('icafusion_*',),
    'FLIR AP50',
    {'icafusion_l': '79.2'},
    'the paper',
    'configs/icafusion_flir.py:{}',
    '[chanchanchan97/ICAFusion](https://github.com/chanchanchan97/ICAFusion): AGPL-3.0',
    "The authors' files and YOLOv5's are taken by their paths ([weights](icafusion.md#weights)).",
  ),
  System(
    'MMCA and SAEM',
    'mmca.md',
    ('mmca*', 'saem*', 'bert_*'),
    'Flickr30K R@1, image to text / text to image',
    {'mmca_bert_base': '74.2 / 54.8', 'saem_bert_base': '69.1 / 52.4'},
    'quoted by a list of benchmarks',
    'configs/mmca_flickr30k.py:{}',
    note="No weights of MMCA were published; SAEM's are taken by their path.",
  ),
  System(
    'Sketch localizer',
    'sketch_localizer.md',
    ('sketch_localizer_*',),
    config='configs/sketch_localizer_quickdraw.py:{}',
    note='No weights were published; [several files](sketch_localizer.md#weights) give a start.',
  ),
  System(
    'MIT',
    'mit.md',
    ('mit_*',),
    config='configs/mit_scannet.py:{}',
    licence='[jimmy15923/mit](https://github.com/jimmy15923/mit): MIT',
    note='Only networks that learn from its labels have published results: the next ones.',
  ),
  System(
    'MinkUNet',
    'mit.md',
    ('minkunet*',),
    'ScanNet mIoU, val',
    {'minkunet18a': '35.8'},
    "from MIT's labels, as others have it in their tables",
    'configs/minkunet_scannet.py:{}',
    '[jimmy15923/mit](https://github.com/jimmy15923/mit): MIT',
  ),
  System(
    'Backbones',
    '',
    ('pyramid_*', 'resnet*'),
    note='`pyramid_*` takes any attention by name: `create_model(NAME, attention="pooled")`.',
  ),
)

# Backbone -> mean IoU on ADE20K with Semantic FPN, UPerNet; AP on COCO with RetinaNet, Mask R-CNN.
_WITH_HEADS = {
  'crossformer_small': ('46.4', '47.6', '44.4', '45.4 / 41.4'),
  'crossformer_base': ('48.0', '49.7', '46.2', '47.2 / 42.7'),
  'crossformer_large': ('49.1', '50.4', '', ''),
  'crossformer_pp_small': ('47.4', '49.4', '45.1', '46.4 / 42.1'),
  'crossformer_pp_base': ('48.6', '50.7', '46.6', '47.7 / 43.2'),
  'biformer_small': ('48.9', '49.8', '45.9', '47.8 / 43.2'),
  'biformer_base': ('49.9', '51.0', '47.1', '48.6 / 43.7'),
  'swiftformer_l1': ('41.4', '', '', '41.2 / 38.1'),
  'swiftformer_l3': ('43.9', '', '', '42.7 / 39.1'),
}


def names_of(system: System) -> list[str]:
  """The models of a system, small ones first, each by its own name: not as others call it."""
  names = [
    name
    for name in models.list_models()
    if any(fnmatch.fnmatch(name, pattern) for pattern in system.patterns)
  ]
  modules = {name: models.create_model(name) for name in names}
  kept = []
  for name, module in modules.items():
    twins = [other for other in names if modules[other] == module]
    known = [other for other in twins if other in system.results]
    if name in (known or twins[-1:]):
      kept.append(name)
  return sorted(kept, key=lambda name: measured().get(name, _UNKNOWN)[0])


def measured() -> dict[str, tuple[int, float | None, str]]:
  """By model its parameters, and a forward pass's multiply-adds in billions of such an input."""
  return json.loads(MEASURED.read_text()) if MEASURED.exists() else {}


def table(header: list[str], rows: list[list[str]]) -> str:
  """Markdown, without columns in which nothing is."""
  kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(line[i] for i in kept)} |' for line in lines)


def section(system: System) -> str:
  """Markdown of a system."""
  rows, by_hand = [], {}
  for name in names_of(system):
    parameters, multiply_adds, size = measured().get(name, _UNKNOWN)
    sources = published.where(name)
    rows.append(
      [
        f'`{name}`',
        f'{parameters:,}' if parameters else '',
        f'{multiply_adds:g}' if multiply_adds else '',
        size.replace(' x ', '×'),
        system.results.get(name, ''),
        ', '.join(sources),
      ]
    )
    if 'by hand' in sources:
      by_hand.setdefault(sources['by hand'], []).append(f'`{name}`')
  header = ['model', 'parameters', 'G multiply-adds', 'input', system.metric, 'weights']
  told = [
    system.page and f'[More]({system.page})',
    system.config and f'Config: `{system.config.format("NAME")}`',
    system.source and f'Published: {system.source}',
    system.licence and f'Licence of the original: {system.licence}',
    system.note,
    *(f'[By hand]({page}): {", ".join(names)}' for page, names in by_hand.items()),
  ]
  lines = [_wrapped(f'- {line}') for line in told if line]
  return f'## {system.title}\n\n{table(header, rows)}\n\n' + '\n'.join(lines)


def _wrapped(line: str) -> str:
  return textwrap.fill(
    line, 120, subsequent_indent='  ', break_long_words=False, break_on_hyphens=False
  )


def with_heads() -> str:
  """Markdown of backbones with heads."""
  header = ['backbone', '`+semantic_fpn`', '`+upernet`', '`+retinanet`', '`+mask_rcnn`']
  rows = [[f'`{name}`', *results] for name, results in _WITH_HEADS.items()]
  return f"""## Backbones with heads

Mean IoU on ADE20K (one scale) and AP on COCO (12 epochs; of boxes / masks), as papers and official
READMEs have them. Every pyramid takes every head: `crossattn models '*+upernet'`.

{table(header, rows)}

- [Segmentation](segmentation.md): `configs/segmentation_ade20k.py:BACKBONE+HEAD`
- [Detection](detection.md): `configs/retinanet_coco.py:BACKBONE` and
  `configs/mask_rcnn_coco.py:BACKBONE`"""


def page() -> str:
  """The whole page."""
  return '\n\n'.join([_ABOUT.rstrip(), *map(section, SYSTEMS), with_heads()]) + '\n'


def example_of(model) -> tuple[str, tuple[jax.ShapeDtypeStruct, ...]] | None:
  """What one forward pass takes, in words and as shapes; None where scenes and sentences differ."""

  def image(height, width, channels=None):
    channels = channels or model.num_channels
    return jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)

  match type(model).__name__:
    case 'Bert' | 'MMCA' | 'MinkUNet' | 'MIT' | 'MITPoints' | 'MITImages':
      return None
    case 'ATFuse':
      return 'two of 256 x 256', (image(256, 256, 1),) * 2
    case 'SketchLocalizer':
      size = model.sketch_size
      sketch = jax.ShapeDtypeStruct((1, 1, size, size, model.num_channels), jnp.float32)
      return '800 x 1056, a sketch', (image(800, 1056), sketch)
    case 'ICAFusion':
      return 'two of {} x {}'.format(*model.image_size), (image(*model.image_size),) * 2
  return '{} x {}'.format(*model.image_size), (image(*model.image_size),)


def measure() -> None:
  """Adds to docs/models.json what it does not have; seconds for each model."""
  spec = importlib.util.spec_from_file_location('trees', _TREES)
  trees = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(trees)
  known = measured()
  for name in (name for system in SYSTEMS for name in names_of(system) if name not in known):
    model = models.create_model(name)
    example, multiply_adds = example_of(model), None
    if example is not None:
      variables = jax.eval_shape(model.init, jax.random.key(0), *example[1])
      operations = jax.jit(model.apply).lower(variables, *example[1]).cost_analysis()['flops']
      multiply_adds = float(f'{operations / 2e9:.3g}')
    known[name] = trees.tree_of(name)[0], multiply_adds, example[0] if example else ''
    lines = [f'  {json.dumps(key)}: {json.dumps(x)}' for key, x in sorted(known.items())]
    MEASURED.write_text('{\n' + ',\n'.join(lines) + '\n}\n')


if __name__ == '__main__':
  if '--measure' in sys.argv:
    measure()
  (DOCS / 'models.md').write_text(page())
