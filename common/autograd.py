"""Hand-written derivatives."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def first_derivative_only(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the ``backward`` of a Function that computes without a graph.

    Its result has no derivative of its own; who asks for one is told. (torch's
    ``once_differentiable`` looks at the incoming gradient alone: where that is a constant, what was
    saved for the backward pass counts as one too, and second derivatives are wrong in silence.)

    Args:
        what: has no second derivative, and what to do instead; for the message.

    Example:
        >>> class Square(Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x.square()
        ...     @staticmethod
        ...     @first_derivative_only("square")
        ...     def backward(ctx, grad):
        ...         return 2 * ctx.saved_tensors[0] * grad
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> (slope,) = torch.autograd.grad(Square.apply(x), x, create_graph=True)
        >>> slope.item()
        6.0
        >>> slope.backward()
        Traceback (most recent call last):
        RuntimeError: no second derivative of square
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def guarded(ctx: Any, grad: Tensor) -> Any:
            with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
                gradients = backward(ctx, grad)
            sources = [t for t in (grad, *ctx.saved_tensors) if t is not None and t.requires_grad]
            if not torch.is_grad_enabled() or not sources:
                return gradients
            if isinstance(gradients, Tensor):
                return _Refusal.apply(gradients, what, *sources)
            return tuple(
                _Refusal.apply(g, what, *sources) if isinstance(g, Tensor) else g for g in gradients
            )

        return guarded

    return decorate


class _Refusal(Function):
    @staticmethod
    def forward(ctx, x: Tensor, what: str, *sources: Tensor) -> Tensor:
        ctx.what = what
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        raise RuntimeError(f"no second derivative of {ctx.what}")
