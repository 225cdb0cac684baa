import copy
from math import cos, pi

import numpy as np
import pytest
import torch
from timm.optim import Lars
from torch import nn

from common.errors import ArgumentError
from common.training import LARS, Method, parameter_groups, warmup_cosine, warmup_cosine_factor
from tests.graphs.blobs import trainer


def step(weight, grad, **settings):
    parameter = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    optimizer = LARS([parameter], **settings)
    parameter.grad = torch.tensor(grad, dtype=torch.float64)
    optimizer.step()
    return parameter.data.flatten().tolist()


W, G = [[3.0, 4.0]], [[0.6, -0.8]]  # norms 5 and 1


def test_a_step_by_hand():
    # Denominator 1 + 0.1 * 5 = 1.5, ratio 0.3 * 5 / 1.5 = 1, update g + 0.1 w = (0.9, -0.4).
    settings = {"lr": 2.0, "weight_decay": 0.1, "trust_coefficient": 0.3, "epsilon": 0.0}
    assert step(W, G, **settings) == pytest.approx([3 - 1.8, 4 + 0.8])
    # |g + 0.1 w| = sqrt(0.97), ratio 1.5 / sqrt(0.97).
    ratio = 1.5 / 0.97**0.5
    expected = [3 - 2 * ratio * 0.9, 4 + 2 * ratio * 0.4]
    assert step(W, G, decay_first=True, **settings) == pytest.approx(expected)
    # The ratio over lr is 0.5; a trust coefficient of 3 would give 5, clipped to 1.
    assert step(W, G, clip=True, **settings) == pytest.approx([3 - 0.9, 4 + 0.4])
    clipped = {**settings, "trust_coefficient": 3.0}
    assert step(W, G, clip=True, **clipped) == pytest.approx([3 - 1.8, 4 + 0.8])


def test_vectors_are_plain_sgd_unless_included():
    settings = {"lr": 2.0, "weight_decay": 0.1, "trust_coefficient": 0.3, "epsilon": 0.0}
    assert step(W[0], G[0], **settings) == pytest.approx([3 - 1.2, 4 + 1.6])
    included = step(W[0], G[0], exclude_vectors=False, **settings)
    assert included == pytest.approx(step(W, G, **settings))


@pytest.mark.parametrize("decay_first", [False, True])
def test_norms_of_zero_do_not_scale(decay_first):
    settings = {"lr": 1.0, "weight_decay": 0.1, "decay_first": decay_first}
    assert step([[0.0, 0.0]], G, **settings) == pytest.approx([-0.6, 0.8])
    unmoved = step(W, [[0.0, 0.0]], epsilon=0.0, **settings)
    # g + 0.1 w has norm 0.5: the step is a thousandth of 5 long.
    assert unmoved == pytest.approx([2.997, 3.996] if decay_first else W[0])


@pytest.mark.parametrize("clip", [False, True])
def test_steps_equal_timms(clip):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3, bias=False), nn.Linear(5, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(8, 5)
    optimizers = (
        LARS(ours.parameters(), lr=0.3, weight_decay=0.01, trust_coefficient=0.5, clip=clip),
        Lars(
            theirs.parameters(),
            lr=0.3,
            momentum=0.9,
            weight_decay=0.01,
            trust_coeff=0.5,
            trust_clip=clip,
        ),
    )
    for _ in range(5):
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            module.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_momentum_survives_a_checkpoint():
    def run(model, optimizer, steps):
        for _ in range(steps):
            model.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()

    straight = nn.Linear(3, 2)
    optimizer = LARS(straight.parameters(), lr=0.1, trust_coefficient=0.1)
    run(straight, optimizer, 2)
    resumed = nn.Linear(3, 2)
    resumed.load_state_dict(straight.state_dict())
    again = LARS(resumed.parameters(), lr=9.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, opt in ((straight, optimizer), (resumed, again)):
        run(model, opt, 2)
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(straight.bias, resumed.bias)


def test_wrong_settings_are_named():
    for name in ("lr", "momentum", "weight_decay", "trust_coefficient", "epsilon"):
        with pytest.raises(ArgumentError, match=f"{name} must be at least 0, finite, got -1"):
            LARS([nn.Parameter(torch.ones(1))], **{"lr": 1.0, name: -1})
    with pytest.raises(ArgumentError, match="weight_decay"):
        parameter_groups(nn.Linear(1, 1), float("nan"))


def test_groups():
    module = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 1),
            "norm": nn.BatchNorm2d(4),
            "layer_norm": nn.LayerNorm((4, 2)),  # its weight has two dimensions
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
        }
    )
    module.register_parameter("temperature", nn.Parameter(torch.ones(())))
    weights, rest = parameter_groups(module, 0.3)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decaying = {names[id(parameter)] for parameter in weights["params"]}
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight"} <= decaying
    assert not {n for n in decaying if "norm" in n or n.endswith("bias") or "frozen" in n}
    assert len(weights["params"]) + len(rest["params"]) == len(names) - 2
    (only,) = parameter_groups(nn.Linear(2, 2, bias=False), 0.3)
    assert only["weight_decay"] == 0.3


def test_the_schedule_of_swav():
    base, start, final, n_w, n_c = 4.8, 0.3, 0.0048, 10, 90
    expected = np.linspace(start, base, n_w).tolist() + [
        final + (base - final) * (1 + cos(pi * t / n_c)) / 2 for t in range(n_c)
    ]
    found = [
        base
        * warmup_cosine_factor(
            t, n_w + n_c, n_w, start=start / base, end=final / base, reach_base=True
        )
        for t in range(n_w + n_c)
    ]
    assert found == pytest.approx(expected)


def test_the_schedule_of_pixpro():
    found = [warmup_cosine_factor(t, 100, 5, start=0.01) for t in range(101)]
    assert found[:6] == pytest.approx([0.01 + 0.99 * t / 5 for t in range(6)])
    assert found[5:] == pytest.approx([(1 + cos(pi * t / 95)) / 2 for t in range(96)])
    assert warmup_cosine_factor(1000, 100, 5, end=0.2) == 0.2
    assert warmup_cosine_factor(3, 5, 5) == 0.6  # warm-up only


class Scheduled(Method):
    def __init__(self, **schedule):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.schedule = schedule
        self.rates: list[float] = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.weight.square().sum()

    def configure_optimizers(self):
        return warmup_cosine(LARS([self.weight], lr=2.0), self.trainer, **self.schedule)


def loader(batches: int = 6):
    return torch.utils.data.DataLoader(torch.zeros(batches, 1), batch_size=1)


def test_every_step_of_a_fit_has_its_rate(tmp_path):
    model = Scheduled(warmup_epochs=0.5, start=0.1)
    fitting = trainer(3, accumulate_grad_batches=2)
    fitting.fit(model, loader())  # 3 epochs of 3 steps of 2 batches
    factors = [warmup_cosine_factor(t, 9, 2, start=0.1) for t in range(9)]
    assert model.rates == pytest.approx([2 * factor for factor in factors for _ in range(2)])
    fitting.save_checkpoint(tmp_path / "a.ckpt")
    longer = Scheduled(warmup_epochs=0.5, start=0.1)
    trainer(4, accumulate_grad_batches=2).fit(
        longer, loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    factors = [warmup_cosine_factor(t, 12, 2, start=0.1) for t in range(9, 12)]
    assert longer.rates[2:] == pytest.approx([2 * factor for factor in factors[1:] for _ in "ab"])


def test_schedules_without_an_end_or_beyond_it_are_refused():
    with pytest.raises(ArgumentError, match="a cosine needs an end"):
        trainer(-1).fit(Scheduled(), loader())
    with pytest.raises(ArgumentError, match="warmup_epochs must be from 0 to the 2 epochs"):
        trainer(2).fit(Scheduled(warmup_epochs=3), loader())
    with pytest.raises(ArgumentError, match="start must be from 0 to 1, got 2"):
        warmup_cosine_factor(0, 1, start=2)
    with pytest.raises(ArgumentError, match="warmup_steps"):
        warmup_cosine_factor(0, 1, 2)
