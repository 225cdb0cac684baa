"""Where k-means starts: k-means++ and random rows, over chunks and ranks alike."""

import math

import torch
from torch import Generator, Tensor

from common.kmeans.sources import Rows


def random_rows(rows: Rows, weights: Tensor, n_clusters: int, generator: Generator) -> Tensor:
    """Rows ``(k, d)`` drawn without replacement in proportion to ``(n,)`` weights."""
    own = slice(rows.first, rows.first + len(weights))
    keys = torch.rand(rows.total, generator=generator, dtype=torch.float64)[own]
    scores, index = (keys.log().to(weights) / weights).topk(min(n_clusters, len(weights)))
    scores, index = rows.ranks.gather(scores), rows.ranks.gather(index + rows.first)
    return rows.fetch(index[scores.topk(n_clusters).indices])


def plus_plus(rows: Rows, weights: Tensor, draws: Tensor, given: Tensor) -> Tensor:
    """Greedy k-means++ seeds ``(r, k, d)`` from random integers ``(r, k, trials)``.

    Each round draws ``trials`` rows in proportion to their weighted cost and keeps the one that
    lowers the objective most. A row is drawn once; when every row has cost 0, the last one is.
    ``given`` are ``(m, d)`` seeds that there are already.
    """
    restarts, n_clusters, _ = draws.shape
    each = torch.arange(restarts, device=weights.device)
    cost = torch.full((restarts, len(weights)), math.inf, dtype=given.dtype, device=given.device)
    for seed in given:
        cost = torch.minimum(cost, _distances(rows, seed[None, None])[:, 0])
    seeds = []
    for j in range(n_clusters):
        first = not j and not len(given)
        mass = weights.expand(restarts, -1) if first else cost * weights
        index = draw(rows, mass, draws[:, j, :1] if first else draws[:, j])  # (r, t)
        candidates = rows.fetch(index)  # (r, t, d)
        costs = torch.minimum(cost[:, None], _distances(rows, candidates))  # (r, t, n)
        best = rows.ranks.reduce(costs @ weights).argmin(dim=1)
        cost = costs[each, best]
        own = index[each, best] - rows.first
        here = (own >= 0) & (own < len(weights))
        cost[each[here], own[here]] = 0
        seeds.append(candidates[each, best])
    return torch.stack(seeds, dim=1)


def draw(rows: Rows, mass: Tensor, draws: Tensor) -> Tensor:
    """Rows ``(r, t)`` in proportion to ``(r, n)`` masses, from 31-bit random integers ``(r, t)``.

    The distribution is summed up in integers: exact for any n, the same on every device, and the
    same however many ranks share the rows.
    """
    levels = 2**62 // rows.total
    largest = rows.ranks.reduce(mass.amax(dim=1, keepdim=True), "max")
    shares = mass / largest.clamp_min(torch.finfo(mass.dtype).tiny)
    cumulated = (shares * levels).long().cumsum(dim=1)  # (r, n)
    ends = rows.ranks.gather(cumulated[:, -1][None]).cumsum(dim=0)  # (ranks, r)
    total = ends[-1][:, None]
    high, low = total >> 31, total & (2**31 - 1)
    target = draws * high + (draws * low >> 31)  # draws * total / 2^31 without overflow
    own = target - (ends[rows.ranks.own][:, None] - cumulated[:, -1:])
    last = rows.first + mass.shape[1] == rows.total
    here = (own >= 0) & ((own < cumulated[:, -1:]) | last)
    index = torch.searchsorted(cumulated, own, right=True).clamp_max_(mass.shape[1] - 1)
    return rows.ranks.reduce(torch.where(here, index + rows.first, 0))


def _distances(rows: Rows, candidates: Tensor) -> Tensor:
    """Squared distances ``(r, t, n)`` of candidates ``(r, t, d)`` from the own rows."""
    flat = candidates.flatten(0, 1)
    own = flat.square().sum(dim=1, keepdim=True)
    distances = rows.norms.new_empty(len(flat), len(rows.norms))
    for part, x in rows.blocks():
        product = torch.addmm(rows.norms[part], flat, x.T, alpha=-2)
        distances[:, part] = product.add_(own).clamp_min_(0)
    return distances.view(*candidates.shape[:2], -1)
