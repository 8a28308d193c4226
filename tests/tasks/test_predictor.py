"""Predicting for files: which, in which batches, and what is left when something goes wrong."""

import dataclasses
import json
import logging
import types

from etils import epath
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from crossattn_jax.tasks import predictor


@dataclasses.dataclass
class Sample:
  name: str


class Mean(predictor.FilePredictor):
  """Says how bright a file is."""

  batch_size = 4

  def __init__(self):
    super().__init__(types.SimpleNamespace(config=_Config()), {})
    self.batches = []

  def load(self, source):
    return predictor.Loaded({'image': np.asarray(Image.open(source.paths[0]))}, source.name)

  def predict(self, variables, batch):
    self.batches.append(batch['image'].shape)
    return {'mean': jnp.mean(batch['image'], axis=(1, 2))}

  def record(self, shown, result, files):
    return {'mean': float(result['mean'])}

  def sample(self, shown, result):
    return Sample(shown)

  evaluation_sample = sample

  def draw(self, path, sample):
    path.write_text(sample.name)

  def draw_sheet(self, path, samples):
    path.write_text('\n'.join(sample.name for sample in samples))


class Looks(Mean):
  """Says which place looks."""

  predict = staticmethod(lambda variables, batch: {'place': batch.get('place', 0)})


def test_a_place_that_is_let_look_is_in_the_batch():
  looks, batch = Looks(), {'image': np.zeros((3, 2, 2), np.uint8)}
  looks.task.model = types.SimpleNamespace()
  assert looks.num_places == 0
  looks.task.model.attention_queries = None
  assert looks.num_places == 64
  assert looks.outputs(batch)['place'] == 0
  looks.looking = 11  # The third one of the second row.
  np.testing.assert_array_equal(looks.outputs(batch)['place'], [[1.5 / 8, 2.5 / 8]] * 3)


class _Config:
  dataset = types.SimpleNamespace(num_threads=2)
  evaluation = types.SimpleNamespace(batch_size=None)


def write(folder, levels, size=(2, 2)):
  for name, level in levels.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', size, level).save(folder / name)


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path / 'photos')


@pytest.fixture
def output(tmp_path):
  return epath.Path(tmp_path / 'output')


def means(records, folder):
  return {str(epath.Path(x['input']).relative_to(folder)): x['mean'] for x in records}


def test_folders_are_walked_in_batches_of_one_size_and_order_is_kept(folder, output):
  levels = {f'{"ab"[i % 2]}/{i:02}.png': i for i in range(11)}
  write(folder, levels)
  mean, streamed = Mean(), []
  records = mean.write_predictions(folder, output, 'none', streamed.append)
  assert means(records, folder) == levels
  assert [x['input'] for x in records] == sorted(x['input'] for x in records)
  assert records == streamed == json.loads((output / 'predictions.json').read_text())
  assert mean.batches == [(4, 2, 2)]  # One program.


def test_inputs_of_other_shapes_have_batches_of_their_own(folder, output):
  write(folder, {'a.png': 1, 'b.png': 2})
  write(folder, {'c.png': 3}, (3, 2))
  write(folder, {'d.png': 4})
  records = Mean().write_predictions(folder, output, 'none')
  assert [x['mean'] for x in records] == [1, 2, 3, 4]


def test_what_is_no_image_or_unreadable_is_left_out_and_counted(folder, output, caplog):
  write(folder, {'a/1.png': 10, 'b/1.png': 20, '.ipynb_checkpoints/1-checkpoint.png': 30})
  (folder / 'a' / '2.png').write_bytes(b'')
  (folder / 'a' / '._1.png').write_bytes(b'\0\5\26\7')
  (folder / 'a' / 'notes.txt').touch()
  with caplog.at_level(logging.WARNING):
    records = Mean().write_predictions(folder, output)
  assert means(records, folder) == {'a/1.png': 10, 'b/1.png': 20}
  assert f'left out {folder / "a" / "2.png"}: cannot identify image file' in caplog.text
  assert 'left out: 1 .txt, 1 unreadable' in caplog.text


def test_a_single_input_or_all_that_cannot_be_read_is_an_error(folder, output):
  folder.mkdir()
  (folder / 'a.png').write_bytes(b'no image')
  with pytest.raises(OSError, match=r'cannot identify image file .*a\.png'):
    Mean().write_predictions(folder / 'a.png', output)
  (folder / 'b.png').write_bytes(b'no image')
  with pytest.raises(ValueError, match=r'none of 2 files can be read; cannot .*a\.png'):
    Mean().write_predictions(folder, output)
  assert json.loads((output / 'predictions.json').read_text()) == []


def test_an_empty_folder_is_named_with_what_it_has(folder, output):
  folder.mkdir()
  (folder / 'notes.txt').touch()
  (folder / 'LICENSE').touch()
  with pytest.raises(
    FileNotFoundError, match=r'photos: expected .*none .* but 1 without extension, 1 \.txt$'
  ):
    Mean().write_predictions(folder, output)
  assert not output.exists()


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_what_there_is_is_written_when_something_stops_it(folder, output, error):
  write(folder, {f'{i}.png': i for i in range(6)})

  def stop(record):
    if record['mean'] == 3:
      raise error

  with pytest.raises(error):
    Mean().write_predictions(folder, output, on_record=stop)
  assert [x['mean'] for x in json.loads((output / 'predictions.json').read_text())] == [0, 1, 2, 3]


def test_pictures_have_names_of_their_own_and_results_are_no_inputs(folder):
  write(folder, {'a.png': 1, 'a.jpg': 2, 'A.bmp': 3, 'b/a.png': 4, 'predictions.png': 5})
  output = folder / 'results'
  for _ in range(2):  # The second time there are results.
    records = Mean().write_predictions(folder, output)
    pictures = [str(epath.Path(x['picture']).relative_to(output)) for x in records]
    assert pictures == ['A.png', 'a_2.png', 'a_3.png', 'predictions_2.png', 'b/a.png']
    assert [epath.Path(x['picture']).read_text() for x in records] == [
      'A', 'a', 'a', 'predictions', 'b/a'
    ]  # fmt: skip


def test_an_input_is_never_overwritten(folder):
  write(folder, {'a.png': 1})
  with pytest.raises(ValueError, match=r'a\.png is an input there.*another folder'):
    Mean().write_predictions(folder, folder)
  assert np.asarray(Image.open(folder / 'a.png'))[0, 0] == 1
  assert Mean().write_predictions(folder, folder, 'none')[0]['mean'] == 1


def test_an_unknown_kind_of_pictures_is_refused(folder, output):
  with pytest.raises(ValueError, match="pictures='all' is not one of none, sheet, each"):
    Mean().write_predictions(folder, output, 'all')


def test_many_inputs_have_a_sheet_of_some(folder, output):
  count = predictor.MOST_PICTURES + 8
  write(folder, {f'{i:02}.png': i for i in range(count)})
  records = Mean().write_predictions(folder, output)
  assert len(records) == count
  assert not any('picture' in record for record in records)
  shown = (output / 'predictions.png').read_text().split('\n')
  assert (len(shown), shown[0], shown[-1]) == (predictor.MOST_PICTURES, '00', f'{count - 1}')
  assert sorted(path.name for path in output.iterdir()) == ['predictions.json', 'predictions.png']
