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
from tests.docs.shrunk import SMALL, TRAINED, in_a_clone, mode_of, small

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'docs' / 'guides'
PAGES = sorted(path for path in FOLDER.glob('*.md') if path.stem != 'index')
# A language, none for a shell; the file to save it as, if any; and what is in the block.
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r'!\[[^]]*\]\(([^)]+)\)')
# What no tier runs, and why: the first that is found in the command.
NOT_RUN = {
  r'pip install|git clone': '.ci/run installs',
  r'\b[A-Z][A-Z_]{2,}\b': 'is a form to be filled in',
  r'gs://|--multihost|docs/launching': 'needs a cluster',
  r'weights=(?:timm|official)|tfds build': 'needs the network',
  r'crossattn compile .*imagenet': 'takes minutes; tests/training/test_compile.py does it',
  r'crossattn demo': 'serves until it is stopped; tests/training/test_demo.py opens such pages',
}
# Blocks that only the full form runs, and why.
LONG = {
  r'crossattn compare': 'README has one, which test_commands.py runs',
  r'--config=pyramid_digits': 'test_commands.py runs this config',
  r'--num_processes|/tmp/pod\b': 'tests/parallel/test_multihost.py starts such processes',
}
# Blocks that only the short form runs, and why.
ENDLESS = {
  r'icafusion_shapes|/tmp/pairs_run\b': 'trains for ten minutes of processor time',
  r'mit_rooms|/tmp/tags\b': 'the same',
  r'sketch_localizer_shapes|/tmp/sketches_run\b': 'trains for half an hour of processor time',
}
# What the short form replaces in Python.
SHORTER = {r'^(\w*(?:steps|epochs)) = \d+$': r'\1 = 2', r'(list_attentions\(\))': r'\1[:2]'}
NEEDS_TORCH = re.compile(r'crossattn compare|^import torch', re.MULTILINE)
OURS = re.compile(r'python (?:-m crossattn_jax\.parity|main\.py)|crossattn')
# Figures may differ by a tenth, or by 0.1 if that is more: other machines round differently, and
# what they train comes out differently. Times may be any.
SLACK = 0.1
FIGURE = re.compile(r'\.\.\.|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?')
TIME = re.compile(r' ?(?:s|ms|min|images/s|seconds|minutes)\b')
# Processor time of a page in full.
MOST_SECONDS = 400

# Runs blocks of Python, which go on from one another: each is a line of JSON.
SESSION = """
import json, sys
scope = {'__name__': '__main__'}
for line in sys.stdin:
  exec(compile(json.loads(line), 'guide', 'exec'), scope)
  print('\\0', flush=True)
"""


def steps(page):
  """What is done on a page: language, file, text, and what the page says that it prints."""
  blocks = BLOCK.findall(page.read_text())
  for (language, file, text), (following, _, printed) in zip(
    blocks, [*blocks[1:], ('', '', '')], strict=True
  ):
    if file or language in ('', 'python'):
      yield language, file, text, printed if following == 'text' else ''


def commands(text):
  """The commands of a shell's block."""
  lines = text.replace('\\\n', ' ').splitlines()
  return [line for line in lines if line.strip() and not line.startswith('#')]


def simple(command):
  """The words of a command, and what comes after them: a pipe, a file, another command."""
  reader = shlex.shlex(command, posix=True, punctuation_chars='|>&;')
  reader.whitespace_split = True
  words = list(reader)
  end = next((i for i, word in enumerate(words) if set(word) <= set('|>&;')), len(words))
  return words[:end], words[end:]


def reason_not_to_run(command, table=None):
  """Why no tier runs it; None for what some tier runs."""
  table = NOT_RUN if table is None else table
  return next((why for pattern, why in table.items() if re.search(pattern, command)), None)


def needs_torch(page):
  return bool(NEEDS_TORCH.search(page.read_text()))


class Place:
  """A person in a clone, with the command `crossattn`; a folder stands for /tmp and for home."""

  def __init__(self, folder, environment):
    self.folder = folder
    programs = folder / 'bin'
    programs.mkdir()
    program = programs / 'crossattn'
    program.write_text(f'#!{sys.executable}\nfrom crossattn_jax import cli\ncli.main()\n')
    program.chmod(0o755)
    # What keeps libtpu from looking for a TPU here would tell it where it compiles for.
    self.environment = {k: x for k, x in environment.items() if not k.startswith('TPU_')} | {
      'PATH': f'{programs}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin',
      'PYTHONPATH': str(ROOT),
      'HOME': str(folder),
      'MPLBACKEND': 'Agg',
    }
    self.scope, self.files, self.configs = {'__name__': '__main__'}, {}, set()

  def here(self, text):
    """A text of a page, with the folder for /tmp."""
    return text.replace('/tmp/', f'{self.folder}/')

  def there(self, text):
    """What was printed, with /tmp for the folder."""
    return text.replace(f'{self.folder}/', '/tmp/')

  def save(self, file, text):
    self.files[file] = text
    pathlib.Path(self.here(file)).write_text(self.here(text))

  def shell(self, command):
    """What a command prints, both streams as on a terminal."""
    result = subprocess.run(
      ['bash', '-euc', self.here(command)],
      cwd=ROOT,
      env=self.environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      timeout=3600,
      check=False,
    )
    assert result.returncode == 0, f'{command}\n{result.stdout}'
    return self.there(result.stdout)

  def in_this_process(self, words):
    """Runs the command `crossattn` without starting Python anew."""
    handler, code = signal.getsignal(signal.SIGINT), None
    with flagsaver.flagsaver():
      for name in cli.flags.FLAGS:
        cli.flags.FLAGS[name].present = 0
      try:
        cli.main(['crossattn', *map(self.here, words)])
      except SystemExit as stopped:
        code = stopped.code
      finally:
        signal.signal(signal.SIGINT, handler)
    assert not code, f'{shlex.join(words)}\n{code}'

  def run_short(self, language, text):
    """Runs a block that trains and compiles little; in this process where that does the same."""
    if reason_not_to_run(text, LONG):
      return
    if language:
      for pattern, short in SHORTER.items():
        text = re.sub(pattern, short, text, flags=re.MULTILINE)
      exec(compile(self.here(text), 'guide', 'exec'), self.scope)
      return
    for command in commands(text):
      # Runs of one config differ in what the full form compares.
      config = re.search(r'crossattn train --config=(\w+)', command)
      if reason_not_to_run(command) or (config and config[1] in self.configs):
        continue
      self.configs |= {config[1]} if config else set()
      words, rest = simple(command)
      own_file = re.search(r'--config=(/tmp/\S+)', command)
      words = in_a_clone(words)
      if own_file:
        names = re.findall(r'from configs import (\w+)', self.files[own_file[1]])
        words += [*TRAINED, *(x for name in names for x in SMALL.get(name.partition('_')[0], []))]
      else:
        words = small(words)
      start = OURS.match(' '.join(words))
      if not start:
        self.shell(command)
      elif own_file or mode_of(words) == 'compile' or rest[:1] not in ([], ['|']):
        self.shell(' '.join([shlex.join(words), *rest]))
      else:
        self.in_this_process(words[len(start[0].split()) :])

  def run(self, text):
    """What a shell's block prints, as it is written."""
    return ''.join(self.shell(line) for line in commands(text) if not reason_not_to_run(line))

  def run_python(self, session, text):
    """What a block of Python prints in a session."""
    print(json.dumps(self.here(text)), file=session.stdin, flush=True)
    lines = []
    for line in session.stdout:
      if line == '\0\n':
        return self.there(''.join(lines))
      lines.append(line)
    raise AssertionError(f'{text}\n{"".join(lines)}')


def agrees(line, printed):
  """Whether a printed line is that of a page: '...' is anything, figures and times vary."""
  texts, figures = FIGURE.split(line), FIGURE.findall(line)
  pattern, compared = _pattern(texts[0]), []
  for figure, text in zip(figures, texts[1:], strict=True):
    pattern += ('.*?' if figure == '...' else f'({FIGURE.pattern})') + _pattern(text)
    if figure != '...':
      compared.append(None if TIME.match(text) else float(figure))
  found = re.fullmatch(pattern, printed)
  return bool(found) and all(
    x is None or abs(x - float(y)) <= max(SLACK * abs(x), SLACK)
    for x, y in zip(compared, found.groups(), strict=True)
  )


def _pattern(text):
  return r'\s*'.join(map(re.escape, re.split(r'\s+', text)))


def missing(expected, printed):
  """The first line that a page says is printed and that is not, in the page's order; or None."""
  lines = iter([line.strip() for line in re.split(r'[\n\r]', printed)])
  for line in map(str.strip, expected.splitlines()):
    if line and line != '...' and not any(agrees(line, other) for other in lines):
      return line
  return None


def test_lines_agree_when_their_figures_are_near():
  assert agrees('step 40/40  loss 0.52, 3.1 s', 'step 40/40 loss 0.55, 9 s')
  assert not agrees('accuracy 0.97', 'accuracy 0.85')
  assert not agrees('accuracy 97 %', 'accuracy 85 %')
  assert agrees('3 classes: ... in all', "3 classes: 'a', 'b', 'c' in all")
  assert not agrees('saved', 'saved it')
  assert missing('one\n...\nthree', 'zero\none\ntwo\nthree\n') is None
  assert missing('three\none', 'one\nthree\n') == 'one'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_a_guide_is_short_and_shows_first_what_a_reader_will_have(page):
  text = page.read_text()
  assert len(text.splitlines()) <= 120
  pictures = [page.parent / name for name in PICTURE.findall(text)]
  assert pictures
  assert text.index('![') < text.index('```')
  for path in pictures:
    assert path.stat().st_size <= 120 * 1024, path
    Image.open(path).verify()
  assert f']({page.name})' in (FOLDER / 'index.md').read_text()
  assert list(steps(page))


def marked(page):
  """A page, with the tier of its short form and with what it needs."""
  marks = [pytest.mark.torch if needs_torch(page) else pytest.mark.extended]
  marks += [pytest.mark.tpu_aot] if 'crossattn compile' in page.read_text() else []
  return pytest.param(page, id=page.stem, marks=marks)


@pytest.mark.parametrize('page', [marked(page) for page in PAGES])
def test_a_guide_runs(page, tmp_path, main_environment, monkeypatch):
  mesh = parallel.create_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(parallel, 'create_mesh', lambda **_: mesh)
  monkeypatch.setattr(cli.host_memory, 'keep_freed_memory', lambda: None)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('MPLBACKEND', 'Agg')
  monkeypatch.chdir(ROOT)
  place = Place(tmp_path, main_environment)
  for language, file, text, _ in steps(page):
    if file:
      place.save(file, text)
    else:
      place.run_short(language, text)


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_a_guide_prints_what_it_says(page, tmp_path):
  if needs_torch(page):
    pytest.importorskip('torch')
  tests_own = (
    'XLA_FLAGS',
    'JAX_COMPILATION_CACHE_DIR',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
  )
  place = Place(tmp_path, {k: x for k, x in os.environ.items() if k not in tests_own})
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  with subprocess.Popen(
    [sys.executable, '-c', SESSION],
    cwd=ROOT,
    env=place.environment,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as session:
    for language, file, text, expected in steps(page):
      if file:
        place.save(file, text)
        continue
      if reason_not_to_run(text, ENDLESS):
        continue
      printed = place.run_python(session, text) if language else place.run(text)
      print(text, printed, sep='\n')
      line = missing(expected, printed)
      assert line is None, f'{text}\ndoes not print\n{line}\nbut\n{printed}'
    session.stdin.close()
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  print(f'{page.stem}: {spent:.0f} s of processor time')
  assert spent <= MOST_SECONDS
