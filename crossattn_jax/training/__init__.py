"""The single training loop, its state, optimizers, schedules, checkpoints and writers."""
