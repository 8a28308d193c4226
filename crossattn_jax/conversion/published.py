"""Where weights are published, and how they get here: downloaded once, resumed."""

import contextlib
import errno
import fcntl
import http.client
import os
import pathlib
import time
import urllib.error
import urllib.request

CACHE_VARIABLE = 'CROSSATTN_JAX_CACHE'

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30
# Attempts in a row that bring nothing new before a download is given up.
_ATTEMPTS = 4
_WAIT_SECONDS = 1.0


class DownloadError(OSError):
  """A file could not be downloaded or is not what it should be; says what to do."""


# Our name and timm's: the name of the official release file.
_CROSSVIT_OFFICIAL = {
  'crossvit_tiny_240': 'crossvit_tiny_224',
  'crossvit_small_240': 'crossvit_small_224',
  'crossvit_base_240': 'crossvit_base_224',
  'crossvit_9_240': 'crossvit_9_224',
  'crossvit_9_dagger_240': 'crossvit_9_dagger_224',
  'crossvit_15_240': 'crossvit_15_224',
  'crossvit_15_dagger_240': 'crossvit_15_dagger_224',
  'crossvit_15_dagger_408': 'crossvit_15_dagger_384',
  'crossvit_18_240': 'crossvit_18_224',
  'crossvit_18_dagger_240': 'crossvit_18_dagger_224',
  'crossvit_18_dagger_408': 'crossvit_18_dagger_384',
}
_CROSSVIT_RELEASE = 'https://github.com/IBM/CrossViT/releases/download/weights-0.1'
_TIMM_HUB = 'https://huggingface.co/timm'

# source -> registered name -> address
SOURCES: dict[str, dict[str, str]] = {'official': {}, 'timm': {}, 'transformers': {}}
for _name, _official in _CROSSVIT_OFFICIAL.items():
  for _alias in (_name, _official):
    SOURCES['official'][_alias] = f'{_CROSSVIT_RELEASE}/{_official}.pth'
    SOURCES['timm'][_alias] = f'{_TIMM_HUB}/{_name}.in1k/resolve/main/model.safetensors'
for _variant in ('xs', 's', 'l1', 'l3'):
  SOURCES['timm'][f'swiftformer_{_variant}'] = (
    f'{_TIMM_HUB}/swiftformer_{_variant}.dist_in1k/resolve/main/model.safetensors'
  )
  SOURCES['transformers'][f'swiftformer_{_variant}'] = (
    f'https://huggingface.co/MBZUAI/swiftformer-{_variant}/resolve/main/pytorch_model.bin'
  )
SOURCES['transformers']['bert_base_uncased'] = (
  'https://huggingface.co/google-bert/bert-base-uncased/resolve/main/model.safetensors'
)
SOURCES['official']['regnety_160'] = 'https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth'
SOURCES['timm']['regnety_160'] = f'{_TIMM_HUB}/regnety_160.deit_in1k/resolve/main/model.safetensors'
for _depth in (50, 101):
  SOURCES['timm'][f'resnetv2_{_depth}'] = (
    f'{_TIMM_HUB}/resnetv2_{_depth}.a1h_in1k/resolve/main/model.safetensors'
  )
SOURCES['official']['atfuse'] = (
  'https://raw.githubusercontent.com/songlei-xiong/ATFuse/'
  '1fd64810843ae872ab4998105e2fd3b2b1deafb4/model/best_ckp.pth'
)

# Published where only a browser gets them: registered name -> file and the page that links it.
_BY_HAND = {
  name: (f'{name}_in1k.pth', 'https://github.com/rayleizhu/BiFormer')
  for name in (
    'biformer_tiny',
    'biformer_small',
    'biformer_base',
    'biformer_stl',
    'biformer_stl_nchw',
  )
} | {
  f'swiftformer_{variant.lower()}': (
    f'SwiftFormer_{variant}_ckpt.pth',
    'https://github.com/Amshaker/SwiftFormer',
  )
  for variant in ('XS', 'S', 'L1', 'L3')
}
# MIT's second stage.
_BY_HAND['minkunet18a'] = (
  'iccv_mink18_interlace',
  'https://drive.google.com/file/d/1bFiXViR0Pah7dK_Sa7Kw_2-mPB04oxRk/view',
)
_CROSSFORMER_DRIVE = {
  'crossformer_tiny': ('crossformer-t.pth', '1YSkU9enn-ITyrbxLH13zNcBYvWSEidfq'),
  'crossformer_small': ('crossformer-s.pth', '1RAkigsgr33va0RZ85S2Shs2BhXYcS6U8'),
  'crossformer_base': ('crossformer-b.pth', '1bK8biVCi17nz_nkt7rBfio_kywUpllSU'),
  'crossformer_large': ('crossformer-l.pth', '1zRWByVW_KIZ87NgaBkDIm60DAsGJErdG'),
}
_BY_HAND |= {
  name: (file, f'https://drive.google.com/file/d/{drive_id}/view')
  for name, (file, drive_id) in _CROSSFORMER_DRIVE.items()
}
_BY_HAND |= {
  f'crossformer_pp_{size}': (
    f'the file of CrossFormer++-{size[0].upper()}',
    'https://github.com/cheerss/CrossFormer',
  )
  for size in ('small', 'base', 'large', 'huge')
}


def default_cache_dir() -> pathlib.Path:
  """Returns $CROSSATTN_JAX_CACHE, or crossattn_jax in the user's cache folder."""
  if CACHE_VARIABLE in os.environ:
    return pathlib.Path(os.environ[CACHE_VARIABLE])
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'crossattn_jax'


def where(name: str) -> dict[str, str]:
  """Where weights of a model are published.

  Returns:
    Addresses by source, as `fetch` takes it; as 'by hand' the page of what only a browser gets.
  """
  found = {source: files[name] for source, files in SOURCES.items() if name in files}
  return found | ({'by hand': _BY_HAND[name][1]} if name in _BY_HAND else {})


def fetch(name: str, source: str, cache: pathlib.Path) -> pathlib.Path:
  """Downloads the weights that `source` publishes for the model `name`, if they are not here.

  Args:
    name: of the model.
    source: one of `SOURCES`.
    cache: folder of downloads.

  Returns:
    The file.

  Raises:
    ValueError: the source has none for this model, or only a browser gets them.
    DownloadError: the file cannot be had; says which file to put where.
  """
  if source == 'official' and name in _BY_HAND:
    file, page = _BY_HAND[name]
    raise ValueError(
      f'the official weights of {name!r} are behind links that only a browser can follow: get '
      f'{file} from {page} and pass its path as source'
    )
  if name not in SOURCES[source]:
    others = [repr(other) for other in SOURCES if name in SOURCES[other]]
    hint = f'there are: {", ".join(SOURCES[source])}'
    if others:
      hint = f'{" and ".join(others)} has some'
    raise ValueError(f'no {source} weights are published for {name!r}; {hint}')
  url = SOURCES[source][name]
  # Hugging Face's files are all named alike.
  file_name = '-'.join(url.split('/')[-4:]) if 'resolve' in url else url.split('/')[-1]
  path = cache / 'downloads' / file_name
  download(url, path)
  return path


def download(url: str, path: pathlib.Path) -> None:
  """Downloads a file, resuming what an earlier attempt left; does nothing where it exists.

  It grows as `NAME.part` and gets its name when it is complete.

  Raises:
    DownloadError: no connection, no such file, or no space.
  """
  if path.exists():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.part')
  with _locked(path.with_name(f'{path.name}.lock')):
    if path.exists():
      return
    try:
      _receive_all(url, part, path)
    except OSError as error:
      if error.errno == errno.ENOSPC:
        raise DownloadError(
          errno.ENOSPC,
          f'no space left for {path}; free some, or set {CACHE_VARIABLE}. What arrived is kept in '
          f'{part.name} and continued',
        ) from error
      raise
    os.replace(part, path)


@contextlib.contextmanager
def _locked(path: pathlib.Path):
  """Keeps processes from downloading the same file at once."""
  with open(path, 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _receive_all(url: str, part: pathlib.Path, path: pathlib.Path) -> None:
  left = _ATTEMPTS
  while True:
    before = part.stat().st_size if part.exists() else 0
    try:
      if _receive(url, part):
        return
      problem = 'the connection was cut'
    except urllib.error.HTTPError as error:
      if error.code < 500:
        raise DownloadError(
          f'{url}: the server says {error.code} {error.reason}; get the file elsewhere '
          f'and put it at {path}'
        ) from error
      problem = f'the server says {error.code} {error.reason}'
    except (
      urllib.error.URLError,
      http.client.HTTPException,
      ConnectionError,
      TimeoutError,
    ) as error:
      problem = str(getattr(error, 'reason', error))
    arrived = part.stat().st_size if part.exists() else 0
    left = _ATTEMPTS if arrived > before else left - 1
    if left == 0:
      raise DownloadError(
        f'cannot download {url}: {problem}. Without a connection, download it elsewhere '
        f'and put it at {path}; {arrived} bytes have arrived and will be continued'
      )
    time.sleep(_WAIT_SECONDS)


def _receive(url: str, part: pathlib.Path) -> bool:
  """Appends to `part` what the server sends; returns whether the file is complete."""
  have = part.stat().st_size if part.exists() else 0
  tag_file = part.with_name(f'{part.name}.etag')
  request = urllib.request.Request(url, headers={'User-Agent': 'crossattn_jax'})
  if have:
    request.add_header('Range', f'bytes={have}-')
    if tag_file.exists():
      request.add_header('If-Range', tag_file.read_text())
  try:
    response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
  except urllib.error.HTTPError as error:
    if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
      raise
    # What is here does not belong to what is there: start over.
    part.unlink()
    return False
  with response:
    resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
    start = have if resumed else 0
    expected = response.headers.get('Content-Length')
    tag = response.headers.get('ETag', '')
    # Only strong tags say that the bytes are the same.
    if tag and not tag.startswith('W/'):
      tag_file.write_text(tag)
    else:
      tag_file.unlink(missing_ok=True)
    with open(part, 'ab' if resumed else 'wb') as file:
      while chunk := response.read(_CHUNK):
        file.write(chunk)
    arrived = part.stat().st_size - start
  complete = expected is None or arrived == int(expected)
  if complete:
    tag_file.unlink(missing_ok=True)
  return complete
