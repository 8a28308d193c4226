"""Images fit into boxes."""

import pytest

from crossattn_jax.data import resizing


@pytest.mark.parametrize('size', [(683, 512), (512, 683), (2000, 400), (100, 100)])
def test_images_fit_as_tightly_as_they_can(size):
  height, width = resizing.fit(size, (2048, 512))
  assert max(height, width) == 2048 or min(height, width) == 512
  assert max(height, width) <= 2048
  assert min(height, width) <= 512
  assert abs(height / width - size[0] / size[1]) < 0.01 * size[0] / size[1]


@pytest.mark.parametrize(
  ('size', 'within', 'expected'),
  [
    ((480, 640), None, (800, 1067)),  # 1066.67 is rounded.
    ((427, 640), None, (800, 1199)),
    ((375, 500), None, (800, 1067)),
    ((640, 480), None, (1067, 800)),
    ((300, 900), None, (444, 1333)),
    ((640, 480), (800, 1344), (800, 600)),
    ((1, 9000), None, (1, 1333)),
  ],
)
def test_sizes_are_those_of_mmdetection(size, within, expected):
  arguments = () if within is None else (within,)
  assert resizing.fit(size, (1333, 800), *arguments) == expected


@pytest.mark.parametrize(
  ('size', 'short_side', 'expected'),
  [
    ((480, 640), 800, (800, 1056)),  # 1066 is cut down.
    ((360, 640), 800, (736, 1328)),  # The short side of 1333 is 750.
    ((640, 360), 800, (1328, 736)),
    ((427, 640), 800, (800, 1184)),
    ((333, 500), 800, (800, 1200)),
    ((480, 640), 500, (496, 656)),
    ((5, 9000), 800, (16, 1328)),
  ],
)
def test_sizes_in_multiples_are_those_of_vidt(size, short_side, expected):
  assert resizing.fit(size, (1333, short_side), multiple=16) == expected


def test_multiples_are_held_by_an_array():
  assert resizing.fit((360, 640), (1333, 800), (800, 1056), multiple=16) == (592, 1056)
