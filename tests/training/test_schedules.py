"""Schedules against the recorded case of CrossViT and closed forms of the other recipes."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossattn_jax.training import config as config_lib
from crossattn_jax.training import experiment, schedules

RECORDED = pathlib.Path(__file__).parents[1] / 'reference' / 'crossvit' / 'lr_schedule.npz'
STEPS_PER_EPOCH = 1251  # ImageNet at batch 1024: step 375299 is the last of 300 epochs.
EPOCHS = 300


def make_config(**keys):
  config = schedules.default_config()
  config.update(keys)
  return config


def make_schedule(base_lr, total_steps, steps_per_epoch=10, **keys):
  return schedules.create_schedule(
    make_config(**keys), base_lr=base_lr, total_steps=total_steps, steps_per_epoch=steps_per_epoch
  )


@pytest.mark.parametrize(
  ('case', 'base_lr', 'warmup_epochs'),
  [('paper', 4e-3, 30.0), ('default_b4096', 4e-3, 5.0), ('default_b2048', 2e-3, 5.0)],
)
@pytest.mark.parametrize(
  ('x64', 'tolerance'), [(True, 1e-8), (False, 4e-7)], ids=['float64', 'float32']
)
def test_replays_the_recorded_crossvit_schedule_at_every_step_of_an_epoch(
  case, base_lr, warmup_epochs, x64, tolerance
):
  expected = np.load(RECORDED)[f'out/{case}']
  with jax.enable_x64(x64):
    schedule = jax.jit(
      make_schedule(
        base_lr,
        EPOCHS * STEPS_PER_EPOCH,
        STEPS_PER_EPOCH,
        minimum=1e-5,
        warmup_epochs=warmup_epochs,
        warmup_start=1e-6,
        decay_after_warmup=False,
        per_epoch=True,
        epochs_late=1,
      )
    )
    for offset in (0, 1, STEPS_PER_EPOCH - 1):
      rates = np.asarray(schedule(jnp.arange(EPOCHS) * STEPS_PER_EPOCH + offset))
      assert rates.dtype == (np.float64 if x64 else np.float32)
      np.testing.assert_allclose(rates, expected, rtol=tolerance)


@pytest.mark.parametrize('decay_after_warmup', [True, False])
def test_cosine_follows_its_closed_form_up_to_the_last_step_in_float32(decay_after_warmup):
  total, warmup = 400_000, 20_000
  schedule = jax.jit(
    make_schedule(1e-3, total, warmup_steps=warmup, decay_after_warmup=decay_after_warmup)
  )
  origin = warmup if decay_after_warmup else 0
  for step in (warmup, warmup + 1, 200_000, 399_990, 399_999):
    remaining = (total - step) / (total - origin)
    expected = 1e-3 * math.sin(math.pi / 2 * remaining) ** 2
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-6)
  assert schedule(total) == schedule(total + 5) == 0


def test_polynomial_follows_its_closed_form():
  # CCNet: 1e-2 * (1 - k / 60000) ** 0.9.
  with jax.enable_x64(True):
    schedule = make_schedule(1e-2, 60_000, name='polynomial', power=0.9)
    for step in (0, 1, 30_000, 59_999):
      np.testing.assert_allclose(schedule(step), 1e-2 * (1 - step / 60_000) ** 0.9, rtol=1e-10)


def test_polynomial_ends_at_the_minimum():
  schedule = make_schedule(1.0, 100, name='polynomial', minimum=0.25)
  np.testing.assert_allclose([schedule(50), schedule(100), schedule(101)], [0.625, 0.25, 0.25])


def test_step_multiplies_at_its_boundaries():
  # Detection: x 0.1 at epochs 8 and 11, warm-up over 500 iterations from a thousandth.
  per_epoch = 7330
  schedule = make_schedule(
    1e-4,
    12 * per_epoch,
    per_epoch,
    name='step',
    boundary_epochs=(8.0, 11.0),
    warmup_steps=500,
    warmup_start=1e-7,
    warmup='of_schedule',
    decay_after_warmup=False,
  )
  steps = [0, 250, 500, 8 * per_epoch - 1, 8 * per_epoch, 11 * per_epoch - 1, 11 * per_epoch]
  expected = [1e-7, 5.005e-5, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6]
  np.testing.assert_allclose([schedule(step) for step in steps], expected, rtol=1e-6)


def test_constant_warms_up_linearly_from_its_start():
  schedule = make_schedule(1.0, 100, name='constant', warmup_epochs=0.4, warmup_start=0.2)
  rates = [schedule(step) for step in range(6)]
  np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rtol=1e-6)


def test_warmup_of_schedule_multiplies_the_decaying_rate():
  # UPerNet: value = regular * (1 - (1 - step / 1500) * (1 - ratio)).
  with jax.enable_x64(True):
    schedule = make_schedule(
      6e-5,
      160_000,
      name='polynomial',
      warmup_steps=1500,
      warmup_start=6e-11,
      warmup='of_schedule',
      decay_after_warmup=False,
    )
    for step in (0, 1, 100, 1499, 1500, 80_000):
      factor = 1 - max(1 - step / 1500, 0) * (1 - 1e-6)
      expected = 6e-5 * (1 - step / 160_000) * factor
      np.testing.assert_allclose(schedule(step), expected, rtol=1e-9)


def test_replays_the_recorded_icafusion_schedule_of_weights_and_of_biases():
  # 516 steps an epoch; the warm-up of 3 epochs ends in the first step of epoch 3.
  keys = {'minimum': 1e-3, 'warmup': 'to_schedule', 'decay_after_warmup': False, 'per_epoch': True}
  recorded = RECORDED.parents[1] / 'icafusion' / 'train_schedule.npz'
  steps, _, _, weights, biases, *_ = np.load(recorded)['out/table'].T
  with jax.enable_x64(True):
    schedule = make_schedule(1e-2, 60 * 516, 516, warmup_epochs=3.0, epochs_late=1, **keys)
    assert schedule.warmup_steps == 1548
    np.testing.assert_allclose(schedule(steps), weights, rtol=1e-12)
    np.testing.assert_allclose(schedule(steps, 0.1), biases, rtol=1e-12)
    in_time = make_schedule(1e-2, 60 * 516, 516, warmup_epochs=3.0, **keys)
    np.testing.assert_allclose(in_time(steps[:9]), weights[:9], rtol=1e-12)
    for epoch in (3, 10, 59):
      curve = (1 + math.cos(math.pi * epoch / 60)) / 2 * 0.9 + 0.1
      np.testing.assert_allclose(in_time(epoch * 516 + 515), 1e-2 * curve, rtol=1e-12)


def test_a_run_may_be_shorter_than_a_warmup_to_its_schedule():
  keys = {'warmup': 'to_schedule', 'decay_after_warmup': False, 'warmup_min_steps': 1000}
  schedule = make_schedule(1.0, 100, **keys)
  np.testing.assert_allclose(schedule(50), 0.5 * 50 / 1000, rtol=1e-6)


def test_a_late_schedule_repeats_the_epoch_in_which_its_warmup_ends():
  keys = {'warmup': 'to_schedule', 'decay_after_warmup': False, 'per_epoch': True}
  in_time, late = (
    make_schedule(1.0, 100, warmup_min_steps=15, epochs_late=epochs, **keys) for epochs in (0, 1)
  )
  in_time, late = in_time(jnp.arange(100)), late(jnp.arange(100))
  np.testing.assert_array_equal(late[:20], in_time[:20])
  np.testing.assert_array_equal(late[20:30], np.full(10, in_time[19]))
  np.testing.assert_array_equal(late[30:], in_time[20:90])


def test_a_schedule_that_runs_late_repeats_its_first_value():
  # CrossFormer makes update k with the rate of step max(k - 1, 0).
  prompt = make_schedule(1.0, 100, warmup_steps=10)
  late = make_schedule(1.0, 100, warmup_steps=10, steps_late=1)
  assert [late(step) for step in range(40)] == [prompt(max(step - 1, 0)) for step in range(40)]
  prompt = make_schedule(1.0, 100, per_epoch=True)
  late = make_schedule(1.0, 100, per_epoch=True, epochs_late=1)
  assert [late(step) for step in (0, 9, 10, 19, 20, 35)] == [
    prompt(step) for step in (0, 0, 0, 0, 10, 20)
  ]


def test_cosine_begins_anew_and_each_period_may_be_longer_than_the_one_before():
  with jax.enable_x64(True):
    schedule = make_schedule(1.0, 70, restart_epochs=1.0, restart_growth=2.0, minimum=0.2)
    curve = [0.6 + 0.4 * math.cos(math.pi * step / 10) for step in range(10)]
    np.testing.assert_allclose(schedule(jnp.arange(10)), curve, rtol=1e-12)
    np.testing.assert_allclose(schedule(jnp.arange(10, 30, 2)), curve, rtol=1e-12)
    np.testing.assert_allclose(schedule(jnp.arange(30, 70, 4)), curve, rtol=1e-12)


def test_restarts_go_on_beyond_the_planned_end_with_a_warmup_before_and_for_any_decay():
  keys = {'restart_epochs': 2.0, 'name': 'polynomial', 'warmup_steps': 5}
  schedule = make_schedule(1.0, 35, **keys)
  np.testing.assert_allclose(schedule(jnp.array([5, 15, 24, 25, 35])), [1, 0.5, 0.05, 1, 0.5])


def test_replays_the_recorded_mit_schedule_whose_epochs_start_ahead():
  recorded = np.load(RECORDED.parents[1] / 'mit' / 'train_lr_schedules.npz')['out/stage1_lr']
  with jax.enable_x64(True):
    keys = {'restart_epochs': 20.0, 'steps_late': 1}
    odd = make_schedule(1e-2, 215, 5, epoch_starts_ahead=True, **keys)
    np.testing.assert_allclose(odd(jnp.arange(215)), recorded, rtol=1e-12)
    is_start = np.arange(215) % 5 == 0
    sane = make_schedule(1e-2, 215, 5, **keys)(jnp.arange(215))
    np.testing.assert_allclose(sane[~is_start], recorded[~is_start], rtol=1e-12)


def test_learning_rate_scales_with_the_global_batch_only_if_asked():
  config = make_config(learning_rate=5e-4)
  assert schedules.scaled_learning_rate(config, 4096) == 5e-4
  config.reference_batch_size = 512
  assert schedules.scaled_learning_rate(config, 4096) == 4e-3


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    ({'name': 'cosin'}, "unknown schedule 'cosin'; did you mean 'cosine'"),
    ({'warmup': 'base'}, "unknown warm-up 'base'; did you mean 'to_base'"),
    ({'name': 'exponential'}, "unknown schedule 'exponential'; known: cosine, "),
    ({'warmup_epochs': 1.0, 'warmup_steps': 3}, 'both set'),
    ({'name': 'step', 'boundary_epochs': (3.0, 2.0)}, 'boundary_epochs'),
    ({'epochs_late': -1}, 'epochs_late'),
    ({'restart_epochs': 0.01}, r'restart_epochs=0\.01 must be 0, or at least one step of 10'),
    ({'restart_epochs': 1.0, 'restart_growth': 0.5}, r'restart_growth=0\.5 at least 1'),
  ],
)
def test_impossible_schedules_are_refused_by_name(keys, message):
  with pytest.raises(ValueError, match=message):
    make_schedule(1.0, 100, **keys)


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    (
      {'warmup_epochs': 10.0},
      r'takes 100 steps but the run has 100; .*schedule\.warmup_epochs=1\.0$',
    ),
    ({'warmup_steps': 500}, r'takes 500 steps but the run has 100; .*schedule\.warmup_steps=10$'),
    ({'warmup_min_steps': 1000}, r'warmup_epochs=1\.0 config\.schedule\.warmup_min_steps=0$'),
  ],
)
def test_a_run_that_ends_before_its_warmup_is_refused(keys, message):
  config = config_lib.default_config()
  config.num_steps = 100
  config.schedule.update(keys)
  with pytest.raises(ValueError, match=message):
    experiment.create_schedule(config, steps_per_epoch=10)


@pytest.mark.parametrize(
  ('run', 'warmup'),
  [({'num_epochs': 1.0}, {'warmup_steps': 2000}), ({'num_steps': 3}, {'warmup_epochs': 0.25})],
  ids=['many_steps', 'few_steps'],
)
def test_runs_of_any_length_are_set_up_without_their_data(run, warmup):
  config = config_lib.default_config('classification')
  config.update({'num_epochs': None, 'num_steps': None} | run)
  config.schedule.update({'warmup_epochs': 0.0} | warmup)
  experiment.create_schedule(config, experiment.any_steps_per_epoch(config))
