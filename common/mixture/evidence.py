r"""How many clusters: the evidence for splitting a Gaussian cluster in two, or merging two.

Each cluster has a mean and a covariance of its own, with a Normal-inverse-Wishart prior over both.
They integrate out in closed form, so that clusterings of different size can be compared.
"""

import math

import torch
from torch import Tensor

from common.errors import ArgumentError, require, require_int


class NormalInverseWishart:
    r"""Prior of the mean and covariance of a Gaussian.

    .. math:: \Sigma \sim \mathcal{W}^{-1}(\Psi_0, \nu_0), \quad
              \mu \sim \mathcal{N}(m_0, \Sigma / \kappa_0)

    Computed in float64, on any device that has it.

    Args:
        mean: :math:`m_0`, ``(d,)``.
        kappa: :math:`\kappa_0 > 0`, how many observations the prior mean is worth.
        nu: :math:`\nu_0 > d - 1`, degrees of freedom.
        scale: :math:`\Psi_0` is ``scale`` times the identity.

    Source:
        GPC, Zhao et al., ICCV 2023 (arXiv 2305.06144); Murphy, Conjugate Bayesian analysis of the
        Gaussian distribution, 2007, section 8.

    Example:
        >>> prior = NormalInverseWishart(torch.zeros(1), kappa=1.0, nu=2.0, scale=1.0)
        >>> round(prior.log_evidence(torch.tensor([[1.0], [3.0]]), mean=torch.tensor([2.0])), 4)
        -5.1632
    """

    def __init__(self, mean: Tensor, *, kappa: float, nu: float, scale: float):
        d = len(mean)
        require(kappa > 0, "kappa", kappa, "above 0")
        require(nu > d - 1, "nu", nu, f"above d - 1 = {d - 1}")
        require(scale > 0, "scale", scale, "above 0")
        self.mean, self.kappa, self.nu, self.scale = mean, kappa, nu, scale

    def posterior_mean(self, x: Tensor) -> Tensor:
        r""":math:`(n \bar x + \kappa_0 m_0) / (n + \kappa_0)`, ``(d,)``, of ``(n, d)`` rows."""
        return (x.sum(dim=0) + self.kappa * self.mean) / (len(x) + self.kappa)

    def log_evidence(self, x: Tensor, mean: Tensor | None = None) -> float:
        r"""Log of the density of ``(n, d)`` rows when mean and covariance are integrated out.

        .. math::
            \log h = -\tfrac{nd}{2} \log \pi
            + \log \frac{\Gamma_d(\nu / 2)}{\Gamma_d(\nu_0 / 2)}
            + \tfrac{\nu_0}{2} \log |\Psi_0| - \tfrac{\nu}{2} \log |\Psi|
            + \tfrac{d}{2} \log \frac{\kappa_0}{\kappa}, \qquad
            \Psi = \Psi_0 + \sum_i (x_i - \mu)(x_i - \mu)^\top
            + \tfrac{\kappa_0 n}{\kappa} (\mu - m_0)(\mu - m_0)^\top

        with :math:`\kappa = \kappa_0 + n` and :math:`\nu = \nu_0 + n`. Exact for the mean of the
        rows; GPC takes the posterior mean.

        Args:
            x: ``(n, d)``, one row or more.
            mean: :math:`\mu`, ``(d,)``; default the mean of the rows.
        """
        if x.ndim != 2 or not len(x) or x.shape[1] != len(self.mean):
            raise ArgumentError(f"x must be (n, {len(self.mean)}), got {tuple(x.shape)}")
        x, prior_mean = x.double(), self.mean.double()
        mean = x.mean(dim=0) if mean is None else mean.double()
        n, d = x.shape
        kappa, nu = self.kappa + n, self.nu + n
        centred, shift = x - mean, mean - prior_mean
        identity = torch.eye(d).to(x)
        psi = (
            self.scale * identity
            + centred.T @ centred
            + self.kappa * n / kappa * torch.outer(shift, shift)
        )
        log_det = 2 * torch.linalg.cholesky(psi).diagonal().log().sum()
        gammas = x.new_tensor([nu / 2, self.nu / 2]).mvlgamma(d)
        return float(
            gammas[0]
            - gammas[1]
            - n * d / 2 * math.log(math.pi)
            + self.nu / 2 * d * math.log(self.scale)
            - nu / 2 * log_det
            + d / 2 * math.log(self.kappa / kappa)
        )


def log_split_ratio(
    sizes: tuple[int, int], parts: tuple[float, float], whole: float, *, alpha: float = 1.0
) -> float:
    r"""Log of the Hastings ratio of splitting a cluster in two; of merging the two, its negative.

    .. math:: \log H = \log \alpha + \log \Gamma(n_1) + \log h_1 + \log \Gamma(n_2) + \log h_2
              - \log \Gamma(n_1 + n_2) - \log h

    Args:
        sizes: :math:`n_1` and :math:`n_2`, at least 1 each.
        parts: log-evidence of the two parts.
        whole: log-evidence of both in one.
        alpha: concentration of the Dirichlet process; larger favours more clusters.

    Source:
        Chang and Fisher, Parallel sampling of DP mixture models using sub-cluster splits, NeurIPS
        2013; GPC, Zhao et al., ICCV 2023 (arXiv 2305.06144).

    Example:
        >>> round(log_split_ratio((2, 2), (-1.0, -1.0), -5.0), 4)
        1.2082
    """
    require(alpha > 0, "alpha", alpha, "above 0")
    first, second = (require_int("sizes", size, 1) for size in sizes)
    prior = math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)
    return math.log(alpha) + prior + sum(parts) - whole
