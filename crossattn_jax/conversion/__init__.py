"""PyTorch checkpoints and published weights as this library's variables, and back.

`correspondence` is what `conversion/systems/<system>.py` says of a system's models: `rules` between
names, `layouts` of arrays, of which `mapping` makes the way there and back. `convert` turns files,
`start` begins a network from its classifier, `pretrained` loads by name.
"""
