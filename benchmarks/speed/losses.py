"""Loss and gradient of contrastive objectives: streamed against dense, lightly and others.

Two views of n random embeddings of 128 dimensions, temperature 0.1, 100 classes for the supervised
loss. The peer "dense" is the plain form: one matrix of logits, masked, and cross-entropy. Goals:
not slower than dense or any peer; at 8192 rows a fifth of the memory of dense; and at 65,536 rows,
where a matrix of logits takes 64 GiB for NT-Xent and 16 GiB for InfoNCE, less than 1 GiB. InfoNCE
misses the time of dense: a block is computed twice, and unlike NT-Xent's has no mirror image.
"""

from collections.abc import Callable, Sequence

from benchmarks.speed._measure import Goal, Limit, run

DIM, TEMPERATURE, CLASSES = 128, 0.1, 100
FORMS = {
    256: ("nt_xent", "nt_xent, pytorch-metric-learning"),  # of which 2048 rows ask for 64 GiB
    2048: (
        "nt_xent",
        "nt_xent, dense",
        "nt_xent, lightly",
        "info_nce",
        "info_nce, dense",
        "supervised_contrast",
        "supervised_contrast, pytorch-metric-learning",
    ),
    8192: ("nt_xent", "nt_xent, dense", "nt_xent, lightly", "info_nce", "info_nce, dense"),
    65536: ("nt_xent", "info_nce"),
}
CONTENDERS = tuple(f"{form}, n = {n}" for n, forms in FORMS.items() for form in forms)
PEERS = {
    contender: module
    for contender in CONTENDERS
    for name, module in (
        ("lightly", "lightly.loss"),
        ("pytorch-metric-learning", "pytorch_metric_learning.losses"),
    )
    if f", {name}," in contender
}
GOALS = tuple(
    Goal(
        f"{form.partition(',')[0]}, n = {n}",
        f"{form}, n = {n}",
        time=1.0,
        memory=0.2 if n == 8192 and "dense" in form else None,
    )
    for n, forms in FORMS.items()
    for form in forms
    if "," in form
)
LIMITS = tuple(Limit(f"{form}, n = 65536", mebibytes=1024) for form in FORMS[65536])


def prepare(contender: str) -> Callable[[], object]:
    import torch

    form, _, size = contender.rpartition(", n = ")
    views = torch.randn(2, int(size), DIM)
    labels = torch.randint(CLASSES, (int(size),))
    anchor, positive = (view.clone().requires_grad_() for view in views)
    compute = loss(form, labels)
    del views

    def step() -> torch.Tensor:
        anchor.grad = positive.grad = None
        value = compute(anchor, positive)
        value.backward()
        return value.detach()

    return step


def loss(form: str, labels):
    """The objective as a function of the two views."""
    import torch
    import torch.nn.functional as F

    from common.losses import info_nce, nt_xent, supervised_contrast

    n = len(labels)
    objective, _, peer = form.partition(", ")
    if peer == "lightly":
        from lightly.loss import NTXentLoss

        return NTXentLoss(temperature=TEMPERATURE)
    if peer == "pytorch-metric-learning":
        from pytorch_metric_learning import losses

        if objective == "nt_xent":
            other, labels = losses.NTXentLoss(temperature=TEMPERATURE), torch.arange(n)
        else:
            other = losses.SupConLoss(temperature=TEMPERATURE)
        return lambda x, y: other(torch.cat([x, y]), labels.repeat(2))
    if peer == "dense":

        def dense(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
            if objective == "info_nce":
                return F.cross_entropy(x @ y.T / TEMPERATURE, torch.arange(n))
            z = torch.cat([x, y])
            logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
            return F.cross_entropy(logits, torch.arange(2 * n).roll(n))

        return dense
    if objective == "supervised_contrast":
        return lambda x, y: supervised_contrast(x, y, labels=labels, temperature=TEMPERATURE)
    ours = {"nt_xent": nt_xent, "info_nce": info_nce}[objective]
    return lambda x, y: ours(x, y, temperature=TEMPERATURE)


def main(argv: Sequence[str] | None = None) -> int:
    return run("losses", prepare, CONTENDERS, GOALS, argv, peers=PEERS, limits=LIMITS)


if __name__ == "__main__":
    raise SystemExit(main())
