"""Encoders of node attributes."""

from itertools import pairwise

from torch import nn


def mlp(*dims: int) -> nn.Sequential:
    """Linear layers through ``dims`` with ReLU between them, none after the last.

    The first layer takes a dense or a sparse CSR matrix, so that bag-of-words attributes need not
    be made dense.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(dims):
        layers += [nn.Linear(width_in, width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
