"""The processes of a run look after each other: where one ends, the others hear of it at once.

Collectives wait for all processes. Without this, those that are left wait for a process that is
gone until jax's heartbeat misses it, minutes later, and then abort without saying which it was.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import socket
import threading

from absl import logging
import jax

from crossattn_jax.parallel import multihost

# A machine that vanished answers nothing: after ten quiet seconds it is asked thrice, five apart.
_KEEP_ALIVE = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 3}
_CONNECT_SECONDS = 10
# Sends no packet: the system only chooses by which of its addresses it would go there.
_SOMEWHERE = ('192.0.2.1', 9)


@contextlib.contextmanager
def watch(on_lost: Callable[[str], None]) -> Iterator[None]:
  """Watches the other processes of the run while the body runs; of one process there are none.

  Each process holds a connection to process 0, which tells the others whose breaks. The system
  closes it in the moment in which a process dies; a machine that is cut off is missed after 25
  seconds. A body that ends with an exception says so to all.

  Args:
    on_lost: is called from a thread, once, with who was lost and why, such as 'process 3 on host-b
      ended with an error: ...'. It must end this process, which would wait forever.
  """
  if jax.process_count() == 1:
    yield
    return
  peers = _Peers(on_lost)
  try:
    yield
  except BaseException as error:
    # An exit with status 0 is an end that all processes agreed on.
    agreed = isinstance(error, SystemExit) and not error.code
    peers.leave(None if agreed else f'{type(error).__name__}: {error}')
    raise
  peers.leave()


class _Peers:
  """The connections of this process: with process 0, those of process 0 with all others."""

  def __init__(self, on_lost: Callable[[str], None]):
    self._on_lost = on_lost
    self._name = f'process {jax.process_index()} on {socket.gethostname()}'
    # Whether this process ends already, when nothing that others do matters to it.
    self._ending = False
    self._lock = threading.Lock()
    self._links = _connect()
    for link in self._links:
      link.send(name=self._name)
      threading.Thread(target=self._listen, args=(link,), daemon=True).start()

  def leave(self, error: str | None = None) -> None:
    """Tells the others that this process ends, in peace or because of an error."""
    with self._lock:
      self._ending = True
    what = None if error is None else f'{self._name} ended with an error: {error}'
    for link in self._links:
      link.send(lost=what)

  def _listen(self, link: '_Link') -> None:
    """Waits for what a process says, or for its end."""
    name = (link.receive() or {}).get('name', 'a process that was just starting')
    message = link.receive()
    if message is None:
      self._lose(f'{name} is gone: it was killed, or its machine is cut off')
    elif message['lost'] is not None:
      self._lose(message['lost'])

  def _lose(self, what: str) -> None:
    with self._lock:
      if self._ending:
        return
      self._ending = True
    if jax.process_index() == 0:
      for link in self._links:
        link.send(lost=what)
    self._on_lost(what)


class _Link:
  """A connection on which both ends send lines of JSON."""

  def __init__(self, connection: socket.socket):
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
      if hasattr(socket, name):  # macOS has fewer.
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    self._connection = connection
    self._lines = connection.makefile('r', encoding='utf-8')

  def send(self, **message: str | None) -> None:
    """Sends a message; to one who is gone, nothing."""
    with contextlib.suppress(OSError):
      self._connection.sendall((json.dumps(message) + '\n').encode())

  def receive(self) -> dict[str, str | None] | None:
    """Returns the next message, or None when the other end is gone."""
    with contextlib.suppress(OSError, ValueError):
      return json.loads(self._lines.readline())
    return None


def _connect() -> list[_Link]:
  """Connects every process with process 0; collective. Those that cannot are not watched."""
  count = jax.process_count()
  if jax.process_index() == 0:
    with socket.create_server(('', 0), backlog=count) as server:
      multihost.gather_texts(f'{_own_address()}:{server.getsockname()[1]}')
      failed = [text for text in multihost.gather_texts('') if text]
      if failed:
        logging.warning(
          'a lost process will be noticed by its heartbeat only, after minutes: %d processes '
          'cannot reach process 0 (%s)',
          len(failed),
          failed[0],
        )
      return [_Link(server.accept()[0]) for _ in range(count - 1 - len(failed))]
  host, port = multihost.gather_texts('')[0].rsplit(':', 1)
  try:
    links = [_Link(socket.create_connection((host, int(port)), _CONNECT_SECONDS))]
    multihost.gather_texts('')
  except OSError as error:
    links = []
    multihost.gather_texts(f'{host}:{port}: {error}')
  return links


def _own_address() -> str:
  """The address under which other machines reach this one."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(_SOMEWHERE)
      return probe.getsockname()[0]
    except OSError:  # There is no network.
      return '127.0.0.1'
