import copy
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import ArgumentError
from common.training import GradientCache, Method, micro_batched
from tests.graphs.blobs import trainer

N, WIDTH, DIM = 23, 6, 4


def encoder(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 16), *middle, nn.Tanh(), nn.Linear(16, DIM)).double()


def contrast(z: torch.Tensor) -> torch.Tensor:
    """A loss that couples all rows."""
    unit = nn.functional.normalize(z, dim=1)
    return (5 * unit @ unit.T).logsumexp(dim=1).mean()


def rows(n: int = N) -> torch.Tensor:
    return torch.randn(n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters()]


@pytest.mark.parametrize("size", [1, 5, 22, 23, 100])
def test_gradients_are_those_of_the_whole_batch(size):
    x, model = rows().requires_grad_(), encoder()
    loss = contrast(model(x))
    loss.backward()
    expected, expected_x = gradients(model), x.grad.clone()
    model.zero_grad()
    x.grad = None
    with micro_batched(model, size):
        cached = contrast(model(x))
    cached.backward()
    torch.testing.assert_close(cached, loss, atol=1e-12, rtol=0)
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(x.grad, expected_x, atol=1e-12, rtol=1e-10)


def test_gradients_in_float32_to_1e_6():
    x, model = rows().float(), encoder().float()
    contrast(model(x)).backward()
    expected = gradients(model)
    model.zero_grad()
    with micro_batched(model, 4):
        contrast(model(x)).backward()
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_two_views_and_a_second_derivative_free_head_share_the_encoder():
    x, model, head = rows(), encoder(), nn.Linear(DIM, DIM).double()

    def loss():
        return contrast(torch.cat([head(model(x)), head(model(x.flip(1)))]))

    loss().backward()
    expected = gradients(model) + gradients(head)
    model.zero_grad(), head.zero_grad()
    with micro_batched(model, 5):
        loss().backward()
    for found, wanted in zip(gradients(model) + gradients(head), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)


class Recording(nn.Dropout):
    """Keeps what it let through, pass after pass."""

    def __init__(self):
        super().__init__(0.5)
        self.masks: list[torch.Tensor] = []

    def forward(self, x):
        y = super().forward(x)
        self.masks.append(y.detach() != 0)
        return y


def test_dropout_is_the_same_in_both_passes_and_draws_once():
    dropout = Recording()
    model = encoder(dropout)
    with micro_batched(model, 8):
        loss = contrast(model(rows()))
        after_forward = torch.get_rng_state()
        loss.backward()
    assert torch.equal(torch.get_rng_state(), after_forward)
    first, second = dropout.masks[:3], dropout.masks[3:][::-1]
    assert [len(mask) for mask in first] == [7, 8, 8]
    assert len(second) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], first[2])


def test_gradient_with_dropout_is_that_of_the_forward_pass_that_was_made():
    x, model = rows(), encoder(nn.Dropout(0.5))
    torch.manual_seed(3)
    contrast(torch.cat([model(part) for part in (x[:7], x[7:15], x[15:])])).backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    with micro_batched(model, 8):
        contrast(model(x)).backward()
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)


def test_batch_norm_normalises_micro_batches_and_counts_each_once():
    x, model = rows(), encoder(nn.BatchNorm1d(16))
    twin = copy.deepcopy(model)
    contrast(torch.cat([twin(part) for part in (x[:7], x[7:15], x[15:])])).backward()
    with micro_batched(model, 8):
        contrast(model(x)).backward()
    assert model[1].num_batches_tracked == 3
    for (name, found), wanted in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    for found, wanted in zip(gradients(model), gradients(twin), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)


def test_evaluation_equals_the_whole_batch_and_keeps_no_graph():
    model = encoder(nn.BatchNorm1d(16), nn.Dropout(0.5)).eval()
    expected = model(rows())
    with micro_batched(model, 4), torch.no_grad():
        z = model(rows())
    assert not z.requires_grad
    torch.testing.assert_close(z, expected)


class Peak(TorchDispatchMode):
    """Bytes of all tensors made within it that lived at the same time, at most."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.seen = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.watch(tensor.untyped_storage())
        return out

    def watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.seen.discard(key)
        self.live -= size


def peak_of_a_step(size: int, n: int = 1024) -> int:
    hidden = [layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(nn.Linear(WIDTH, 64), *hidden, nn.Linear(64, DIM))
    with micro_batched(model, size), Peak() as memory:
        model(rows(n).float()).square().mean().backward()
    return memory.peak


def test_activations_of_one_micro_batch_are_alive_at_a_time():
    whole, parts = peak_of_a_step(1024), peak_of_a_step(64)
    activations = 9 * 1024 * 64 * 4  # what tanh and the layers after it keep
    parameters_and_rows = 8 * 65 * 64 * 4 + 1024 * 4 * (WIDTH + 3 * DIM) + 1024 * 8 * WIDTH
    assert whole > activations
    assert parts < parameters_and_rows + activations / 8


def test_rows_in_lists_and_dicts_are_split_and_the_rest_is_not():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, DIM)
            self.sizes: list[int] = []

        def forward(self, batch, positions, scale=1.0):
            self.sizes.append(len(batch["ids"]))
            z = (self.table(batch["ids"]) + positions) * batch["mask"][..., None] * scale
            return OrderedDict(pooled=z.sum(dim=1), tokens=[z])

    model = Tokens()
    batch = {"ids": torch.arange(20).view(5, 4) % 10, "mask": torch.ones(5, 4)}
    positions = torch.randn(4, DIM)
    expected = model(batch, positions, scale=2.0)
    with micro_batched(model, 2):
        found = model(batch, positions, scale=2.0)
    assert model.sizes == [5, 1, 2, 2]
    assert isinstance(found, OrderedDict)
    assert torch.equal(found["pooled"], expected["pooled"])
    assert torch.equal(found["tokens"][0], expected["tokens"][0])


def test_sparse_rows():
    x, model = rows(), encoder()
    contrast(model(x)).backward()
    expected = gradients(model)
    model.zero_grad()
    with micro_batched(model, 5):
        contrast(model(x.to_sparse_csr())).backward()
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)


def test_what_cannot_be_split_says_so():
    class Pooling(nn.Module):
        def forward(self, x):
            return x.mean(dim=0)

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, 2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += len(x)
            return self.inner(x)

    for module, argument, words in (
        (Pooling(), rows(), r"one output row for each row; Pooling made \(6,\)"),
        (Pooling(), "text", "call of Pooling without any"),
        (Counting().double(), rows(), "Counting changes its buffer seen"),
    ):
        with pytest.raises(ArgumentError, match=words), micro_batched(module, 5):
            module(argument)


def test_a_copy_made_within_is_a_module_of_its_own():
    model = encoder()
    with micro_batched(model, 5):
        twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(rows()).any()
    assert model(rows()).all()
    assert "forward" not in model.__dict__


class Contrasting(Method):
    def __init__(self):
        super().__init__()
        self.encoder = encoder(nn.BatchNorm1d(16))
        self.sizes: list[int] = []
        self.encoder[0].register_forward_hook(lambda m, args, out: self.sizes.append(len(out)))

    def training_step(self, x, batch_idx):
        if batch_idx == 1 and x.isnan().any():
            raise RuntimeError("NaN")
        return contrast(self.encoder(x))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_callback_splits_training_and_leaves_no_trace():
    model = Contrasting()
    loader = torch.utils.data.DataLoader(rows(16), batch_size=8)
    keys = list(model.state_dict())
    trainer(1, callbacks=[GradientCache(3)]).fit(model, loader)
    assert model.sizes == 2 * [2, 3, 3, 3, 3, 2]
    assert "forward" not in model.encoder.__dict__
    assert list(model.state_dict()) == keys
    broken = rows(16)
    broken[10] = float("nan")
    model = Contrasting()
    with pytest.raises(RuntimeError, match="NaN"):
        trainer(1, callbacks=[GradientCache(3)]).fit(
            model, torch.utils.data.DataLoader(broken, batch_size=8)
        )
    assert "forward" not in model.encoder.__dict__


def test_the_callback_names_wrong_arguments():
    loader = torch.utils.data.DataLoader(rows(16), batch_size=8)
    with pytest.raises(ArgumentError, match="submodules of Contrasting, got 'trunk'"):
        trainer(1, callbacks=[GradientCache(3, "trunk")]).fit(Contrasting(), loader)
    with pytest.raises(ArgumentError, match="micro_batch_size must be"):
        GradientCache(0)
