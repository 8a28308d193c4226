"""Compiling for TPUs that are not here: what the reports say, and what is refused."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import types

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from crossattn_jax import parallel, training
from crossattn_jax.training.compile import aot, flops, hlo

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """\
HloModule step, is_scheduled=true

%region.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

%part.1 (p: bf16[8,4]) -> bf16[32,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%part.2 (q: bf16[8,4]) -> bf16[32,4] {
  %q = bf16[8,4]{1,0} parameter(0)
  %nested = bf16[32,4]{1,0} fusion(%q), kind=kLoop, calls=%part.1
  ROOT %copy = bf16[32,4]{1,0} copy(%nested)
}

%all-reduce-scatter.3 (r: bf16[64,2]) -> bf16[16,2] {
  %r = bf16[64,2]{1,0} parameter(0)
  %all-reduce.3 = bf16[64,2]{1,0} all-reduce(%r), channel_id=1, to_apply=%region.1
  ROOT %slice = bf16[16,2]{1,0} slice(%all-reduce.3), slice={[0:16], [0:2]}
}

%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %s = (s32[], f32[10]{0}) parameter(0)
  %f = f32[10]{0} fusion(%s), kind=kLoop, calls=%region.1, backend_config={"estimated_cycles":"5"}
  %reduced = f32[10]{0} all-reduce(%f), channel_id=2, to_apply=%region.1
  ROOT %t = (s32[], f32[10]{0}) tuple(%s, %reduced)
}

%condition (s: (s32[], f32[10])) -> pred[] {
  %s = (s32[], f32[10]{0}) parameter(0)
  ROOT %less = pred[] compare(%s, %s), direction=LT, backend_config={"estimated_cycles":"1"}
}

%cheap (b: f32[2]) -> f32[2] {
  ROOT %b = f32[2]{0} copy(), backend_config={"estimated_cycles":"10"}
}

%dear (b: f32[2]) -> f32[2] {
  ROOT %b = f32[2]{0} copy(), backend_config={"estimated_cycles":"1000"}
}

ENTRY %main (a: bf16[8,4], g: bf16[64,2]) -> f32[2] {
  %a = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %g = bf16[64,2]{1,0} parameter(1)
  %start = bf16[32,4]{1,0} fusion(%a), kind=kCustom, calls=%part.1
  %work = bf16[32,4]{1,0} fusion(%start), kind=kOutput, calls=%part.2, \
backend_config={"estimated_cycles":"100"}
  %scattered = bf16[16,2]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.3
  %own = f32[4]{0} reduce-scatter(%wide), channel_id=3, dimensions={0}, to_apply=%region.1
  %wide = f32[16]{0} convert(%g)
  %moving = (pred[6]{0:T(256)}, pred[6]{0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%p), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %moved = pred[6]{0} collective-permute-done(%moving)
  %both = (f32[3]{0}, /*index=1*/bf16[3,1]{1,0}) all-reduce(%x, %y), channel_id=1, \
to_apply=%region.1
  %known = (s32[], f32[10]{0}) while(%i), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  %unknown = (s32[], f32[10]{0}) while(%i), condition=%condition, body=%body
  ROOT %chosen = f32[2]{0} conditional(%c, %b, %b), branch_computations={%cheap, %dear}
}
"""


@pytest.fixture(scope='module')
def costs():
  return hlo.program_costs(PROGRAM)


def test_a_collective_that_is_spread_over_fusions_counts_once(costs):
  assert costs.collectives['all-gather'] == hlo.Collective(1, 32 * 4 * 2)


def test_a_reduce_scatter_counts_what_it_is_given(costs):
  assert costs.collectives['reduce-scatter'] == hlo.Collective(2, 64 * 2 * 2 + 16 * 4)


def test_a_collective_with_a_start_and_an_end_counts_once_and_without_its_semaphores(costs):
  assert costs.collectives['collective-permute'] == hlo.Collective(1, 6)


def test_a_loop_counts_as_often_as_it_runs_and_once_if_that_is_not_known(costs):
  assert costs.collectives['all-reduce'] == hlo.Collective(1 + 3 + 1, (3 * 4 + 3 * 2) + 4 * 10 * 4)
  assert costs.unbounded_loops == 1


def test_cycles_are_those_of_loops_and_of_the_dearest_branch(costs):
  assert costs.cycles == 100 + (3 + 1) * (5 + 1) + 1000


def test_operations_without_an_estimate_are_counted_apart():
  costs = hlo.program_costs(
    COUNTED.replace('"estimated_cycles":"7"', f'"estimated_cycles":"{2**62}"')
  )
  assert costs.cycles == 0
  assert costs.unestimated == 5


COUNTED = """\
%body (s: (u32[], f32[4])) -> (u32[], f32[4]) {
  %s = (u32[]{:T(128)}, f32[4]{0}) parameter(0)
  %step = u32[]{:T(128)} constant(2)
  %i = u32[]{:T(128)} get-tuple-element(%s), index=0
  %x = f32[4]{0} get-tuple-element(%s), index=1
  %y = f32[4]{0} copy(%x), backend_config={"estimated_cycles":"7"}
  %k = f32[4]{0} custom-call(%y), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"100",\
"transcendentals":"3","bytes_accessed":"40","remote_bytes_transferred":"0"}}}
  %next = u32[]{:T(128)} add(%i, %step)
  ROOT %t = (u32[]{:T(128)}, f32[4]{0}) tuple(%next, %y)
}

%condition (s: (u32[], f32[4])) -> pred[] {
  %end = u32[]{:T(128)} constant(9)
  %s = (u32[]{:T(128)}, f32[4]{0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %end), direction=LT
}

ENTRY %main (x: f32[4]) -> (u32[], f32[4]) {
  %x = f32[4]{0} parameter(0)
  %zero = u32[]{:T(128)} constant(0)
  %start = u32[]{:T(128)} copy(%zero)
  %state = (u32[]{:T(128)}, f32[4]{0}) tuple(%start, %x)
  ROOT %loop = (u32[]{:T(128)}, f32[4]{0}) while(%state), condition=%condition, body=%body
}
"""


def test_a_loop_that_is_not_annotated_runs_as_its_counter_says():
  costs = hlo.program_costs(COUNTED)
  assert costs.cycles == 5 * 7
  assert costs.unbounded_loops == 0


def test_a_kernel_counts_as_it_declares_as_often_as_its_loop_runs():
  assert hlo.program_costs(COUNTED).kernels == {hlo.Kernel(flops=100, bytes=40): 5}


def test_the_costliest_operations_are_listed_with_their_place_in_the_model():
  source = 'jit(train_step)/transpose(jvp(CrossViT))/block_1/fc1/cond/branch_0_fun/dot_general'
  metadata = f'), metadata={{op_name="{source}"}}, '
  text = COUNTED.replace('copy(%x), ', 'copy(%x' + metadata)
  costs = hlo.program_costs(text)
  chip = aot.CHIPS['v5e']
  first, second = aot.costliest(costs, chip, step_seconds=100 / chip.clock, count=9)
  assert (first.name, first.cycles, first.share) == ('y', 5 * 7, 0.35)
  assert first.source == 'backward: CrossViT/block_*/fc1/dot_general'
  assert (second.name, second.source) == ('k', '')
  assert second.cycles == round(5 * 40 / chip.hbm_bandwidth * chip.clock)
  assert len(aot.costliest(costs, chip, 1.0, count=1)) == 1


def test_the_costliest_operations_of_equal_layers_are_one():
  def costly(*operations):
    cycles = {hlo.Operation(name, source): value for name, source, value in operations}
    return aot.costliest(hlo.Costs(operations=cycles), aot.CHIPS['v5e'], 1.0, count=9)

  equal = [(f'fusion.{i}', f'Net/encoder_{i}/block_{i + 1}/fc1', 30 + i) for i in range(3)]
  first, second = costly(*equal, ('fusion.7', 'Net/block_0/branch_1/fc1', 90))
  assert (first.name, first.source) == ('fusion.2', 'Net/encoder_*/block_*/fc1')
  assert (first.cycles, first.count, second.count) == (93, 3, 1)
  (copies,) = costly(('copy.1', '', 4), ('copy.2', '', 5))
  assert (copies.name, copies.cycles, copies.count) == ('copy.2', 9, 2)


def test_a_counter_that_does_not_start_at_a_constant_leaves_the_length_unknown():
  costs = hlo.program_costs(COUNTED.replace('copy(%zero)', 'convert(%x)'))
  assert costs.cycles == 7
  assert costs.unbounded_loops == 1


def test_a_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.program_costs('HloModule empty')


def test_model_flops_are_those_of_products_convolutions_and_repeated_scans():
  def loss(variables, batch, rng, train):
    del rng, train
    x = nn.avg_pool(batch, (1, 1))
    x = jax.lax.conv_general_dilated(
      x, variables['conv'], (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    x = x.reshape(2, 16, 5)
    x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ variables['square']), x)
    x = jax.lax.cond(x.sum() > 0, lambda x: x @ variables['square'], lambda x: x, x)
    return jax.checkpoint(lambda x: jnp.einsum('bnc,bmc->bnm', x, x))(x).sum(), None

  shape = jax.ShapeDtypeStruct
  experiment = types.SimpleNamespace(
    task=types.SimpleNamespace(loss=loss),
    mesh=parallel.create_mesh(),
    abstract_state=types.SimpleNamespace(
      loss_variables={
        'conv': shape((2, 2, 3, 5), jnp.float32),
        'square': shape((5, 5), jnp.float32),
      }
    ),
    abstract_batch=shape((2, 8, 8, 3), jnp.float32),
  )
  convolution = 2 * (2 * 16 * 5) * (2 * 2 * 3)
  products = (3 + 1) * 2 * (2 * 16 * 5) * 5
  scores = 2 * (2 * 16 * 16) * 5
  assert flops.training_flops(experiment) == convolution + products + scores


def test_model_flops_of_a_part_per_device_are_those_of_all_parts():
  product = lambda x: jnp.einsum('bnc,bmc->bnm', x, x)

  def loss(variables, batch, rng, train):
    del variables, rng, train
    names = ('batch', None, None)
    return parallel.map_shards(product, batch, names=[names], out_names=names).sum(), None

  experiment = types.SimpleNamespace(
    task=types.SimpleNamespace(loss=loss),
    # Devices along the second axis compute the same.
    mesh=parallel.create_mesh(data=4, tensor=2),
    abstract_state=types.SimpleNamespace(loss_variables={}),
    abstract_batch=jax.ShapeDtypeStruct((8, 3, 5), jnp.float32),
  )
  assert flops.training_flops(experiment) == 8 * 2 * 3 * 3 * 5


@pytest.mark.parametrize(
  'topology', ['v5e', 'v5e:16', 'v5e:2x2x2', 'v5p:4x4', 'v3:4x4', 'bogus', '', 'v5e:4x']
)
def test_an_unknown_topology_is_refused_with_known_forms(topology):
  with pytest.raises(aot.CompileError, match=r'expected CHIP:SHAPE.*v5e:16x16.*v5p:4x4x4'):
    aot.topology_devices(topology)


def test_a_slice_larger_than_any_is_refused():
  with pytest.raises(aot.CompileError, match=r'1024 chips; the largest v5e slice has 256'):
    aot.topology_devices('v5e:32x32')


def test_a_missing_compiler_is_refused_with_the_extra_that_brings_it(monkeypatch, tiny_config):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  with pytest.raises(aot.CompileError, match=r"pip install 'crossattn_jax\[tpu\]'"):
    training.compile_report(tiny_config, 'v5e:4x4')


@pytest.mark.parametrize('chip', aot.CHIPS.values(), ids=lambda chip: chip.name)
def test_the_peak_of_a_chip_is_what_its_matrix_units_do_in_a_second(chip):
  side, units = {'v4': (128, 8), 'v5e': (128, 4), 'v5p': (128, 8), 'v6e': (256, 4)}[chip.name]
  assert chip.peak_flops == pytest.approx(2 * side**2 * units * chip.clock, rel=0.01)


@pytest.fixture
def small_config(tiny_config):
  """The digits experiment with parameters that every axis of a slice of 16 or 256 chips divides."""
  config = tiny_config
  config.model.widths = (256, 512)
  config.model.num_heads = (2, 2)
  config.model.mlp_ratios = (4, 4)
  config.batch_size = 64
  config.evaluation.batch_size = 256
  config.sharding.fsdp_min_size = 1024
  return config


@pytest.fixture(scope='module')
def reports():
  """Reports by (topology, mesh): each program is compiled once."""
  return {}


@pytest.fixture
def report(reports, small_config):
  def compile_once(topology, **mesh):
    key = (topology, *sorted(mesh.items()))
    if key not in reports:
      small_config.mesh.update(mesh)
      # What the quick compilation leaves out are cycles, not what is computed or communicated.
      reports[key] = training.compile_report(small_config, topology, effort=-1.0)
    return reports[key]

  return compile_once


@pytest.mark.tpu_aot
@pytest.mark.extended
def test_one_chip_needs_no_collectives(report):
  single = report('v5e:1x1', data=1)
  assert single.devices == single.hosts == 1
  assert single.collectives == {}
  assert single.fits
  assert 0 < single.mfu < 1
  assert single.flops >= single.model_flops > 0


@pytest.mark.extended
@pytest.mark.tpu_aot
def test_fsdp_gathers_parameters_and_scatters_or_reduces_gradients(report):
  split = report('v5e:4x4', data=1, fsdp=16)
  assert split.mesh == {'data': 1, 'fsdp': 16, 'tensor': 1, 'sequence': 1}
  assert 'all-gather' in split.collectives
  assert split.collectives.keys() & {'all-reduce', 'reduce-scatter', 'collective-permute'}
  assert split.collectives['all-gather'].bytes > 0


@pytest.mark.extended
@pytest.mark.tpu_aot
def test_fsdp_does_not_reduce_activations(report):
  """What is reduced are gradients: activations stay split by example, whole in their channels."""
  split = report('v5e:4x4', data=4, fsdp=4)
  reduced = sum(
    split.collectives[kind].bytes
    for kind in ('all-reduce', 'reduce-scatter')
    if kind in split.collectives
  )
  assert reduced < split.parameters * 4 * 1.3


@pytest.mark.extended
@pytest.mark.tpu_aot
def test_data_parallelism_reduces_gradients_once(report):
  replicated = report('v5e:4x4', data=16)
  # All gradients, in float32, and a few sums.
  reduced = replicated.collectives['all-reduce'].bytes
  assert replicated.parameters * 2 <= reduced < replicated.parameters * 4 * 1.1


@pytest.mark.extended
@pytest.mark.tpu_aot
def test_what_fsdp_splits_falls_as_one_over_the_devices(report):
  """Of n shards each device holds 1/n, besides the small parameters and its part of the batch."""
  arguments = {
    1: report('v5e:4x4', data=16).memory.arguments,
    4: report('v5e:4x4', data=4, fsdp=4).memory.arguments,
    16: report('v5e:4x4', data=1, fsdp=16).memory.arguments,
  }
  # AdamW: each parameter with its two moments, in float32.
  whole = 3 * 4 * report('v5e:4x4', data=16).parameters
  assert arguments[1] == pytest.approx(whole, rel=0.02)
  assert arguments[4] == pytest.approx(whole / 4, rel=0.05)
  assert arguments[16] == pytest.approx(whole / 16, rel=0.1)


@pytest.mark.tpu_aot
@pytest.mark.slow
def test_a_quick_compilation_computes_and_communicates_the_same(report, small_config):
  quick = report('v5e:4x4', data=16)
  small_config.mesh.data = 16
  whole = training.compile_report(small_config, 'v5e:4x4')
  assert (quick.effort, whole.effort) == (-1.0, 0.0)
  assert quick.model_flops == whole.model_flops
  assert quick.memory.arguments == whole.memory.arguments
  assert quick.memory.code < whole.memory.code
  assert quick.collectives.keys() == whole.collectives.keys()


@pytest.mark.tpu_aot
@pytest.mark.extended
def test_tensor_parallelism_reduces_activations(report):
  mixed = report('v5e:4x4', data=4, fsdp=2, tensor=2)
  assert mixed.mesh == {'data': 4, 'fsdp': 2, 'tensor': 2, 'sequence': 1}
  # The halves of both sub-layers of the blocks are added, forward and backward.
  assert (
    mixed.collectives['all-reduce'].count
    > report('v5e:4x4', data=16).collectives['all-reduce'].count
  )
  assert mixed.memory.arguments < report('v5e:4x4', data=16).memory.arguments / 3


@pytest.mark.extended
@pytest.mark.tpu_aot
def test_a_step_that_does_not_fit_is_refused_with_what_to_change(small_config):
  small_config.batch_size = 2**27  # 32 GiB of images
  small_config.mesh.data = 1
  with pytest.raises(aot.CompileError, match=r'does not fit .* v5e; .*remat=True.*says: .*HBM'):
    training.compile_report(small_config, 'v5e:1x1')


@pytest.mark.tpu_aot
def test_a_batch_that_does_not_split_over_the_slice_is_refused(small_config):
  small_config.batch_size = 24
  with pytest.raises(ValueError, match=r'24 examples at a time do not split .* = 16 devices'):
    training.compile_report(small_config, 'v5e:4x4')


@pytest.mark.extended
@pytest.mark.tpu_aot
def test_the_command_line_compiles_for_256_chips_and_prints_a_table_and_json(main_environment):
  environment = {
    name: value for name, value in main_environment.items() if not name.startswith('TPU_')
  }
  result = subprocess.run(
    [
      sys.executable,
      'main.py',
      '--mode=compile',
      '--topology=v5e:16x16',
      '--compile_effort=-1',
      '--config=configs/crossvit_digits.py',
      '--config.batch_size=256',
      '--config.evaluation.batch_size=256',
      '--config.model.depths=((1,1,0),)',
      '--config.mesh.fsdp=16',
      '--config.sharding.fsdp_min_size=1024',
    ],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  *table, line = result.stdout.splitlines()
  record = json.loads(line)
  assert record['devices'] == 256
  assert record['hosts'] > 1
  assert record['mesh'] == {'data': 16, 'fsdp': 16, 'tensor': 1, 'sequence': 1}
  assert record['fits'] is True
  assert record['memory']['total'] < record['chip']['hbm_bytes']
  assert 'fits' in '\n'.join(table)
