"""Trains, evaluates and uses the models of crossattn_jax: `python main.py --help` says how.

Once installed, the command `crossattn` does the same from any folder.
"""

from crossattn_jax import cli

if __name__ == '__main__':
  cli.main()
