"""A stand-in for tensors on MPS, which has no float64."""

from torch import Tensor
from torch.utils._pytree import tree_leaves


class Single(Tensor):
    """A tensor whose results are single precision at most, until it is moved to the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        if func in (Tensor.cpu, Tensor.tolist, Tensor.__float__):
            return result.as_subclass(Tensor) if isinstance(result, Tensor) else result
        for part in tree_leaves(result):
            if isinstance(part, Single) and part.itemsize == 8 and part.is_floating_point():
                raise TypeError("MPS has no float64")
        return result
