"""Commands of documents, made small enough for a test: what trains little and compiles little."""

import importlib.util
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
MODES = 'train|eval|predict|label|demo|export|compile'
# Small enough for a test: what compiles, and how much there is to train and to evaluate on.
TRAINED = [
  '--config.num_steps=2',
  '--config.schedule.warmup_epochs=0',
  '--config.schedule.warmup_steps=0',
  '--config.logging.every_steps=1',
]
# Of what `crossattn examples` writes.
EXAMPLES = 20
COMPILED = ['--compile_effort=-1']
EXPORTED = ['--platforms=cpu']
# What makes a model small, by what its name starts with.
SMALL = {
  'crossvit': ['--config.model.depths=((1,1,0),)'],
  'crossformer': ['--config.model.depths=(1,1,1,1)'],
  'crossformer_small+mask_rcnn': [
    '--config.dataset.image_size=(64,64)',
    '--config.dataset.augmentation.long_side=64',
    '--config.dataset.evaluation.long_side=64',
    '--config.model.widths=(32,32,32,32)',
    '--config.model.training_candidates=16',
    '--config.model.sampled_regions=8',
    '--config.model.pyramid_channels=16',
    '--config.model.head_channels=16',
    '--config.model.mask_channels=16',
    '--config.model.mask_convs=1',
  ],
  'icafusion': [
    '--config.dataset.image_size=(64,64)',
    '--config.model.widths=(8,8,8,8,8)',
    '--config.model.depths=(1,1,1,1)',
    '--config.model.neck_widths=(8,8,8,8,8,8,8,8)',
    '--config.model.neck_depth=1',
  ],
  'minkunet': [
    '--config.dataset.buckets=((2048,1024,256,96,32),)',
    '--config.model.widths=(8,8,8,8,8,8,8,8)',
  ],
  'mit_': [
    '--config.dataset.buckets=((2048,1024,256,96,32),)',
    '--config.model.points_widths=(8,8,8,8,8,8,8,8)',
    '--config.model.encoder_depth=1',
  ],
  'mit_18a_r50': ['--config.model.decoder_depth=2'],
  'pyramid': ['--config.model.depths=(1,1,1,1)'],
  'sketch_localizer': [
    '--config.dataset.unseen_classes=("ring",)',
    '--config.model.depths=(1,1)',
    '--config.model.num_heads=(1,2)',
    '--config.model.det_stages=(1,)',
    '--config.model.num_layers=1',
    '--config.model.sketch_depths=(1,)',
    '--config.model.sketch_widths=(8,)',
    '--config.model.sketch_output_stride=32',
  ],
  'swiftformer': ['--config.model.depths=(1,1,1,1)'],
}


def in_a_clone(words):
  """What does the same as the command `crossattn`; other commands as they are."""
  if words[0] != 'crossattn':
    return words
  if words[1] in ('convert', 'compare', 'replay'):
    return ['python', '-m', 'crossattn_jax.parity', *words[1:]]
  if words[1] not in MODES.split('|'):
    return words
  mode = [f'--mode={words[1]}'] if words[1] != 'train' else []
  rest = [re.sub(r'^--config=(\w+)(?=:|$)', r'--config=configs/\1.py', word) for word in words[2:]]
  return ['python', 'main.py', *mode, *rest]


def flag(words, name):
  """The value of `--name=value`, or None."""
  return next((x.partition('=')[2] for x in words if x.startswith(f'--{name}=')), None)


def mode_of(words):
  """What main.py is told to do; None for other programs."""
  return (flag(words, 'mode') or 'train') if words[1:2] == ['main.py'] else None


def experiment(file):
  """The config that `--config=FILE` or `FILE:ARGUMENT` names."""
  path, _, argument = file.partition(':')
  spec = importlib.util.spec_from_file_location('experiment', ROOT / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument) if argument else module.get_config()


def small(words):
  """The words of a command of main.py, with those that let it train and compile little."""
  # Digits are written in a second, and few of them lack classes.
  if words[:2] == ['crossattn', 'examples'] and words[2:3] != ['images']:
    return [*words, f'--size={EXAMPLES}']
  mode, config = mode_of(words), flag(words, 'config')
  if mode == 'train':
    words = [*words, *TRAINED]
    own = flag(words, 'config.dataset.name')
    family = own or experiment(config).dataset.name.partition('/')[0]
    if family in ('shape_scenes', 'room_scenes'):
      words.append(f'--config.dataset.name={family}/tiny')
  elif mode == 'compile':
    words = [*words, *COMPILED]
  elif mode == 'export':
    words = [*words, *EXPORTED]
  if mode in ('train', 'compile'):
    model, said = experiment(config).model.name, {word.partition('=')[0] for word in words}
    smaller = [x for name in SMALL if model.startswith(name) for x in SMALL[name]]
    words = [*words, *(x for x in smaller if x.partition('=')[0] not in said)]
  return words
