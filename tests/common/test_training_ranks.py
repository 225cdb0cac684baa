import pytest
import torch

from tests.common.training_ranks import everything, fitted, gradients
from tests.ranks import on_ranks


def test_two_ranks_act_as_one(tmp_path):
    expected = gradients(100, find_unused=False)
    alone = fitted()
    for result in on_ranks(everything, tmp_path):
        for name in ("100 False", "3 False", "3 True"):  # without and with the gradient cache
            assert len(result[name]) == len(expected)
            for found, wanted in zip(result[name], expected, strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10, msg=name)
        for name in ("fit", "sharded"):
            for found, wanted in zip(result[name]["weights"], alone["weights"], strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
            scores = alone["scores"][: 2 if name == "sharded" else 3]
            for found, wanted in zip(result[name]["scores"], scores, strict=True):
                assert len(found) == len(wanted) == 2
                for entry, other in zip(found, wanted, strict=True):
                    assert entry == pytest.approx(other, abs=1e-6)
        # A window is two steps of all ranks: a mean over the same rows.
        assert result["fit"]["readings"] == pytest.approx(alone["readings"], rel=1e-5)
