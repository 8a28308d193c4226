"""What a model needs: the matrix products and convolutions of a traced loss."""

from collections.abc import Iterator
import math

import jax
import jax.extend

from crossattn_jax.parallel import parameters
from crossattn_jax.training import experiment as experiment_lib


def training_flops(experiment: experiment_lib.Experiment) -> float:
  """Floating-point operations of a training step, two per multiplication and addition.

  A backward pass counts as two forward passes. What does not depend on the parameters, such as a
  teacher, has none.

  Args:
    experiment: whose loss is traced, over the global batch.
  """
  jaxpr = _traced_loss(experiment)
  variables = jax.tree_util.tree_leaves_with_path(experiment.abstract_state.loss_variables)
  learnt = {
    variable
    for (path, _), variable in zip(variables, jaxpr.invars, strict=False)
    if parameters.path_string(path).startswith('params/')
  }
  total = 0.0
  for equation in jaxpr.eqns:
    inputs = {x for x in equation.invars if not isinstance(x, jax.extend.core.Literal)}
    depends = not learnt.isdisjoint(inputs)
    if depends:
      learnt.update(equation.outvars)
    total += (3 if depends else 1) * _equation_flops(equation)
  return total


def _traced_loss(experiment: experiment_lib.Experiment) -> jax.extend.core.Jaxpr:
  """The loss as a function of all variables, then of the batch."""

  def loss(variables, batch):
    return experiment.task.loss(variables, batch, jax.random.key(0), train=True)[0]

  with jax.set_mesh(experiment.mesh):
    traced = jax.make_jaxpr(loss)(
      experiment.abstract_state.loss_variables, experiment.abstract_batch
    )
  return traced.jaxpr


def _jaxpr_flops(jaxpr: jax.extend.core.Jaxpr) -> float:
  return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: jax.extend.core.JaxprEqn) -> float:
  name = equation.primitive.name
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * out.size * math.prod(left.shape[dimension] for dimension in contracted)
  if name == 'conv_general_dilated':
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    channels = kernel.shape[equation.params['dimension_numbers'].rhs_spec[0]]
    return 2.0 * out.size * kernel.size / channels
  if name == 'cond':
    return max(map(_jaxpr_flops, _inner_jaxprs(equation)))
  times = 1
  if name == 'scan':
    times = equation.params['length']
  elif name == 'shard_map':
    # Its body is what one device computes; devices with equal results count once.
    axes = {
      axis
      for spec in equation.params['out_specs']
      for entry in spec
      for axis in ((entry,) if isinstance(entry, str) else entry or ())
    }
    times = math.prod(equation.params['mesh'].shape[axis] for axis in axes)
  return float(times * sum(map(_jaxpr_flops, _inner_jaxprs(equation))))


def _inner_jaxprs(equation: jax.extend.core.JaxprEqn) -> Iterator[jax.extend.core.Jaxpr]:
  for value in equation.params.values():
    for each in value if isinstance(value, tuple | list) else (value,):
      if isinstance(each, jax.extend.core.ClosedJaxpr):
        yield each.jaxpr
      elif isinstance(each, jax.extend.core.Jaxpr):
        yield each
