import torch

from common.distributed import all_reduce, broadcast, gather_rows, rank, shard_sizes, world_size
from tests.common.distributed_ranks import everything_on_each, pairwise_loss, rows
from tests.ranks import on_ranks


def test_two_ranks_act_as_one(tmp_path):
    results = on_ranks(everything_on_each, tmp_path)
    for index, result in enumerate(results):
        assert result["sum"].item() == 3
        assert result["max"].item() == 1
        assert result["broadcast"].item() == 8
        assert result["sizes"] == [2, 3]
        assert torch.equal(result["rows"], rows())
        assert result["first"] == (0, 2)[index]
        own = rows()[:2] if index == 0 else rows()[2:]
        assert torch.equal(result["grad"], 2 * (1 + 4) * own)  # of both ranks' losses

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 3).double()
    z = model(rows(6).double() / 10)
    pairwise_loss(z, z).backward()
    for result in results:
        torch.testing.assert_close(result["parameter_gradient"], model.weight.grad)


def test_one_process_is_the_identity():
    x = rows().requires_grad_()
    assert (world_size(), rank(), shard_sizes(5)) == (1, 0, [5])
    everything, first = gather_rows(x)
    assert everything is x
    assert first == 0
    assert not all_reduce(x).requires_grad
    assert torch.equal(all_reduce(x), x)
    assert torch.equal(broadcast(x), x)
