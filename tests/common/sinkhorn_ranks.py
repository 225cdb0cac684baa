"""What the ranks of the tests in ``test_sinkhorn.py`` run."""

from typing import Any

import torch
from torch import Tensor

from common.distributed import rank
from common.errors import ArgumentError
from common.sinkhorn import balanced_codes, doubly_stochastic, transport_plan

CUT = 5  # rows of the first rank


def scores(n: int = 12, k: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, k, generator=generator, dtype=torch.float64)


def masked_scores() -> Tensor:
    s = scores()
    s[0, 1:] = s[7, :2] = -torch.inf
    return s


def marginals() -> tuple[Tensor, Tensor]:
    rows = torch.arange(12.0, dtype=torch.float64) / 66
    return rows, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def own(x: Tensor) -> Tensor:
    return x[:CUT] if rank() == 0 else x[CUT:]


def gradient(mode: str) -> Tensor:
    s = own(scores()).requires_grad_()
    plan = transport_plan(s, epsilon=0.2, tol=1e-12, gradient=mode, distributed=True)
    (plan * (plan + own(scores(12, 4).flip(0)))).sum().backward()
    return s.grad


def refusal() -> str:
    s = own(scores()).clone()
    if rank() == 1:
        s[0, 0] = torch.nan
    try:
        balanced_codes(s, distributed=True)
    except ArgumentError as error:
        return str(error)
    return "accepted"


def everything_on_each() -> dict[str, Any]:
    rows, columns = marginals()
    nothing_on_the_first = scores()[:0] if rank() == 0 else scores()
    return {
        "codes": balanced_codes(own(scores()), distributed=True),
        "sharp": balanced_codes(
            own(scores()), epsilon=1e-3, iterations=300, tol=1e-9, distributed=True
        ),
        "queue": balanced_codes(
            own(scores()), queue=own(scores(24, 4)[12:]), iterations=2, distributed=True
        ),
        "masked": balanced_codes(own(masked_scores()), distributed=True),
        "uneven": balanced_codes(nothing_on_the_first, epsilon=1e-2, distributed=True),
        "plan": transport_plan(own(scores()), own(rows), columns, distributed=True),
        "relaxed": transport_plan(
            own(scores()), own(rows), columns, column_strength=0.3, distributed=True
        ),
        "square": doubly_stochastic(own(scores(12, 12)), epsilon=0.1, distributed=True),
        "refusal": refusal(),
        **{mode: gradient(mode) for mode in ("implicit", "unrolled", "rows")},
    }
