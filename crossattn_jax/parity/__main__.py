"""The command line of the parity tools: `python -m crossattn_jax.parity COMMAND --help`."""

import argparse
from collections.abc import Mapping, Sequence
import json
import sys
from typing import Any

from crossattn_jax.conversion import (
  convert,
  correspondence,
  fitting,
  opening,
  reading,
  recognition,
  start,
)
from crossattn_jax.models import registry, variables_io
from crossattn_jax.parity import adapters, bounds, replay, report


def _replay(args: argparse.Namespace) -> int:
  precisions = bounds.PRECISIONS if args.precision == 'both' else (args.precision,)
  printer = report.Printer()
  show = report.print_summary if args.summary else report.print_result
  results = []
  for result in replay.replay(args.paths, precisions):
    results.append(result)
    show(printer, result)
  if args.json:
    report.write_json(args.json, report.results_to_json(results))
  passed, failed = report.count_cases(results)
  printer.line(f'{passed} passed, {failed} failed')
  return 1 if failed else 0


def _convert(args: argparse.Namespace) -> int:
  overrides = dict(args.override or [])
  printer = report.Printer()
  if variables_io.is_variables_file(args.input):
    if any(x is not None for x in (args.new_head, args.new_image_size, args.fresh)):
      raise ValueError('--new-head, --new-image-size and --fresh apply to conversions from PyTorch')
    saved = variables_io.load_variables(args.input)
    if saved.name != args.model:
      raise ValueError(f'{args.input}: holds variables of {saved.name!r}, not of {args.model!r}')
    state = convert.to_torch(
      saved.name,
      saved.variables,
      {**saved.overrides, **overrides},
      '' if args.spelling == 'original' else args.spelling,
    )
    convert.write_torch(args.output, state)
    printer.table(('PyTorch', 'shape'), [(key, str(x.shape)) for key, x in state.items()])
    printer.line(f'{args.output}: {len(state)} tensors of {saved.name}')
    return 0
  if args.fresh is not None and args.start is not None:
    raise ValueError('--fresh initialises what a checkpoint lacks; so does --start, for a head')
  if args.start is not None or args.fresh is not None:
    state = reading.read_checkpoint(args.input, args.which).state
    if args.start is not None:
      conversion = start.start_from_classifier(args.model, state, args.start, overrides)
    else:
      conversion = convert.to_flax_in_part(args.model, state, overrides, args.fresh)
  else:
    opened = opening.open_weights(args.input, args.model, overrides, which=args.which)
    _refuse_differences(opened, args.model, overrides)
    printer.line(opened.told)
    conversion = convert.Conversion(
      args.model, opened.overrides, opened.variables, opened.report, opened.class_names
    )
  if args.new_head is not None or args.new_image_size is not None:
    names = () if args.new_head is not None else conversion.class_names
    opened = opening.OpenedWeights(
      conversion.name,
      conversion.overrides,
      conversion.variables,
      names,
      report=conversion.report,
    )
    changes = {'num_classes': args.new_head, 'image_size': args.new_image_size}
    fitted = fitting.refit(opened, overrides=changes)
    conversion = convert.Conversion(
      fitted.name, fitted.overrides, fitted.variables, fitted.report, names
    )
  conversion.save(args.output)
  printer.table(
    ('PyTorch', 'shape', 'Flax', 'shape', 'how'),
    [
      (
        line.torch_key or '-',
        str(line.torch_shape),
        line.flax_path or '-',
        str(line.flax_shape),
        line.action,
      )
      for line in conversion.report
    ],
  )
  count = sum(bool(line.flax_path) for line in conversion.report)
  printer.line(f'{args.output}: {count} arrays of {conversion.name}')
  return 0


def _refuse_differences(
  opened: opening.OpenedWeights, name: str, overrides: Mapping[str, Any]
) -> None:
  if opened.name != name:
    raise ValueError(
      f'{opened.told}: not the whole of {name!r}; --start=CLASSES takes the backbone of a '
      'classifier, --fresh=SEED initialises the modules that are missing'
    )
  saved, wanted = (registry.create_model(name, **x) for x in (opened.overrides, overrides))
  for field in overrides:
    has, asked = recognition.field_of(saved, field), recognition.field_of(wanted, field)
    if has != asked:
      raise ValueError(
        f'{opened.told}: has {field}={has}, not {asked}: leave --override={field} out. '
        f'load_pretrained({name!r}, OUTPUT, {field}={asked!r}) and config.weights adapt the result'
      )


def _compare(args: argparse.Namespace) -> int:
  # PyTorch is only needed here.
  from crossattn_jax.parity import compare

  torch_module = compare.build_torch_module(args.against)
  comparison = compare.compare(
    args.model,
    torch_module,
    against=args.against,
    weights=args.weights,
    precision=args.precision,
    overrides=dict(args.override or []),
  )
  report.print_comparison(report.Printer(), comparison)
  if args.json:
    report.write_json(args.json, report.comparison_to_json(comparison))
  if args.png:
    compare.plot(comparison, args.png)
  return 0 if comparison.first_outside is None else 1


def _field_value(text: str) -> tuple[str, Any]:
  field, equals, value = text.partition('=')
  if not equals:
    raise argparse.ArgumentTypeError(f'{text!r} is not FIELD=VALUE')
  try:
    return field, json.loads(value)
  except ValueError:
    return field, value


def _image_size(text: str) -> tuple[int, int]:
  try:
    height, width = map(int, text.split('x'))
  except ValueError as error:
    raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH, such as 384x384') from error
  return height, width


def _add_override(command: argparse.ArgumentParser, help_text: str) -> None:
  command.add_argument(
    '--override', type=_field_value, action='append', metavar='FIELD=VALUE', help=help_text
  )


def _parser(program: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog=program, description='Numerics against the PyTorch originals.'
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')

  command = commands.add_parser(
    'replay',
    help='check recorded cases',
    description='Replays recorded cases and prints a row per array; exits 1 if one fails.',
  )
  command.add_argument(
    'paths', nargs='+', metavar='PATH', help='manifest, or folder searched recursively'
  )
  command.add_argument(
    '--precision',
    choices=[*bounds.PRECISIONS, 'both'],
    default='both',
    help='float64 judges exactness, float32 stability (default: both)',
  )
  command.add_argument(
    '--summary', action='store_true', help='print a line per case in place of a row per array'
  )
  command.add_argument('--json', metavar='FILE', help='also write the results to FILE')
  command.set_defaults(run=_replay)

  command = commands.add_parser(
    'convert',
    help='take weights from PyTorch to this library, or back',
    description='Converts a PyTorch checkpoint to a variables file, or a variables file to a '
    'PyTorch state dict, and prints a line per tensor. What does not fit is refused by name.',
  )
  command.add_argument('model', metavar='MODEL', help='registered name, such as crossvit_tiny_240')
  command.add_argument(
    'input', metavar='INPUT', help='checkpoint, folder of Hugging Face, or a variables file'
  )
  command.add_argument(
    'output', metavar='OUTPUT', help='.safetensors; .pth too where the result is for PyTorch'
  )
  _add_override(command, 'field of the model that the checkpoint differs in and does not tell')
  command.add_argument(
    '--which',
    default='auto',
    help='of several weights in INPUT: ema, raw, or the name of the entry that holds them; the '
    'average where there is one by default',
  )
  command.add_argument(
    '--new-head', type=int, metavar='CLASSES', help='replace the classifiers by fresh ones'
  )
  command.add_argument(
    '--start',
    type=int,
    metavar='CLASSES',
    help='INPUT is a classifier: take the backbone of MODEL, such as biformer_small+upernet, from '
    'it, and initialise the rest for this many classes',
  )
  command.add_argument(
    '--fresh',
    type=int,
    metavar='SEED',
    help='initialise the modules that INPUT lacks altogether: MMCA from a BERT, or from a SAEM',
  )
  command.add_argument(
    '--new-image-size', type=_image_size, metavar='HxW', help='resize the position embeddings'
  )
  command.add_argument(
    '--spelling',
    choices=['original', 'timm', 'transformers'],
    default='original',
    help='of the keys written for PyTorch',
  )
  command.set_defaults(run=_convert)

  command = commands.add_parser(
    'compare',
    help='run a PyTorch module and a model side by side',
    description='Compares layer by layer on the same weights and input; exits 1 if a layer leaves '
    'the bound, and names the first one.',
  )
  command.add_argument('model', metavar='MODEL', help='registered name, such as crossvit_tiny_240')
  command.add_argument(
    '--against',
    required=True,
    metavar='timm:NAME|MODULE:FACTORY|FILE.py:FACTORY',
    help='a timm model, or a callable without arguments that returns a torch.nn.Module',
  )
  command.add_argument('--weights', metavar='FILE', help='checkpoint for both sides')
  command.add_argument(
    '--precision',
    choices=['default', 'highest', 'bfloat16'],
    default='highest',
    help='of this library: float32 with default or highest matrix products, or bfloat16',
  )
  _add_override(command, 'field of the model to change: num_classes=10')
  command.add_argument('--json', metavar='FILE', help='also write the result to FILE')
  command.add_argument('--png', metavar='FILE', help='also plot the errors to FILE')
  command.set_defaults(run=_compare)
  return parser


def main(argv: Sequence[str] | None = None, program: str = 'python -m crossattn_jax.parity') -> int:
  """Runs a command of `program` and returns its exit status."""
  args = _parser(program).parse_args(argv)
  try:
    return args.run(args)
  except (
    ImportError,
    OSError,
    ValueError,
    adapters.AdapterNotFound,
    correspondence.NoCorrespondence,
  ) as error:
    # What the user can mend: these messages say how.
    print(f'error: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
