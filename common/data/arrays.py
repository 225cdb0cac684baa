"""What a user may pass as an array, as a tensor."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import ArgumentError


def as_tensor(name: str, values: Any) -> Tensor:
    """A tensor from a tensor, which is only detached, or a copy of anything NumPy takes as numbers.

    Raises:
        ArgumentError: text, objects or rows of different lengths; says ``name``.

    Example:
        >>> as_tensor("y", ["one", "two"])
        Traceback (most recent call last):
        common.errors.ArgumentError: y must be an array of numbers, got list: ...
    """
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.array(values, order="C")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"{name} must be an array of numbers, got {type(values).__name__}: {error}"
        ) from error


def dense_tensor(name: str, values: Any) -> Tensor:
    """As :func:`as_tensor`, and of sparse tensors and SciPy's sparse matrices the dense form."""
    if hasattr(values, "toarray"):
        values = values.toarray()
    return as_tensor(name, values).to_dense()
