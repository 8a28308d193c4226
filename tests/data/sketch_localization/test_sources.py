import pickle

import numpy as np
import pytest

from crossattn_jax.data.sketch_localization import classes, sources

DOG, HOT_DOG, CAT = range(3)
# Of `PHOTOS`: number of the photo, and what can be asked for there.
CHOICES = {0: [CAT], 1: [DOG, CAT], 2: [DOG, HOT_DOG], 5: [HOT_DOG]}


@pytest.fixture
def opened(coco_config):
  sources.complete(coco_config)

  def open_split(split='eval', **changes):
    coco_config.update(changes)
    return sources.open_source(coco_config, coco_config[f'{split}_split'])

  return open_split


def test_training_asks_for_seen_categories_alone(opened):
  source = opened('train')
  assert source.photo.tolist() == [0, 1, 2]
  assert [source.choices(index).tolist() for index in range(3)] == [[CAT], [DOG, CAT], [DOG]]
  assert source.num_objects.tolist() == [2, 2, 2]
  for index in range(3):
    assert source.category(index) in source.choices(index)
    assert HOT_DOG not in source.all_annotations(index).labels
  assert [source.seen.tolist(), source.categories] == [[1, 0, 1], ('dog', 'hot dog', 'cat')]


def test_evaluation_asks_for_one_category_of_each_photo(opened):
  source = opened()
  assert source.photo.tolist() == list(CHOICES)
  assert source.image_ids == (10, 11, 12, 15)
  assert {index: source.choices(index).tolist() for index in range(4)} == dict(
    enumerate(CHOICES.values())
  )
  categories = [source.category(index) for index in range(4)]
  assert all(category in source.choices(index) for index, category in enumerate(categories))
  again = pickle.loads(pickle.dumps(source))
  assert [again.category(index) for index in range(4)] == categories


def test_what_is_asked_for_depends_on_the_photo_alone(opened):
  source = opened()
  for index, (photo, choices) in enumerate(CHOICES.items()):
    category = np.random.default_rng((14, photo)).choice(choices)
    assert source.category(index) == category
    most = source.sketches.counts[category]
    numbers = np.random.default_rng((14, photo, category)).integers(most, size=5)
    assert source.sketch_numbers(index, 5).tolist() == numbers.tolist()


def test_evaluation_may_ask_for_all_categories(opened, coco_config):
  coco_config.evaluation.queries = 'all'
  source = opened()
  pairs = [(photo, category) for photo, own in CHOICES.items() for category in own]
  assert [(photo, source.category(k)) for k, photo in enumerate(source.photo.tolist())] == pairs
  assert source.image_ids == (10, 11, 11, 12, 12, 15)
  assert len(opened('train')) == 3


def test_truths_are_the_objects_that_are_asked_for(opened, coco_config):
  coco_config.evaluation.queries = 'all'
  source = opened()
  objects = source.annotations(3)  # Dogs of photo 2.
  np.testing.assert_array_equal(objects.boxes, [[40, 30, 60, 50], [0, 30, 10, 40]])
  assert objects.labels.tolist() == [0, 0]
  assert (objects.size, objects.area.tolist()) == ((60, 80), [400, 100])
  assert source.all_annotations(3).labels.tolist() == [HOT_DOG, DOG, DOG]
  assert (source.class_names, source.category_ids) == (('match',), (1,))


def test_crowds_and_empty_boxes_are_never_asked_for(opened):
  assert 4 not in opened().photo


def test_drawings_that_are_asked_with_are_never_learnt(opened):
  learnt, asked = opened('train').sketches, opened().sketches
  for label in range(3):
    keys = [
      {source.key(label, number) for number in range(source.counts[label])}
      for source in (learnt, asked)
    ]
    assert not keys[0] & keys[1]


def test_classes_are_those_that_photos_and_drawings_share(coco_config):
  coco_config.class_names, coco_config.unseen_classes = (), None
  notes = sources.complete(coco_config)
  assert coco_config.class_names == ('cat', 'dog', 'hot dog')
  assert coco_config.category_ids == (1, 3, 4)
  assert coco_config.unseen_classes == ()
  assert (coco_config.train_split, coco_config.eval_split) == ('train', 'val')
  assert "left out, as there are no drawings of them: 'person'" in notes


def test_photos_and_drawings_without_a_class_in_common_are_refused(coco_config, quickdraw_dir):
  for path in quickdraw_dir.iterdir():
    path.rename(path.with_name(f'x{path.name}'))
  coco_config.class_names, coco_config.unseen_classes = (), None
  with pytest.raises(ValueError, match=r"share no class: photos show 'cat'.*drawings 'xcat'"):
    sources.complete(coco_config)


def test_something_must_be_learnt(opened, quickdraw_dir):
  with pytest.raises(ValueError, match=r'unseen_classes are all of dataset.class_names'):
    opened('train', unseen_classes=('dog', 'hot dog', 'cat'))
  (quickdraw_dir / 'dog.ndjson').rename(quickdraw_dir / 'bear.ndjson')
  with pytest.raises(ValueError, match=r"no photo shows any of 'bear'"):
    opened('train', class_names=('bear', 'hot dog'), unseen_classes=('hot dog',))


def test_published_classes_are_those_of_the_paper():
  names, unseen = classes.PUBLISHED['quickdraw']
  assert (len(set(names)), len(unseen)) == (56, 14)
  assert unseen == (
    'elephant', 'bus', 'bed', 'sandwich', 'umbrella', 'toothbrush', 'toaster', 'donut', 'oven',
    'fire hydrant', 'apple', 'car', 'backpack', 'skateboard',
  )  # fmt: skip
  names, unseen = classes.PUBLISHED['sketchy']
  assert len(set(names)) == 27
  assert set(unseen) <= set(names)
  assert set(names) - set(classes.COCO_QUICKDRAW) == {'motorcycle'}
