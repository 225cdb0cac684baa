"""Frozen embeddings of a data set: of a model in memory, or of a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device

from benchmarks.harness.store import replacing
from benchmarks.registry import METHODS, Method
from common.errors import ArgumentError, DataError
from common.training import load_checkpoint

FORMATS = (".npz", ".parquet")
UNUSED = ("autoencoder", "optimizer")  # of training only


@torch.no_grad()
def embed(model: Any, data: Any) -> dict[str, np.ndarray]:
    """What a model makes of the data set behind ``predict_dataloader``.

    Returns:
        ``embedding (n, d)``, ``id (n,)`` in the order of the data set, ``assignment (n,)`` if the
        model assigns clusters, ``y (n,)`` if there are labels.
    """
    model.eval()
    parts: dict[str, list[Any]] = {"embedding": [], "assignment": [], "y": []}
    for batch in data.predict_dataloader():
        on_device = move_data_to_device(batch, model.device)
        parts["embedding"].append(model.encode(on_device))  # (n, d)
        if hasattr(model, "assign"):
            parts["assignment"].append(model.assign(on_device).argmax(dim=1))  # (n,)
        if batch.y is not None:
            parts["y"].append(batch.y)  # (n,)
    arrays = {name: torch.cat(values).cpu().numpy() for name, values in parts.items() if values}
    return arrays | {"id": np.arange(len(arrays["embedding"]))}


def embed_checkpoint(checkpoint: Path, dataset: str, out: Path) -> dict[str, np.ndarray]:
    """Writes the embeddings of a data set under a checkpoint as ``.npz`` or ``.parquet``.

    Raises:
        ArgumentError: ``out`` has another ending, or the data set does not fit the method.
        DataError: the checkpoint is missing, damaged or not one of a known method.
    """
    if out.suffix not in FORMATS:
        raise ArgumentError(f"--out must end in {' or '.join(FORMATS)}, got {out}")
    method, model = restore(checkpoint)
    data = method.data_cls(dataset=dataset)
    data.prepare_data()
    data.setup("predict")
    arrays = embed(model, data)
    with replacing(out) as temporary, temporary.open("wb") as file:
        if out.suffix == ".npz":
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        else:
            import pandas as pd

            columns = arrays | {"embedding": list(arrays["embedding"])}
            pd.DataFrame(columns).to_parquet(file, index=False)
    return arrays


def restore(checkpoint: Path) -> tuple[Method, LightningModule]:
    """The method and the trained model of a checkpoint, from tensors and plain values alone.

    Raises:
        DataError: the checkpoint is missing, damaged, or of a class that is no registered method.
    """
    saved = load_checkpoint(checkpoint)
    method = find_method(saved["class_path"], checkpoint)
    arguments = {
        name: value
        for name, value in saved.get("hyper_parameters", {}).items()
        if not name.startswith("_") and name not in UNUSED
    }
    try:
        model = method.cls(**arguments)
        model.load_state_dict(saved["state_dict"])
    except (TypeError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{checkpoint} does not fit {method.class_path}: {reason}") from error
    return method, model


def find_method(class_path: str, checkpoint: Path) -> Method:
    for method in METHODS:
        package, _, name = method.class_path.rpartition(".")
        if class_path.startswith(f"{package}.") and class_path.endswith(f".{name}"):
            return method
    known = ", ".join(method.class_path for method in METHODS)
    raise DataError(
        f"{checkpoint} holds {class_path}, which is no method of clustrast; known: {known}"
    )
