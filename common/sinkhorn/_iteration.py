r"""The iteration of Sinkhorn and Knopp in the log domain, at the price of the plain one.

The plan is :math:`P_{ij} = \exp(s_{ij} / \epsilon + f_i + g_j)`. The plain iteration multiplies the
kernel :math:`\exp(s / \epsilon)` with vectors and leaves the range of floating point; the one in
the log domain takes a log-sum-exp of all entries, twice an iteration. Here the potentials *f* and
*g* are split: the larger part is inside the exponential, which is evaluated once, and the rest are
the factors *u* and *v* of a matrix-vector product. When a factor grows too large, it moves into the
potential and the kernel is evaluated anew.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.distributed import all_reduce

# Entries of a block of the kernel: 2 MiB in float32 stay in the cache between the operations
# on it. Elsewhere the operations are launched on the whole.
BLOCK_ENTRIES = 1 << 19


@dataclass(frozen=True)
class Problem:
    """What the plan of some scores ``(n, k)`` is to satisfy, and for how long to try.

    Args:
        rows: marginal ``(n,)`` > 0.
        columns: marginal ``(k,)`` > 0, the same on every rank.
        epsilon: in the unit of the scores.
        row_power: 1 for an exact marginal, less for a relaxed one: strength / (strength + epsilon).
        column_power: likewise.
        growth: bound on the logarithm of the factor by which an iteration raises u or v.
        range: largest minus smallest finite score, over all ranks; infinite if any is ``-inf``.
        highest: the largest score, over all ranks.
    """

    rows: Tensor
    columns: Tensor
    epsilon: float
    iterations: int
    tol: float | None
    row_power: float
    column_power: float
    growth: float
    range: float
    highest: float
    distributed: bool

    def reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        return all_reduce(x, op) if self.distributed else x


@torch.no_grad()
def solve(scores: Tensor, problem: Problem) -> Tensor:
    """The plan ``(n, k)``: columns and rows in turn, so that exact rows are met to rounding."""
    kernel = torch.empty_like(scores)
    exponent = math.log(torch.finfo(scores.dtype).max)
    # Without underflow in the kernel the factors may use most of the range. Otherwise an entry that
    # was set to 0, below exp(-0.9 * exponent), must not matter after multiplication by both.
    narrow = (
        problem.range <= exponent / 2 * problem.epsilon
        and problem.row_power == problem.column_power == 1
    )
    limit = min((0.7 if narrow else 0.25) * exponent, 0.95 * exponent - problem.growth)

    f = torch.zeros_like(problem.rows)
    column_sums = torch.zeros_like(problem.columns)
    if narrow:
        g = scores.new_tensor(-problem.highest)
    else:
        g = -problem.reduce(column_maxima(scores), "max")
    for block, out in _blocks(scores, kernel):
        torch.add(block, g, out=out)
        if narrow:
            out.mul_(1 / problem.epsilon).exp_()
        else:
            _exponentials(out, problem.epsilon)
        column_sums += out.sum(dim=0)
    column_sums = problem.reduce(column_sums)

    v, u_level = torch.ones_like(problem.columns), 0.0
    for iteration in range(problem.iterations):
        before = v
        v, log_v = _factor(problem.columns, column_sums, problem.column_power, g / problem.epsilon)
        last = iteration == problem.iterations - 1
        absorb = iteration == 0 and not narrow
        if iteration > 0:
            if problem.tol is not None:
                last |= (v / before).log_().abs_().max().item() <= problem.tol
            absorb = max(u_level, log_v.abs().max().item()) > limit
        if absorb:
            g = g + problem.epsilon * log_v
            v = torch.ones_like(v)
            f, column_sums = _evaluate(scores, kernel, g, problem)
            if last:
                return kernel
            column_sums, u_level = problem.reduce(column_sums), 0.0
        elif last:
            return _plan(kernel, v, f, problem)
        else:
            # The sum over ranks of the largest |log u| bounds the largest of all ranks.
            reduced = problem.reduce(torch.cat(_scale(kernel, v, f, problem)))
            column_sums, u_level = reduced[:-1], reduced[-1].item()
    raise AssertionError("iterations is at least 1")


def _factor(
    marginal: Tensor, sums: Tensor, power: float, potential: Tensor
) -> tuple[Tensor, Tensor]:
    """What to multiply rows or columns with these sums by, and its logarithm.

    ``potential`` is what their exponents already contain: a relaxed marginal pulls it towards 0.
    """
    if power == 1:
        factor = marginal / sums
        return factor, factor.log()
    smallest = torch.finfo(sums.dtype).tiny  # the sum may vanish where nothing is transported
    log = power * (marginal / sums.clamp(min=smallest)).log() - (1 - power) * potential
    return log.exp(), log


def _scale(kernel: Tensor, v: Tensor, f: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Sums of the columns of the kernel times *u*, ``(k,)``, and the largest ``|log u|``, (1,)."""
    column_sums = torch.zeros_like(v)
    logarithms = [f.new_zeros(1)]
    for rows, potential, block in _blocks(problem.rows, f, kernel):
        u, log_u = _factor(rows, torch.mv(block, v), problem.row_power, potential)
        column_sums.addmv_(block.T, u)
        logarithms.append(log_u)
    return column_sums, torch.cat(logarithms).abs().amax(dim=0, keepdim=True)


def _evaluate(scores: Tensor, kernel: Tensor, g: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Rows in the log domain: the plan of ``g`` goes into ``kernel``; *f* and column sums."""
    column_sums = torch.zeros_like(problem.columns)
    potentials = [torch.empty_like(problem.rows[:0])]
    for rows, block, out in _blocks(problem.rows, scores, kernel):
        torch.add(block, g, out=out)
        largest = out.amax(dim=1, keepdim=True)
        _exponentials(out.sub_(largest), problem.epsilon)
        largest = largest[:, 0] / problem.epsilon
        scale, log_scale = _factor(rows, out.sum(dim=1), problem.row_power, -largest)
        column_sums += out.mul_(scale[:, None]).sum(dim=0)
        potentials.append(log_scale - largest)
    return torch.cat(potentials), column_sums


def _exponentials(x: Tensor, epsilon: float) -> None:
    """``x = exp(x / epsilon)`` for x <= 0, with 0 for what is within a tenth of underflow.

    Exponentials that underflow, and the numbers just before, take up to a hundred times as long.
    """
    lowest = -0.9 * math.log(torch.finfo(x.dtype).max)
    x.mul_(1 / epsilon).clamp_(min=lowest).exp_()
    torch.threshold_(x, 1.001 * math.exp(lowest), 0.0)


def _plan(kernel: Tensor, v: Tensor, f: Tensor, problem: Problem) -> Tensor:
    """Turns the kernel into the plan of ``v`` and its rows."""
    for rows, potential, out in _blocks(problem.rows, f, kernel):
        out.mul_(v)
        scale, _ = _factor(rows, out.sum(dim=1), problem.row_power, potential)
        out.mul_(scale[:, None])
    return kernel


def column_maxima(scores: Tensor) -> Tensor:
    """Also of no rows."""
    if len(scores) == 0:
        return scores.new_full(scores.shape[1:], -torch.inf)
    return scores.amax(dim=0)


def _blocks(*tensors: Tensor):
    """Blocks of rows of all of them, the last of which is ``(n, k)``."""
    matrix = tensors[-1]
    size = len(matrix)
    if matrix.device.type == "cpu":
        size = BLOCK_ENTRIES // matrix.shape[1]
    return zip(*(tensor.split(max(1, size)) for tensor in tensors), strict=True)
