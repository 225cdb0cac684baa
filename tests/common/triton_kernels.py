"""The fused kernels against the dense form; run with ``TRITON_INTERPRET=1``, without a GPU."""

import torch

from common.losses import _triton


def check(n: int, m: int, d: int, with_bias: bool, with_ids: bool) -> None:
    rows, columns, bias = (torch.randn(*s, requires_grad=True) for s in ((n, d), (m, d), (m,)))
    if not with_bias:
        bias = torch.zeros(m)
    ids = (torch.arange(n) % 4, torch.arange(m) % 5) if with_ids else (None, None)
    dense = rows @ columns.T + bias
    if with_ids:
        dense = dense.masked_fill(ids[0][:, None] == ids[1], -torch.inf)
    expected = dense.logsumexp(dim=1)
    arguments = (rows.detach(), columns.detach(), bias.detach() if with_bias else None, *ids)
    lse = _triton.logsumexp(*arguments)
    torch.testing.assert_close(lse, expected.detach(), rtol=1e-6, atol=1e-6)

    some = expected.isfinite()
    grad = torch.randn(n)
    inputs = [rows, columns, bias] if with_bias else [rows, columns]
    wanted = torch.autograd.grad((expected * grad)[some].sum(), inputs, materialize_grads=True)
    lse = lse.masked_fill(~some, torch.inf)
    got = _triton.gradients(*arguments, lse, grad, (True, True, with_bias))
    torch.testing.assert_close(got[: len(inputs)], list(wanted), rtol=1e-4, atol=1e-5)
    only_rows = _triton.gradients(*arguments, lse, grad, (True, False, False))
    torch.testing.assert_close(only_rows[0], got[0])
    assert only_rows[1:] == [None, None]


if __name__ == "__main__":
    torch.manual_seed(0)
    check(70, 40, 20, with_bias=True, with_ids=True)
    check(33, 20, 65, with_bias=False, with_ids=False)
    check(3, 1, 1, with_bias=False, with_ids=True)  # a row without columns
    nan = _triton.logsumexp(torch.full((2, 4), torch.nan), torch.ones(3, 4), None, None, None)
    assert nan.isnan().all()
