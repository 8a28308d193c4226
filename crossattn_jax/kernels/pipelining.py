"""The order of work in a kernel's program."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Task = TypeVar('Task')
Begun = TypeVar('Begun')


def pipelined(
  tasks: Sequence[Task],
  begin: Callable[[Task], Begun],
  end: Callable[[Task, Begun], None],
  ahead: int = 1,
) -> None:
  """Ends every task after so many others have begun, so that their work can overlap.

  The matrix units of a TPU take products in the order of the program: what they shall do during the
  softmax of a task must come before it.

  Args:
    tasks: in their order.
    begin: the products that come before the softmax.
    end: the rest, given the task and what `begin` returned.
    ahead: tasks that begin before one ends.
  """
  begun = [begin(task) for task in tasks[:ahead]]
  for i, task in enumerate(tasks):
    begun += [begin(following) for following in tasks[i + ahead : i + ahead + 1]]
    end(task, begun.pop(0))
