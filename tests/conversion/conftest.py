"""A small model, a checkpoint of it, and a server on loopback that misbehaves on demand."""

import http.server
import re
import threading

import numpy as np
import pytest
import safetensors.numpy

from crossattn_jax.conversion import correspondence, published
from crossattn_jax.models import registry

NAME = 'crossvit_tiny_240'
SMALL = {'widths': (8, 16), 'num_heads': (2, 2), 'depths': ((1, 1, 0),), 'image_size': (48, 48)}


class Server:
  """Serves `content` at every path.

  Attributes:
    content: the file.
    cut_after: bytes after which the connection is dropped; None never.
    status: answered in place of the file, unless None.
    ranges: whether byte ranges are honoured.
    tag: the file's ETag.
    requests: the Range header of each request.
  """

  def __init__(self, content):
    self.content, self.cut_after, self.status = content, None, None
    self.ranges, self.tag, self.requests = True, '"one"', []
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        wanted = self.headers.get('Range')
        server.requests.append(wanted)
        if server.status is not None:
          self.send_error(server.status)
          return
        start = 0
        same = self.headers.get('If-Range', server.tag) == server.tag
        if wanted and server.ranges and same:
          start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
          if start >= len(server.content):
            self.send_error(416)
            return
          self.send_response(206)
        else:
          self.send_response(200)
        body = server.content[start:]
        self.send_header('Content-Length', str(len(body)))
        self.send_header('ETag', server.tag)
        self.end_headers()
        self.wfile.write(body if server.cut_after is None else body[: server.cut_after])

      def log_message(self, *args):
        pass

    self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self.http.server_port}/model.safetensors'
    threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture(scope='module')
def state():
  converter, _ = correspondence.model_mapping(NAME, registry.create_model(NAME, **SMALL))
  random = np.random.default_rng(0)
  return {
    entry.torch_key: random.normal(size=entry.torch_shape).astype(np.float32)
    for entry in converter.entries
  }


@pytest.fixture
def server(state, monkeypatch):
  # Proxies of the environment must not see these requests.
  monkeypatch.setenv('no_proxy', '*')
  monkeypatch.setattr(published, '_WAIT_SECONDS', 0.01)
  server = Server(safetensors.numpy.save(state))
  monkeypatch.setitem(published.SOURCES['timm'], NAME, server.url)
  yield server
  server.http.shutdown()
  server.http.server_close()


@pytest.fixture
def small_model(monkeypatch):
  """Makes the registered model small, so that its checkpoint is."""
  create = registry.create_model
  monkeypatch.setattr(registry, 'create_model', lambda name, **kw: create(name, **{**SMALL, **kw}))
