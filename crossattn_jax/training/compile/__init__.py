"""Compiling a training step for TPUs that are not here, and reading the compiler's report."""
