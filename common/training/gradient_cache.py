"""Batches beyond the encoder's memory: embed in micro-batches, train on the whole batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from common.adjacency import csr_tensor
from common.errors import ArgumentError, require_int


class GradientCache(Callback):
    r"""Trains any method on batches whose activations would not fit in memory.

    A contrastive loss needs all embeddings of a batch at once, but not all activations. While this
    callback is attached, the encoder embeds a large batch micro-batch by micro-batch and forgets
    the activations; ``training_step`` computes its loss on the whole batch of embeddings as ever;
    in the backward pass each micro-batch is encoded once more, with its slice of the gradient of
    the embeddings. Memory is that of the embeddings and of one micro-batch, time that of one more
    forward pass, and the gradient of every parameter that of the whole batch, to rounding.

    - *Dropout*: the random numbers of the first pass are drawn again in the second. They are not
      those of one big batch, which are drawn in another order.
    - *BatchNorm* in training mode normalises over a micro-batch, as it does over the rows of one
      device; running statistics move once for each micro-batch, not again in the second pass. What
      comes after the encoder, such as a projection head, sees the whole batch.
    - *Rows*: the encoder must treat them one by one (BatchNorm aside). A graph encoder that passes
      messages between rows cannot be split.
    - *Precision*: autocast is that of the first pass.

    Every tensor argument with as many rows as the first is split, in lists and dicts too; others
    go to all micro-batches whole. The outputs are tensors of as many rows, or lists and dicts of
    them. A batch of at most ``micro_batch_size`` rows is not touched.

    Distributed: every rank splits its own rows. The parameters stay in the graph that
    DistributedDataParallel reduces, each once, after its last micro-batch.

    Args:
        micro_batch_size: largest number of rows encoded at once. Micro-batches are of equal size,
            or differ by one row.
        modules: names of the submodules of the method to split: ``"encoder"``,
            ``("encoder", "momentum_encoder")``, ``"encoder.trunk"``.

    Raises:
        ArgumentError: at the start of training, for a submodule the method does not have; in a
            step, for arguments or outputs that cannot be split, and for a module other than a
            normalisation that changes its buffers in training, which two passes would change twice.

    Source:
        Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
        RepL4NLP 2021 (arXiv 2101.06983).

    Example:
        >>> cache = GradientCache(micro_batch_size=256)
        >>> # Trainer(callbacks=[cache]).fit(model, data) with batches of 8192
        >>> cache.modules
        ('encoder',)
    """

    def __init__(self, micro_batch_size: int, modules: str | Sequence[str] = "encoder"):
        self.micro_batch_size = require_int("micro_batch_size", micro_batch_size, 1)
        self.modules = (modules,) if isinstance(modules, str) else tuple(modules)
        self._active = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in self.modules:
            try:
                module = pl_module.get_submodule(name)
            except AttributeError:
                raise ArgumentError(
                    f"modules must name submodules of {type(pl_module).__name__}, got {name!r}"
                ) from None
            self._active.enter_context(micro_batched(module, self.micro_batch_size))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._active.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._active.close()


@contextmanager
def micro_batched(module: nn.Module, micro_batch_size: int) -> Iterator[None]:
    """Within it, ``module`` encodes as under :class:`GradientCache`, without a Trainer.

    The backward pass may come after it.

    Example:
        >>> encoder = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
        >>> x = torch.arange(12.0).view(4, 3) / 12
        >>> encoder(x).square().mean().backward()
        >>> expected = encoder[0].weight.grad.clone()
        >>> encoder.zero_grad()
        >>> with micro_batched(encoder, 2):
        ...     encoder(x).square().mean().backward()
        >>> torch.allclose(encoder[0].weight.grad, expected)
        True
    """
    before = module.__dict__.get("forward")
    module.forward = _MicroBatches(module, require_int("micro_batch_size", micro_batch_size, 1))
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


class _MicroBatches:
    """Stands in for the ``forward`` of a module; a copy of the module takes a copy of it along."""

    def __init__(self, module: nn.Module, size: int):
        self.module = module
        self.forward: Callable[..., Any] = module.forward
        self.size = size

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        n = next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), None)
        if n is None:
            raise ArgumentError(
                f"GradientCache splits tensors of rows, got a call of "
                f"{type(self.module).__name__} without any"
            )
        if n <= self.size:
            return self.forward(*args, **kwargs)
        run: Callable[..., Any] = self._run
        if torch.is_grad_enabled():
            context = partial(_first_and_second_pass, self.module)
            run = partial(checkpoint, self._run, use_reentrant=False, context_fn=context)
        before = _buffer_versions(self.module)
        outputs = []
        for start, stop in _equal_parts(n, -(-n // self.size)):
            part = [_rows(leaf, start, stop) if _has_rows(leaf, n) else leaf for leaf in leaves]
            outputs.append(run(structure, *part))
            self._check_output(outputs[-1], stop - start)
        if torch.is_grad_enabled():
            self._check_buffers(before)
        columns = zip(*(tree_flatten(output)[0] for output in outputs), strict=True)
        return tree_unflatten([torch.cat(parts) for parts in columns], tree_flatten(outputs[0])[1])

    def _run(self, structure: Any, *leaves: Any) -> Any:
        args, kwargs = tree_unflatten(leaves, structure)
        return self.forward(*args, **kwargs)

    def _check_output(self, output: Any, n: int) -> None:
        for leaf in tree_flatten(output)[0]:
            if not _has_rows(leaf, n):
                came = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ArgumentError(
                    f"GradientCache needs one output row for each row; {type(self.module).__name__}"
                    f" made {came} of {n} rows"
                )

    def _check_buffers(self, before: dict[str, tuple[int, int]]) -> None:
        for name, version in _buffer_versions(self.module).items():
            if version != before.get(name):
                raise ArgumentError(
                    f"GradientCache encodes twice, but {type(self.module).__name__} changes its "
                    f"buffer {name} whenever it encodes"
                )


def _equal_parts(n: int, parts: int) -> Iterator[tuple[int, int]]:
    bounds = [n * part // parts for part in range(parts + 1)]
    return pairwise(bounds)


def _has_rows(leaf: Any, n: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == n


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    """``x[start:stop]``, of sparse CSR matrices too."""
    if x.layout != torch.sparse_csr:
        return x[start:stop]
    crow = x.crow_indices()[start : stop + 1]
    entries = slice(int(crow[0]), int(crow[-1]))
    shape = (stop - start, *x.shape[1:])
    return csr_tensor(crow - crow[0], x.col_indices()[entries], x.values()[entries], shape)


def _buffer_versions(module: nn.Module) -> dict[str, tuple[int, int]]:
    """What changes when a module writes to a buffer; without the statistics of normalisations."""
    return {
        f"{prefix}.{name}".lstrip("."): (id(buffer), buffer._version)
        for prefix, child in module.named_modules()
        if not isinstance(child, _NormBase)
        for name, buffer in child.named_buffers(recurse=False)
    }


def _first_and_second_pass(module: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _CopiedBuffers(module)


class _CopiedBuffers:
    """Within it, a module changes copies of its buffers."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.originals: list[tuple[nn.Module, dict[str, Tensor | None]]] = []

    def __enter__(self) -> None:
        self.originals = [(child, dict(child._buffers)) for child in self.module.modules()]
        for child, buffers in self.originals:
            for name, buffer in buffers.items():
                child._buffers[name] = None if buffer is None else buffer.clone()

    def __exit__(self, *error: object) -> None:
        for child, buffers in self.originals:
            child._buffers.update(buffers)
        self.originals = []
