from etils import epath
import numpy as np
from PIL import Image

from crossattn_jax.tasks.retrieval import pictures


def test_attention_is_drawn_where_the_image_is_not_at_hand(tmp_path):
  rng = np.random.default_rng(0)
  attention = pictures.PairAttention(rng.random((36, 4)), rng.random((4, 36)))
  item = pictures.Item('391895')
  path = epath.Path(tmp_path / 'attention.png')
  pictures.attention_picture(path, item, ('[CLS]', 'a', 'dog', '[SEP]'), attention)
  assert Image.open(path).width > 1000
