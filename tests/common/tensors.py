"""What tests measure on tensors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def largest_tensor(call) -> int:
    """Entries of the largest tensor that any operation inside ``call`` returns."""

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes = [
                t.values().numel()
                if t.layout == torch.sparse_csr
                else t.untyped_storage().size() // 4
                for t in tree_leaves(out)
                if isinstance(t, torch.Tensor)
            ]
            self.largest = max([self.largest, *sizes])
            return out

    with Watch() as watch:
        call()
    return watch.largest
