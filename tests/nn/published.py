"""Weights of reference arrays under the names of our modules."""

import torch

NAMES = {"input_layer.": "first.", "fc.": "last."}


def renamed(name):
    """``blocks.1.0.weight`` is the linear layer of the second residual block, ``blocks.1.1.weight`` its norm."""
    if name.startswith("blocks."):
        _, block, place, rest = name.split(".")
        return f"{'norms' if place == '1' else 'linears'}.{block}.{rest}"
    for theirs, ours in NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def weights(vectors, prefix):
    return {renamed(key.removeprefix(prefix)): torch.from_numpy(vectors[key]) for key in vectors.files if key.startswith(prefix)}


def loaded(module, vectors, prefix):
    state = weights(vectors, prefix)
    assert state
    module.load_state_dict(state)
    return module
