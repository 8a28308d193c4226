"""Loads an exported model. Exported models take this file with them."""

import json


def load(folder):
  """Returns the description of the model in a folder, and it: arrays by name -> arrays by name."""
  spec = json.loads((folder / 'preprocessing.json').read_text())
  if list(spec['programs']) == ['onnx']:
    return spec, _load_onnx(folder / spec['programs']['onnx'])
  import jax
  from jax import export
  from safetensors.numpy import load_file

  platform = {'gpu': 'cuda'}.get(jax.default_backend(), jax.default_backend())
  program = jax.jit(export.deserialize((folder / spec['programs'][platform]).read_bytes()).call)
  weights = jax.device_put(load_file(folder / spec['weights']))
  return spec, lambda inputs: program(weights, inputs)


def _load_onnx(path):
  import onnxruntime

  session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
  names = [output.name for output in session.get_outputs()]
  return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))
