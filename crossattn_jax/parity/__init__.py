"""Numerics against PyTorch: replay recorded cases, convert checkpoints, compare layer by layer.

`cases` reads what PyTorch originals were recorded to compute and `bounds` says how close is close
enough; `mapping` turns state dicts into Flax variables and back, by `rules` and `layouts`;
`adapters` is the interface that `parity/systems/<system>/` fills in, from the `arguments` of a
case; `replay`, `convert`, `record`, `compare` and `pretrained` are the tools. `python -m
crossattn_jax.parity --help` lists the commands, `docs/parity.md` explains them.
"""
