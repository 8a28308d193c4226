"""The packages of a wheel; everything else is in setup.cfg."""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=['crossattn_jax', 'crossattn_jax.*']),
    'crossattn_jax.configs',
  ],
  # Experiments stand beside the package in a clone, and inside of it where it is installed.
  package_dir={'crossattn_jax.configs': 'configs'},
)
