r"""Gradients of a plan: through the iterations, through the fixed point, or through the last step.

At the fixed point :math:`P_{ij} = \exp(s_{ij} / \epsilon + f_i + g_j)` has rows :math:`r` with
:math:`\log r = \log a - \kappa_r f`, where :math:`\kappa_r = \epsilon / \rho_r` is 0 for an exact
marginal, and columns :math:`c` likewise. Differentiated, these equations say for the gradient
:math:`\bar P`, with :math:`W = P \odot \bar P`,

.. math::
    \bar s = \frac{1}{\epsilon} \left( W - P \odot (x 1^\top + 1 y^\top) \right), \qquad
    \begin{pmatrix} (1 + \kappa_r) \operatorname{diag} r & P \\
    P^\top & (1 + \kappa_c) \operatorname{diag} c \end{pmatrix}
    \begin{pmatrix} x \\ y \end{pmatrix} =
    \begin{pmatrix} W 1 \\ W^\top 1 \end{pmatrix}.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from common.autograd import first_derivative_only
from common.sinkhorn._iteration import Problem, column_maxima, solve

# Conjugate gradients for y end earlier, unless the plan is almost a permutation.
MOST_STEPS = 1000


class ImplicitPlan(Function):
    """The plan, with the gradient of the fixed point, or of its rows alone, saving the plan only.

    With ``rows_only`` the column potentials are constants, which leaves :math:`y = 0`.
    """

    @staticmethod
    def forward(
        ctx, scores: Tensor, start: Callable[[Tensor], Tensor], problem: Problem, rows_only: bool
    ) -> Tensor:
        plan = solve(start(scores), problem)
        ctx.save_for_backward(plan)
        ctx.problem, ctx.rows_only = problem, rows_only
        return plan

    @staticmethod
    @first_derivative_only('a plan by this gradient; "unrolled" has one')
    def backward(ctx, grad: Tensor):
        (plan,) = ctx.saved_tensors
        problem = ctx.problem
        with torch.autocast(plan.device.type, enabled=False):
            weighted = plan * grad.to(plan.dtype)
            smallest = torch.finfo(plan.dtype).tiny
            x_scale = plan.sum(dim=1).clamp(min=smallest).div(problem.row_power)  # (1 + kappa) r
            x = weighted.sum(dim=1) / x_scale
            if ctx.rows_only:
                return weighted.addcmul_(plan, x[:, None], value=-1) / problem.epsilon, *[None] * 3
            sums = problem.reduce(plan.sum(dim=0)).clamp(min=smallest)
            # y = scale * z makes the system in z, x eliminated, one with a unit diagonal minus
            # a positive matrix: its spectrum is within [0, 1 + kappa].
            scale = (problem.column_power / sums).sqrt()

            def matrix(z: Tensor) -> Tensor:
                y = scale * z
                return z - scale * problem.reduce(torch.mv(plan.T, torch.mv(plan, y) / x_scale))

            right = problem.reduce(weighted.sum(dim=0) - torch.mv(plan.T, x))
            y = scale * conjugate_gradients(matrix, scale * right)
            x -= torch.mv(plan, y) / x_scale
            weighted -= plan * (x[:, None] + y)
            return weighted / problem.epsilon, None, None, None


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """The least solution of a consistent, positive semi-definite system, to rounding."""
    x, residual = torch.zeros_like(right), right
    direction, square = right, right.dot(right)
    goal = square * torch.finfo(right.dtype).eps ** 2 * 64
    for _ in range(MOST_STEPS):
        if square <= goal:
            break
        image = matrix(direction)
        curvature = direction.dot(image)
        if curvature <= 0:  # what is left of the right side is rounding outside the range
            break
        x = x + square / curvature * direction
        residual = residual - square / curvature * image
        before, square = square, residual.dot(residual)
        direction = residual + square / before * direction
    return x


def unrolled_plan(scores: Tensor, problem: Problem) -> Tensor:
    """The plan by operations that autograd records."""
    epsilon, tol = problem.epsilon, problem.tol
    with torch.no_grad():
        # Constants of the potentials: they bring the largest exponents of all columns, then of all
        # rows, to 0, and change nothing else.
        g = -column_maxima(scores)
        f = -(scores + g).amax(dim=1)

    def log_factor(log_marginal: Tensor, log_sums: Tensor, power: float, potential: Tensor):
        if power == 1:
            return log_marginal - log_sums
        return power * (log_marginal - log_sums) - (1 - power) * potential

    z = ((scores + g) + f[:, None]) / epsilon
    f, g = f / epsilon, g / epsilon
    log_u, log_v = -f, torch.zeros_like(g)
    log_rows, log_columns = problem.rows.log(), problem.columns.log()
    for iteration in range(problem.iterations):
        before = log_v
        sums = (z + log_u[:, None]).logsumexp(dim=0)
        log_v = log_factor(log_columns, sums, problem.column_power, g)
        sums = (z + log_v).logsumexp(dim=1)
        log_u = log_factor(log_rows, sums, problem.row_power, f)
        if iteration > 0 and tol is not None and (log_v - before).abs().max().item() <= tol:
            break
    if problem.row_power == 1:
        return problem.rows[:, None] * (z + log_v).softmax(dim=1)
    return (z + log_u[:, None] + log_v).exp()
