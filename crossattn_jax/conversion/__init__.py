"""PyTorch checkpoints and published weights as this library's variables, and back.

From the outside in: `pretrained` builds a model with weights by name, `fitting` puts weights onto
the network wanted, `opening` finds them and the network that was saved. Below it `published` knows
and downloads releases, `reading` unwraps files, `torch_files` is the format of PyTorch's,
`recognition` says which model a state dict is of, `convert` turns it into variables and back.
`correspondence` is what `conversion/systems/<system>.py` says of a system's models: `rules` between
names, `layouts` of arrays, of which `mapping` makes the way there and back. `start` begins a
network from its classifier.
"""
