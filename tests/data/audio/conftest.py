import numpy as np
import pytest
from scipy.io import wavfile


@pytest.fixture
def folder(tmp_path):
  """Two training clips and one to evaluate, at other rates and widths than the pipeline's."""
  time = np.arange(8000) / 8000
  low = np.round(20000 * np.sin(2 * np.pi * 300 * time)).astype(np.int16)
  high = np.sin(2 * np.pi * 2000 * time).astype(np.float32)
  wavfile.write(tmp_path / 'low.wav', 8000, low)
  wavfile.write(tmp_path / 'high.wav', 8000, np.stack([high, high], axis=1))
  (tmp_path / 'train.csv').write_text('file,labels\nlow.wav,hum\nhigh.wav,"whistle,beep"\n')
  (tmp_path / 'eval.csv').write_text('file,labels\nhigh.wav,whistle\n')
  return tmp_path
