from collections import deque
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.errors import ArgumentError
from common.nn import (
    FeatureQueue,
    MemoryBank,
    MomentumEncoder,
    Prototypes,
    cosine_momentum,
    mlp,
)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


# Heads


def test_layers_come_in_order_with_the_initialisation_of_torch():
    torch.manual_seed(1)
    head = mlp(5, 7, 6, 3)
    torch.manual_seed(1)
    expected = [nn.Linear(width_in, width_out) for width_in, width_out in pairwise((5, 7, 6, 3))]
    assert list(head.state_dict()) == [f"{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")]
    for index, layer in zip((0, 2, 4), expected, strict=True):
        assert torch.equal(head[index].weight, layer.weight)
        assert torch.equal(head[index].bias, layer.bias)
    x = torch.randn(4, 5)
    by_hand = expected[2](expected[1](expected[0](x).relu()).relu())
    torch.testing.assert_close(head(x), by_hand)


def test_norms_and_biases_go_where_they_are_asked_for():
    plain = partial(nn.BatchNorm1d, affine=False)
    head = mlp(4, 8, 8, 2, norm=nn.BatchNorm1d, final_norm=plain, bias=False, final_bias=True)
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert [head[i].bias is None for i in (0, 3, 6)] == [True, True, False]
    assert head[-1].weight is None
    z = head(torch.randn(16, 4))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)


def test_a_head_of_convolutions_acts_on_every_cell_alike():
    head = mlp(4, 8, 2, linear=partial(nn.Conv2d, kernel_size=1), activation=nn.GELU)
    maps = torch.randn(3, 4, 5, 6)
    whole = head(maps)
    assert whole.shape == (3, 2, 5, 6)
    torch.testing.assert_close(whole[:, :, 2:3, 4:5], head(maps[:, :, 2:3, 4:5]))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_head_takes_sparse_rows():
    head, x = mlp(4, 3, 2), torch.eye(4)[:3]
    torch.testing.assert_close(head(x.to_sparse_csr()), head(x))


def test_a_head_needs_two_widths():
    with pytest.raises(ArgumentError, match="dims"):
        mlp(4)


# Prototypes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_are_cosines_in_at_least_float32(dtype):
    prototypes, z = Prototypes(8, 5), unit(torch.randn(6, 8)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = prototypes(z)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for i, row in enumerate(z):
        for j, prototype in enumerate(prototypes.weight):
            expected = torch.cosine_similarity(row.double(), prototype.double(), dim=0)
            assert scores[i, j].item() == pytest.approx(expected.item(), abs=4e-3)
    assert prototypes(torch.zeros(2, 3, 8)).shape == (2, 3, 5)


def test_the_gradient_ignores_or_follows_the_normalisation():
    z, weights = torch.randn(6, 4), torch.randn(6, 3)
    step, forward = Prototypes(4, 3), Prototypes(4, 3, normalize="forward")
    forward.weight.data = 5 * step.weight.data
    assert torch.allclose(step(z), forward(z), atol=1e-6)
    for prototypes in (step, forward):
        (weights * prototypes(z)).sum().backward()
    torch.testing.assert_close(step.weight.grad, weights.T @ z)
    along = (forward.weight.grad * forward.weight).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(3), atol=1e-5, rtol=0)


def test_normalised_in_place_whatever_the_scale():
    prototypes = Prototypes(2, 4)
    prototypes.weight.data = torch.tensor([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]])
    kept = prototypes.weight
    prototypes.normalize_()
    expected = torch.tensor([[0.6, 0.8]] * 3 + [[0.0, 0.0]])
    torch.testing.assert_close(prototypes.weight.data, expected)
    assert prototypes.weight is kept


def test_prototypes_rest_while_frozen():
    prototypes = Prototypes(4, 3, frozen_until=2)
    optimizer = torch.optim.SGD(prototypes.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    moved = []
    for step in range(4):
        before = prototypes.weight.detach().clone()
        optimizer.zero_grad()
        prototypes(torch.ones(1, 4)).sum().backward()
        prototypes.drop_gradient(step)
        optimizer.step()
        moved.append(not torch.equal(before, prototypes.weight))
    assert moved == [False, False, True, True]


# Momentum


def test_the_copy_is_the_exponential_average():
    online = mlp(3, 4, 2).double()
    encoder = MomentumEncoder(online)
    expected = [p.detach().clone() for p in online.parameters()]
    for step in range(6):
        for p in online.parameters():
            p.data += torch.randn_like(p)
        momentum = 0.9 + step / 100
        encoder.update(online, momentum)
        for average, p in zip(expected, online.parameters(), strict=True):
            average.copy_(momentum * average + (1 - momentum) * p.detach())
    for average, copy in zip(expected, encoder.parameters(), strict=True):
        torch.testing.assert_close(copy, average, rtol=1e-12, atol=1e-14)


def test_momentum_one_keeps_and_zero_copies_exactly():
    online, other = nn.Linear(3, 3), nn.Linear(3, 3)
    encoder = MomentumEncoder(online)
    encoder.update(other, 1.0)
    assert torch.equal(encoder.encoder.weight, online.weight)
    encoder.update(other, 0.0)
    assert torch.equal(encoder.encoder.weight, other.weight)
    encoder.encoder.weight.add_(1)
    assert torch.equal(encoder.encoder.weight, other.weight + 1)  # a copy, not the same storage


def test_the_copy_carries_no_gradient():
    encoder = MomentumEncoder(nn.Linear(3, 2))
    x = torch.randn(4, 3, requires_grad=True)
    assert not encoder(x).requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("copy_buffers", [False, True])
def test_batch_statistics_are_the_copys_own_unless_copied(copy_buffers):
    online = nn.BatchNorm1d(2)
    encoder = MomentumEncoder(online, copy_buffers=copy_buffers)
    online(torch.randn(8, 2) + 5)
    encoder(torch.randn(8, 2) - 5)
    own = encoder.encoder.running_mean.clone()
    assert (own < 0).all()
    encoder.update(online, 0.99)
    expected = online.running_mean if copy_buffers else own
    assert torch.equal(encoder.encoder.running_mean, expected)


def test_wrong_updates_are_refused():
    encoder = MomentumEncoder(nn.Linear(3, 2))
    with pytest.raises(ArgumentError, match="encoder"):
        encoder.update(nn.Linear(2, 3), 0.9)
    with pytest.raises(ArgumentError, match="momentum"):
        encoder.update(nn.Linear(3, 2), 1.1)


def test_the_schedule_of_pixpro_and_slotcon():
    assert cosine_momentum(0) == pytest.approx(0.99, abs=1e-12)
    assert cosine_momentum(0.5) == pytest.approx(0.995, abs=1e-12)
    assert cosine_momentum(1) == 1
    assert cosine_momentum(1, 0.99, end=0.999) == 0.999
    with pytest.raises(ArgumentError, match="progress"):
        cosine_momentum(1.01)


# Queue


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 30), max_size=8))
def test_a_queue_holds_the_newest_rows(size, batches):
    queue, expected = FeatureQueue(size, 2), deque(maxlen=size)
    number = 0
    for n in batches:
        numbers = torch.arange(number, number + n)
        queue.enqueue(numbers[:, None] * torch.tensor([1.0, -1.0]), labels=numbers)
        expected.extend(numbers.tolist())
        number += n
        assert len(queue) == len(expected)
        assert queue.is_full == (len(expected) == size)
        assert sorted(queue.labels.tolist()) == list(expected)
        assert torch.equal(queue.features, queue.labels[:, None] * torch.tensor([1.0, -1.0]))


def test_a_queue_may_grow_before_the_backward_pass():
    queue, z = FeatureQueue(4, 3), torch.randn(2, 3, requires_grad=True)
    queue.enqueue(torch.randn(3, 3))
    negatives = queue.features
    expected = negatives.clone()
    loss = (z @ negatives.T).sum()
    queue.enqueue(z)
    loss.backward()
    torch.testing.assert_close(z.grad, expected.sum(dim=0).expand(2, 3))
    assert not queue.features.requires_grad


def test_labels_may_be_rewritten():
    queue = FeatureQueue(4, 1)
    queue.enqueue(torch.arange(3.0)[:, None])
    assert queue.labels.tolist() == [-1, -1, -1]
    queue.labels.copy_(torch.tensor([5, 6, 7]))
    queue.enqueue(torch.ones(1, 1))
    assert queue.labels.tolist() == [5, 6, 7, -1]


def test_a_saved_queue_goes_on_where_it_was():
    first, second = FeatureQueue(5, 2), FeatureQueue(5, 2)
    first.enqueue(torch.randn(7, 2), labels=torch.arange(7))
    second.load_state_dict(first.state_dict())
    more = torch.randn(3, 2)
    for queue in (first, second):
        queue.enqueue(more)
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.labels, second.labels)


def test_wrong_rows_are_refused():
    queue = FeatureQueue(5, 2)
    with pytest.raises(ArgumentError, match=r"features.*\(n, 2\).*\(4, 3\)"):
        queue.enqueue(torch.zeros(4, 3))
    with pytest.raises(ArgumentError, match=r"labels.*\(4,\)"):
        queue.enqueue(torch.zeros(4, 2), labels=torch.zeros(3))
    with pytest.raises(ArgumentError, match="size"):
        FeatureQueue(0, 2)


# Bank


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_bank_equals_the_loops(normalize, momentum):
    bank = MemoryBank(7, 3, momentum=momentum, normalize=normalize).double()
    expected: dict[int, Tensor] = {}
    put = unit if normalize else (lambda row: row)
    for _ in range(5):
        indices = torch.randint(6, (8,))  # index 6 is never seen
        features = torch.randn(8, 3).double()
        bank.update(indices, features)
        last = dict(zip(indices.tolist(), features, strict=True))
        for index, row in last.items():
            old = expected.get(index)
            row = put(row)
            expected[index] = row if old is None else put(momentum * old + (1 - momentum) * row)
    for index, row in enumerate(bank.features):
        torch.testing.assert_close(row, expected.get(index, torch.zeros(3).double()))
        assert bool(bank.seen[index]) == (index in expected)
    assert not bank.seen[6]


def test_a_bank_keeps_no_gradient_and_takes_half_precision():
    bank = MemoryBank(4, 2)
    bank.update(torch.tensor([1]), torch.tensor([[0.0, 2.0]], requires_grad=True))
    bank.update(torch.tensor([3]), torch.tensor([[2.0, 0.0]], dtype=torch.bfloat16))
    assert not bank.features.requires_grad
    assert bank.features.tolist() == [[0, 0], [0, 1], [0, 0], [1, 0]]
    bank.update(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    assert bank.seen.tolist() == [False, True, False, True]


def test_a_saved_bank_comes_back():
    first, second = MemoryBank(4, 2), MemoryBank(4, 2)
    first.update(torch.tensor([1, 2]), torch.randn(2, 2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.seen, second.seen)


def test_wrong_updates_of_a_bank_are_refused():
    bank = MemoryBank(4, 2)
    with pytest.raises(ArgumentError, match=r"indices.*0 to 3.*-1 to 2"):
        bank.update(torch.tensor([-1, 2]), torch.zeros(2, 2))
    with pytest.raises(ArgumentError, match=r"features.*\(2, 2\)"):
        bank.update(torch.tensor([1, 2]), torch.zeros(2, 3))
    with pytest.raises(ArgumentError, match="momentum"):
        MemoryBank(4, 2, momentum=1.0)
