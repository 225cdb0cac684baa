"""What methods ask of entropic optimal transport, on one solver."""

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from common.distributed import all_reduce, gather_rows, shard_sizes
from common.errors import ArgumentError, require, require_int
from common.sinkhorn._gradient import ImplicitPlan, unrolled_plan
from common.sinkhorn._iteration import Problem, solve

Gradient = Literal["implicit", "unrolled", "rows"] | None
GRADIENTS = ("implicit", "unrolled", "rows", None)


def balanced_codes(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    tol: float | None = None,
    queue: Tensor | None = None,
    gradient: Gradient = None,
    distributed: bool = False,
) -> Tensor:
    r"""Soft assignment that uses all clusters about equally: the codes of SwAV.

    With :math:`Q = \exp(S / \epsilon)`, in each iteration every column (cluster) is divided by its
    sum and every row (sample) by its sum. The last step makes rows sum to 1 exactly; columns sum to
    *n / k* the more closely, the more iterations. A constant added to all scores, or to those of
    one cluster, changes nothing; one added to a row changes nothing at convergence.

    Computed so that neither large scores nor a small ``epsilon`` leave the range of floating
    point, see :func:`transport_plan`, which also takes other shares of the clusters.

    Args:
        scores: *S*, ``(n, k)``, higher for a better match: cosines, or negative distances. ``-inf``
            forbids an assignment; each row and each column keeps a finite score.
        epsilon: strength of the entropy, in the unit of the scores. Small: hard codes; large:
            all codes *1 / k*.
        iterations: at most; 3 in SwAV.
        tol: if given, also stops once no column sum is off by more than this, relatively. Waits for
            the device in each iteration.
        queue: ``(m, k)`` scores of earlier samples, which take part in the balance and are not
            returned.
        gradient: None for constants, as targets are; else as in :func:`transport_plan`.
        distributed: the ranks hold the rows of one batch.

    Returns:
        ``(n, k)`` codes, float32 (float64 for float64 input).

    Distributed: columns are summed over the rows (and queues) of all ranks; each rank gets the
    codes of its own rows, as one process with all rows would.

    Raises:
        ArgumentError: an argument out of its range, NaN or ``+inf`` in the scores, or a row or
            column without a finite score.

    Source:
        SwAV, Caron et al., NeurIPS 2020, section 3.1 and the authors' published procedure.

    Example:
        >>> balanced_codes(torch.tensor([[0.1, 0.0], [0.0, 0.1]]))
        tensor([[0.8808, 0.1192],
                [0.1192, 0.8808]])
        >>> balanced_codes(torch.tensor([[0.9, 0.8], [0.9, 0.6]])).argmax(dim=1)
        tensor([1, 0])
    """
    scores = _matrix("scores", scores)
    n, everything = len(scores), scores
    if queue is not None:
        queue = _matrix("queue", queue)
        require(
            queue.shape[1] == scores.shape[1] and queue.device == scores.device,
            "queue",
            f"{tuple(queue.shape)} on {queue.device}",
            f"(m, {scores.shape[1]}) on {scores.device}",
        )
        everything = torch.cat([queue.to(scores.dtype), scores])
    total = _total_rows("scores", everything, distributed)
    k = scores.shape[1]
    codes = _transport(
        "scores",
        everything,
        everything.new_ones(len(everything)),
        everything.new_full((k,), total / k),
        epsilon=epsilon,
        iterations=iterations,
        tol=tol,
        gradient=gradient,
        distributed=distributed,
        growth=math.log(max(total, k)),
    )
    return codes if queue is None else codes[len(codes) - n :].clone()  # frees the queue's codes


def transport_plan(
    scores: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    *,
    epsilon: float = 0.05,
    iterations: int = 1000,
    tol: float | None = 1e-4,
    row_strength: float = math.inf,
    column_strength: float = math.inf,
    gradient: Gradient = "implicit",
    distributed: bool = False,
) -> Tensor:
    r"""Entropic optimal transport between two marginals, exact or relaxed.

    .. math::
        \max_{P \ge 0} \sum_{ij} P_{ij} S_{ij} - \epsilon \sum_{ij} P_{ij} (\log P_{ij} - 1)
        - \rho_r \mathrm{KL}(P 1 \,|\, a) - \rho_c \mathrm{KL}(P^\top 1 \,|\, b), \qquad
        \mathrm{KL}(p \,|\, q) = \sum_i p_i \log (p_i / q_i) - p_i + q_i

    An infinite strength :math:`\rho` makes its marginal a constraint. For costs pass ``-cost``.
    Columns and rows are adjusted in turn, columns first, so that exact rows are met to rounding at
    any time. Everything happens in the log domain in effect, at the price of matrix-vector
    products: potentials stay inside the exponent and only their changes are factors.

    Args:
        scores: *S*, ``(n, k)``, higher for a better match. ``-inf`` forbids an entry; each row and
            each column (of positive marginal) keeps a finite score.
        rows: *a*, ``(n,)``, at least 0; by default *1 / n* each.
        columns: *b*, ``(k,)``, at least 0; by default equal shares of the total of ``rows``. If
            both marginals are exact their totals agree; rounding, up to 1 in 1000, is put right on
            the columns.
        epsilon: strength of the entropy, in the unit of the scores.
        iterations: at most.
        tol: stops with the first iteration that changes no column's factor by more than this,
            relatively; for exact marginals, once no column sum is off by more. None: never.
        row_strength: :math:`\rho_r`, in the unit of the scores.
        column_strength: :math:`\rho_c`. If both are finite, the mass of the plan is free: large
            where scores are positive, small where they are negative.
        gradient: of the plan with respect to the scores; marginals are constants. ``"implicit"``:
            that of the converged plan, by conjugate gradients, in the memory of the plan.
            ``"unrolled"``: through the iterations that were made, whose memory it takes; can be
            differentiated twice. ``"rows"``: through the last adjustment of the rows, with
            the columns' potentials constant; costs next to nothing. None: constants.
        distributed: the ranks hold the rows of ``scores`` and of ``rows``; ``columns`` are the same
            on all.

    Returns:
        *P*, ``(n, k)``, float32 (float64 for float64 scores).

    Distributed: columns are summed over the rows of all ranks; each rank gets its rows of the plan.
    The gradient is that of the sum over ranks of their losses; every rank has to take part in the
    backward pass. ``"unrolled"`` gathers the scores of all ranks.

    Raises:
        ArgumentError: an argument out of its range, exact marginals of different total, NaN or
            ``+inf`` in the scores, a row or column without a finite score, or a free mass that
            floating point cannot hold.

    Source:
        Cuturi, Sinkhorn distances, NeurIPS 2013; Schmitzer, Stabilized sparse scaling algorithms
        for entropy regularized transport problems, SIAM J. Sci. Comput. 2019 (potentials in the
        exponent); Chizat et al., Scaling algorithms for unbalanced optimal transport problems,
        Math. Comp. 2018 (relaxed marginals).

    Example:
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> transport_plan(-cost, torch.tensor([0.7, 0.3]), epsilon=0.5)
        tensor([[0.4879, 0.2121],
                [0.0121, 0.2879]])
        >>> relaxed = transport_plan(
        ...     -cost, torch.tensor([0.7, 0.3]), epsilon=0.5, column_strength=1.0
        ... )
        >>> relaxed.sum(dim=0)
        tensor([0.5782, 0.4218])
    """
    scores = _matrix("scores", scores)
    n, k = scores.shape
    n_rows = _total_rows("scores", scores, distributed)
    for name, strength in (("row_strength", row_strength), ("column_strength", column_strength)):
        require(strength > 0, name, strength, "above 0")
    a = scores.new_full((n,), 1 / n_rows)
    if rows is not None:
        a = _marginal("rows", rows, scores, n, distributed)
    total = (all_reduce(a.sum()) if distributed else a.sum()).item()
    b = scores.new_full((k,), total / k)
    if columns is not None:
        b = _marginal("columns", columns, scores, k, distributed)
    column_total = b.sum().item()
    for name, value in (("rows", total), ("columns", column_total)):
        require(0 < value < math.inf, name, value, "of a positive, finite sum")
    if row_strength == column_strength == math.inf:
        if abs(column_total - total) > 1e-3 * total:
            raise ArgumentError(
                f"rows and columns must have the same sum, got {total:g} and {column_total:g}"
            )
        b = b * (total / column_total)
    positive_rows, positive_columns = a > 0, b > 0
    smallest = torch.cat([a[positive_rows], b[positive_columns]]).amin()
    if distributed:
        smallest = all_reduce(smallest, "min")
    solve_from = partial(
        _transport,
        "scores",
        epsilon=epsilon,
        iterations=iterations,
        tol=tol,
        row_strength=row_strength,
        column_strength=column_strength,
        gradient=gradient,
        distributed=distributed,
        growth=math.log(max(total, column_total) / smallest.item()),
    )
    if positive_rows.all() and positive_columns.all():
        return solve_from(scores, a, b)
    i, j = positive_rows.nonzero(), positive_columns.nonzero()[:, 0]
    plan = solve_from(scores[i, j], a[i[:, 0]], b[j])
    return torch.zeros_like(scores).index_put((i, j), plan)


def doubly_stochastic(
    affinity: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 1000,
    tol: float | None = 1e-4,
    gradient: Gradient = "implicit",
    distributed: bool = False,
) -> Tensor:
    r"""The matrix :math:`\exp(A_{ij} / \epsilon + f_i + g_j)` whose rows and columns sum to 1.

    It is the projection of an affinity on the doubly stochastic matrices with entropy of strength
    ``epsilon``: near a permutation for a small one, *1 / n* for a large one, symmetric if the
    affinity is. Rows are adjusted first; then columns and rows in turn, so that rows sum to 1 to
    rounding at any time.

    Args:
        affinity: *A*, ``(n, n)``, such as inner products; ``-inf`` forbids an entry.
        epsilon: in the unit of the affinity.
        iterations: at most, of columns and rows, after the first adjustment of the rows. MLC makes
            2, which are 5 half-steps, with ``tol=None`` and ``gradient="rows"``.
        tol: stops once no column sum is off by more than this. None: never.
        gradient: as in :func:`transport_plan`; in ``"rows"`` column potentials are constants.
        distributed: the ranks hold the rows of ``affinity``.

    Returns:
        ``(n, n)``, float32 (float64 for float64 input).

    Distributed: as in :func:`transport_plan`.

    Raises:
        ArgumentError: as in :func:`transport_plan`, or a matrix that is not square.

    Source:
        Sinkhorn and Knopp, Pacific J. Math. 1967; MLC, Ding et al., ICCV 2023.

    Example:
        >>> doubly_stochastic(torch.eye(2), epsilon=0.5)
        tensor([[0.8808, 0.1192],
                [0.1192, 0.8808]])
    """
    affinity = _matrix("affinity", affinity)
    n = _total_rows("affinity", affinity, distributed)
    require(affinity.shape[1] == n, "affinity", tuple(affinity.shape), f"square, with {n} columns")
    return _transport(
        "affinity",
        affinity,
        affinity.new_ones(len(affinity)),
        affinity.new_ones(n),
        epsilon=epsilon,
        iterations=iterations,
        tol=tol,
        gradient=gradient,
        distributed=distributed,
        growth=math.log(n),
        rows_first=True,
    )


def _transport(
    name: str,
    scores: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    epsilon: float,
    iterations: int,
    tol: float | None,
    gradient: Gradient,
    distributed: bool,
    growth: float,
    row_strength: float = math.inf,
    column_strength: float = math.inf,
    rows_first: bool = False,
) -> Tensor:
    """The plan for marginals > 0 that agree; ``name`` is what a caller calls the scores."""
    require(1e-20 <= epsilon <= 1e20, "epsilon", epsilon, "between 1e-20 and 1e20")
    iterations = require_int("iterations", iterations, 1)
    require(tol is None or tol >= 0, "tol", tol, "at least 0, or None")
    require(gradient in GRADIENTS, "gradient", gradient, "implicit, unrolled, rows or None")
    with torch.autocast(scores.device.type, enabled=False):
        lowest, highest, masked = _range(name, scores.detach(), distributed)
        largest = torch.finfo(scores.dtype).max
        most = 0.9 * math.log(largest) * (row_strength + column_strength + epsilon)
        if highest > most:
            raise ArgumentError(
                f"{name} must not exceed {most:g} with these strengths, "
                f"for the plan's mass to stay finite, got {highest:g}"
            )
        unit = 1.0
        if max(abs(lowest), abs(highest)) > 1e-4 * largest:
            unit = 2.0**-20  # differences of scores are then finite
            scores = scores * unit
        lowest, highest, unit_epsilon = unit * lowest, unit * highest, unit * epsilon
        if rows_first:  # of scores that are then at most 0
            spread = unit_epsilon * math.log(scores.shape[1])
            lowest, highest = lowest - highest - spread, 0.0
        problem = Problem(
            rows=rows,
            columns=columns,
            epsilon=unit_epsilon,
            iterations=iterations,
            tol=tol,
            row_power=1 / (1 + epsilon / row_strength),
            column_power=1 / (1 + epsilon / column_strength),
            growth=growth,
            range=math.inf if masked else highest - lowest,
            highest=highest,
            distributed=distributed,
        )
        start = partial(_adjust_rows, epsilon=unit_epsilon) if rows_first else _unchanged
        if gradient is None or not (scores.requires_grad and torch.is_grad_enabled()):
            return solve(start(scores.detach()), problem)
        if gradient != "unrolled":
            return ImplicitPlan.apply(scores, start, problem, gradient == "rows")
        if not distributed:
            return unrolled_plan(start(scores), problem)
        everything, first = gather_rows(scores)
        all_rows, _ = gather_rows(rows)
        plan = unrolled_plan(start(everything), replace(problem, rows=all_rows))
        return plan[first : first + len(rows)]


def _unchanged(scores: Tensor) -> Tensor:
    return scores


def _adjust_rows(scores: Tensor, epsilon: float) -> Tensor:
    """Scores plus the row potentials that make the rows of ``exp(scores / epsilon)`` sum to 1."""
    scores = scores - scores.detach().amax(dim=1, keepdim=True)
    return scores - epsilon * (scores / epsilon).logsumexp(dim=1, keepdim=True)


def _range(name: str, scores: Tensor, distributed: bool) -> tuple[float, float, bool]:
    """Lowest and highest finite score over all ranks, and whether any is ``-inf``.

    Every rank raises if one has to: none is left waiting.
    """

    def reduce(x: Tensor) -> Tensor:
        return all_reduce(x, "max") if distributed else x

    extremes = scores.new_full((2,), -torch.inf)
    if len(scores):
        lowest, highest = scores.aminmax()
        extremes = torch.stack([-lowest, highest]).where(~highest.isnan(), torch.inf)
    minus_lowest, highest = reduce(extremes).tolist()
    if highest == math.inf:
        raise ArgumentError(f"{name} must be finite or -inf, got NaN or +inf")
    masked = minus_lowest == math.inf
    if masked:
        allowed = scores > -torch.inf
        closed = ~allowed.any(dim=1).all().view(1)
        open_columns, closed = reduce(torch.cat([allowed.any(dim=0), closed]).int()).split(
            [scores.shape[1], 1]
        )
        if closed.item() or not open_columns.all():
            raise ArgumentError(f"{name} must have a score above -inf in every row and column")
        finite = (-scores).where(allowed, -torch.inf).flatten()
        lowest_here = finite.amax() if len(scores) else extremes[0]
        minus_lowest = reduce(lowest_here.view(1)).item()
    return -minus_lowest, highest, masked


def _matrix(name: str, x: Tensor) -> Tensor:
    """In at least float32."""
    matrix = isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point() and x.shape[1] > 0
    got = (x.dtype, *x.shape) if isinstance(x, Tensor) else type(x).__name__
    require(matrix, name, got, "floating point and (n, k) with k of at least 1")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _total_rows(name: str, x: Tensor, distributed: bool) -> int:
    total = sum(shard_sizes(len(x), x.device)) if distributed else len(x)
    require(total > 0, name, tuple(x.shape), "of at least one row")
    return total


def _marginal(name: str, x: Tensor, scores: Tensor, length: int, distributed: bool) -> Tensor:
    got = (tuple(x.shape), str(x.device)) if isinstance(x, Tensor) else type(x).__name__
    fits = isinstance(x, Tensor) and x.shape == (length,) and x.device == scores.device
    require(fits, name, got, f"a ({length},) tensor on {scores.device}")
    x = x.detach().to(scores.dtype)
    valid = ((x >= 0) & x.isfinite()).all().int()
    if distributed:
        valid = all_reduce(valid, "min")
    if not valid.item():
        raise ArgumentError(f"{name} must be finite and at least 0, got negative, NaN or infinity")
    return x
