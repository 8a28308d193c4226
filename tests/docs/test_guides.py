"""The guides run as they are written, and print what they say; in a short form, and in full."""

import json
import os
import pathlib
import re
import resource
import shlex
import signal
import subprocess
import sys

from absl.testing import flagsaver
import jax
from PIL import Image
import pytest

from crossattn_jax import cli, parallel
from tests.docs.shrunk import in_a_clone, mode_of, small

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'docs' / 'guides'
PAGES = sorted(path for path in FOLDER.glob('*.md') if path.stem != 'index')
# A language, none for a shell, and what is in the block.
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r'!\[[^]]*\]\(([^)]+)\)')
# What no tier runs, and why: the first that is found in the command.
NOT_RUN = {
  r'pip install|git clone': '.ci/run installs',
  r'gs://|--multihost|gcloud': 'needs a cluster',
  r'weights=(?:timm|official)|tfds build': 'needs the network',
  r'crossattn demo': 'serves until it is stopped; tests/training/test_demo.py opens such pages',
}
OURS = re.compile(r'python (?:-m crossattn_jax\.parity|main\.py)|crossattn')
NEEDS_TORCH = re.compile(r'crossattn compare|import torch|parity compare')
# A figure may differ by a tenth, or by 0.1 if that is more: machines round differently, and what is
# trained on them comes out differently.
SLACK = 0.1
FIGURE = re.compile(r'\.\.\.|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?')
TIME = re.compile(r' ?(?:s|ms|min|images/s|minutes|seconds|%? left)\b')
# Processor time of a page, as it is written.
MOST_SECONDS = 400

# Runs Python's blocks, which go on from one another: one line of JSON each.
SESSION = """
import json, sys
scope = {'__name__': '__main__'}
for line in sys.stdin:
  exec(compile(json.loads(line), 'guide', 'exec'), scope)
  print('\\0', flush=True)
"""


def steps(page):
  """What is done on a page: the language, the text, and what the page says it prints, or None."""
  blocks = BLOCK.findall(page.read_text())
  for i, (language, text) in enumerate(blocks):
    if language in ('', 'python'):
      printed = blocks[i + 1][1] if blocks[i + 1 : i + 2] and blocks[i + 1][0] == 'text' else None
      yield language, text, printed


def commands(text):
  """The commands of a shell's block, one a line."""
  lines = text.replace('\\\n', ' ').splitlines()
  return [line for line in lines if line.strip() and not line.startswith('#')]


def reason_not_to_run(text):
  """Why no tier runs it; None for what some tier runs."""
  return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, text)), None)


def lacks_torch(text):
  """Whether it needs PyTorch, which is not here."""
  try:
    import torch  # noqa: F401
  except ImportError:
    return bool(NEEDS_TORCH.search(text))
  return False


@pytest.fixture
def place(tmp_path, monkeypatch):
  """Stands for /tmp and for the home folder. A person is in a clone, and has `crossattn`."""
  programs = tmp_path / 'bin'
  programs.mkdir()
  program = programs / 'crossattn'
  program.write_text(f'#!{sys.executable}\nfrom crossattn_jax import cli\ncli.main()\n')
  program.chmod(0o755)
  monkeypatch.setenv(
    'PATH', f'{program.parent}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin'
  )
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('MPLBACKEND', 'Agg')
  monkeypatch.chdir(ROOT)
  return tmp_path


def shell(text, place, **environment):
  """What commands print, both streams as on a terminal."""
  # What keeps libtpu from looking for a TPU here would tell it where it compiles for.
  kept = {k: x for k, x in os.environ.items() if not k.startswith('TPU_')}
  result = subprocess.run(
    ['bash', '-euo', 'pipefail', '-c', text.replace('/tmp/', f'{place}/')],
    env=kept | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=900,
    check=False,
  )
  assert result.returncode == 0, f'{text}\n{result.stdout}'
  return result.stdout.replace(f'{place}/', '/tmp/')


def in_this_process(words):
  """Runs the command `crossattn` without starting Python anew."""
  handler = signal.getsignal(signal.SIGINT)
  with flagsaver.flagsaver():
    for name in cli.flags.FLAGS:
      cli.flags.FLAGS[name].present = 0
    code = None
    try:
      cli.main(words)
    except SystemExit as stopped:
      code = stopped.code
    finally:
      signal.signal(signal.SIGINT, handler)
  assert not code, f'{shlex.join(words)}\n{code}'


@pytest.fixture
def short(place, monkeypatch, main_environment):
  """Does what a step says, in a short form: trains little, and in this process where it can."""
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(parallel, 'create_mesh', lambda **_: mesh)
  monkeypatch.setattr(cli.host_memory, 'keep_freed_memory', lambda: None)
  scope = {'__name__': '__main__'}

  def run(language, text):
    if language:
      text = re.sub(r'^(\w*(?:steps|epochs)) = \d+$', r'\1 = 2', text, flags=re.MULTILINE)
      exec(compile(text.replace('/tmp/', f'{place}/'), 'guide', 'exec'), scope)
      return
    for command in commands(text):
      if reason_not_to_run(command) or lacks_torch(command):
        continue
      words = small(in_a_clone(shlex.split(command, comments=True)))
      start = OURS.match(' '.join(words))
      if not start or mode_of(words) == 'compile' or re.search('[|>&;]', command):
        shell(command, place, XLA_FLAGS=main_environment['XLA_FLAGS'])
      else:
        words = words[len(start[0].split()) :]
        in_this_process(['crossattn', *(word.replace('/tmp/', f'{place}/') for word in words)])

  return run


@pytest.fixture
def in_full(place, monkeypatch):
  """Does what a step says, exactly so, and returns what it prints."""
  for name in ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR'):
    monkeypatch.delenv(name)
  with subprocess.Popen(
    [sys.executable, '-c', SESSION],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as session:

    def run(language, text):
      if not language:
        kept = [line for line in commands(text) if not reason_not_to_run(line)]
        return ''.join(shell(line, place) for line in kept)
      print(json.dumps(text.replace('/tmp/', f'{place}/')), file=session.stdin, flush=True)
      lines = []
      for line in session.stdout:
        if line == '\0\n':
          return ''.join(lines).replace(f'{place}/', '/tmp/')
        lines.append(line)
      raise AssertionError(f'{text}\n{"".join(lines)}')

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield run
    session.stdin.close()
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  print(f'{spent:.0f} s of processor time')
  assert spent <= MOST_SECONDS


def agrees(line, printed):
  """Whether a printed line is that of a page: '...' is anything, figures and times vary."""
  texts, figures = FIGURE.split(line), FIGURE.findall(line)
  pattern, compared = r'\s+'.join(map(re.escape, texts[0].split(' '))), []
  for figure, text in zip(figures, texts[1:], strict=True):
    pattern += r'.*?' if figure == '...' else rf'({FIGURE.pattern})'
    if figure != '...':
      compared.append(None if TIME.match(text) else float(figure))
    pattern += r'\s*'.join(map(re.escape, re.split(r'\s+', text)))
  found = re.fullmatch(pattern, printed)
  return bool(found) and all(
    x is None or abs(x - float(y)) <= max(SLACK * abs(x), SLACK)
    for x, y in zip(compared, found.groups(), strict=True)
  )


def missing(expected, printed):
  """The first line that a page says is printed and that is not, in the page's order; or None."""
  lines = iter([line.strip() for line in re.split(r'[\n\r]', printed)])
  for line in map(str.strip, expected.splitlines()):
    if line and line != '...' and not any(agrees(line, other) for other in lines):
      return line
  return None


def test_lines_agree_when_their_figures_are_near():
  assert agrees('step 40/40 loss 0.52, 3.1 s', 'step 40/40 loss 0.55, 9 s')
  assert not agrees('accuracy 0.97', 'accuracy 0.85')
  assert not agrees('accuracy 97 %', 'accuracy 85 %')
  assert agrees('3 classes: ... in all', "3 classes: 'a', 'b', 'c' in all")
  assert not agrees('saved', 'saved it')
  assert missing('one\n...\nthree', 'zero\none\ntwo\nthree\n') is None
  assert missing('three\none', 'one\nthree\n') == 'one'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_a_guide_is_short_and_has_pictures(page):
  text = page.read_text()
  assert len(text.splitlines()) <= 120
  pictures = [page.parent / name for name in PICTURE.findall(text)]
  # The first one shows what a reader will have.
  assert pictures
  assert text.index('![') < text.index('```')
  for path in pictures:
    assert path.stat().st_size <= 120 * 1024, path
    Image.open(path).verify()
  assert f']({page.name})' in (FOLDER / 'index.md').read_text()
  assert list(steps(page))


@pytest.mark.extended
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_a_guide_runs(page, short):
  for language, text, _ in steps(page):
    if not (language and lacks_torch(text)):
      short(language, text)


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_a_guide_prints_what_it_says(page, in_full):
  if lacks_torch(page.read_text()):
    pytest.skip('needs PyTorch (extra `torch`)')
  for language, text, expected in steps(page):
    printed = in_full(language, text)
    line = missing(expected or '', printed)
    assert line is None, f'{text}\ndoes not print\n{line}\nbut\n{printed}'
