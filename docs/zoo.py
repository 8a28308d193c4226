"""Writes docs/models.md, the list of all models: `python docs/zoo.py`.

`python docs/zoo.py --measure` first counts the operations of models that docs/models.json does not
have, as XLA counts them when it is given the forward pass of one example.
"""

from collections.abc import Mapping
import dataclasses
import fnmatch
import json
import pathlib
import sys

import jax
import jax.numpy as jnp

from crossattn_jax import models
from crossattn_jax.conversion import published

DOCS = pathlib.Path(__file__).parent
MEASURED = DOCS / 'models.json'
# Kept true by tests/models/test_parameter_trees.py.
PARAMETERS = DOCS.parent / 'tests' / 'models' / 'parameter_trees.json'

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
    ('swiftformer_*',),
    'ImageNet top-1',
    {
      'swiftformer_xs': '75.7',
      'swiftformer_s': '78.5',
      'swiftformer_l1': '80.9',
      'swiftformer_l3': '83.0',
    },
    'the paper, with a teacher',
    'configs/swiftformer_imagenet.py:{}',
    'see [Amshaker/SwiftFormer](https://github.com/Amshaker/SwiftFormer)',
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
    note='No code and no weights were published.',
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
    'MIT and MinkUNet',
    '',
    ('mit_*', 'minkunet*'),
    licence='[jimmy15923/mit](https://github.com/jimmy15923/mit): MIT',
  ),
  System(
    'Backbones',
    'architecture.md',
    ('pyramid_*', 'resnet*', 'regnety_*'),
    'ImageNet top-1',
    {'regnety_160': '82.9'},
    'the DeiT project',
    note="`regnety_160` is DeiT's teacher.",
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
  """The models of a system, each by its own name: not by those that others call it."""
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
  return kept


def table(header: list[str], rows: list[list[str]]) -> str:
  """Markdown, without columns in which nothing is."""
  kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(line[i] for i in kept)} |' for line in lines)


def section(system: System) -> str:
  """Markdown of a system."""
  counts, measured = json.loads(PARAMETERS.read_text()), json.loads(MEASURED.read_text())
  rows = []
  for name in names_of(system):
    size, multiply_adds = measured.get(name, ('', ''))
    rows.append(
      [
        f'`{name}`',
        f'{counts[name][0]:,}' if name in counts else '',
        str(multiply_adds),
        size,
        system.results.get(name, ''),
        ', '.join(published.where(name)),
      ]
    )
  header = ['model', 'parameters', 'G multiply-adds', 'of', system.metric, 'weights']
  told = [f'[More]({system.page})'] if system.page else []
  if system.config:
    told.append(f'Config: `{system.config.format("NAME")}`')
  if system.source:
    told.append(f'Published: {system.source}')
  if system.licence:
    told.append(f'Licence of the original: {system.licence}')
  told += [system.note] if system.note else []
  pages: dict[str, list[str]] = {}
  for name in names_of(system):
    if page := published.where(name).get('by hand'):
      pages.setdefault(page, []).append(f'`{name}`')
  told += [
    f'By hand: [{"all of them" if len(names) == len(rows) else ", ".join(names)}]({page})'
    for page, names in pages.items()
  ]
  return f'## {system.title}\n\n{table(header, rows)}\n\n' + '\n'.join(f'- {x}' for x in told)


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
  measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
  for name in (name for system in SYSTEMS for name in names_of(system)):
    model = models.create_model(name)
    example = example_of(model)
    if name not in measured and example is not None:
      variables = jax.eval_shape(model.init, jax.random.key(0), *example[1])
      operations = jax.jit(model.apply).lower(variables, *example[1]).cost_analysis()['flops']
      measured[name] = example[0], float(f'{operations / 2e9:.3g}')
      lines = (
        f'  {json.dumps(key)}: {json.dumps(value)}' for key, value in sorted(measured.items())
      )
      MEASURED.write_text('{\n' + ',\n'.join(lines) + '\n}\n')


if __name__ == '__main__':
  if '--measure' in sys.argv:
    measure()
  (DOCS / 'models.md').write_text(page())
