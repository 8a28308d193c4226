import pytest

from crossattn_jax.kernels import pipelining


@pytest.mark.parametrize(
  ('ahead', 'order'),
  [
    (1, 'begin 0, begin 1, end 0, begin 2, end 1, end 2'),
    (2, 'begin 0, begin 1, begin 2, end 0, end 1, end 2'),
    (5, 'begin 0, begin 1, begin 2, end 0, end 1, end 2'),
  ],
)
def test_tasks_end_in_order_after_others_have_begun(ahead, order):
  events = []

  def begin(task):
    events.append(f'begin {task}')
    return -task

  def end(task, begun):
    assert begun == -task
    events.append(f'end {task}')

  pipelining.pipelined(range(3), begin, end, ahead)
  assert ', '.join(events) == order
