"""Reading checkpoints without running code from them."""

from pathlib import Path
from typing import Any

import torch

from common.errors import DataError


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A method's checkpoint, on the CPU: ``class_path``, ``state_dict``, ``hyper_parameters``, ...

    Only tensors and plain containers are read, never code.

    Raises:
        DataError: the file is missing, damaged, or not the checkpoint of a method.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"checkpoint {path} does not exist") from None
    except Exception as error:  # what a damaged archive raises depends on which byte is damaged
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(checkpoint, dict) or "class_path" not in checkpoint:
        raise DataError(f"{path} is not the checkpoint of a clustrast method: it has no class_path")
    return checkpoint
