"""Numerics against PyTorch: replay recorded cases, convert checkpoints, compare layer by layer.

`cases` reads what PyTorch originals were recorded to compute and `bounds` says how close is close
enough; `adapters` is the interface that `parity/systems/<system>/` fills in, from the `arguments`
of a case; `replay`, `record` and `compare` are the tools, beside those of `conversion`. `python -m
crossattn_jax.parity --help` lists the commands, `docs/parity.md` explains them.
"""
