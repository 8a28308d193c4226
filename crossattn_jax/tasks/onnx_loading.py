"""Loads the ONNX program of an exported model. A copy of this file is beside it."""


def load(path):
  """Returns the program as a function: arrays by name -> arrays by name."""
  import onnxruntime

  session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
  names = [output.name for output in session.get_outputs()]
  return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))
