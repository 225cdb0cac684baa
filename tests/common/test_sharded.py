"""Memories, momentum copies and whitening on two ranks against a single process."""

import torch

from tests.common.sharded import everything
from tests.ranks import on_ranks


def test_two_ranks_are_one_process(tmp_path):
    torch.manual_seed(0)
    single = everything()
    first, second = on_ranks(everything, tmp_path)
    for name, expected in single["equal"].items():
        torch.testing.assert_close(first["equal"][name], expected, msg=name)
        assert torch.equal(first["equal"][name], second["equal"][name]), name
    for name, expected in single["shared"].items():
        rows = torch.cat([first["shared"][name], second["shared"][name]])
        torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-11, msg=name)
