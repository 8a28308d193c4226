"""The command line of the parity tools: `python -m crossattn_jax.parity COMMAND --help`."""

import argparse
from collections.abc import Sequence
import sys

from crossattn_jax.parity import bounds, cases, replay, report


def _replay(args: argparse.Namespace) -> int:
  precisions = bounds.PRECISIONS if args.precision == 'both' else (args.precision,)
  printer = report.Printer()
  results = []
  try:
    for result in replay.replay(args.paths, precisions):
      results.append(result)
      report.print_result(printer, result)
  except cases.CaseError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  if args.json:
    report.write_json(args.json, report.results_to_json(results))
  passed, failed = report.count_cases(results)
  printer.line(f'{passed} passed, {failed} failed')
  return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m crossattn_jax.parity', description='Numerics against the PyTorch originals.'
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
  command.add_argument('--json', metavar='FILE', help='also write the results to FILE')
  command.set_defaults(run=_replay)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit status."""
  args = _parser().parse_args(argv)
  return args.run(args)


if __name__ == '__main__':
  sys.exit(main())
