"""One file per experiment."""

import sys

# Where the library is installed this is `crossattn_jax.configs`; its files import `configs`.
sys.modules.setdefault('configs', sys.modules[__name__])
