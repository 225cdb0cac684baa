import warnings
from math import log

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from common.errors import ArgumentError
from common.training import HealthMonitor, Method
from tests.graphs.blobs import trainer

N, WIDTH, DIM, K = 60, 8, 6, 5


def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(K, WIDTH, generator=generator)
    return centres[torch.arange(N) % K] + 0.3 * torch.randn(N, WIDTH, generator=generator)


class Learner(Method):
    """Embeds two noisy views of each point; what is wrong with it is the objective."""

    def __init__(self, objective, lr: float = 0.1):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(WIDTH, DIM)
        self.prototypes = nn.Linear(DIM, K, bias=False)
        self.objective, self.lr = objective, lr

    def training_step(self, x, batch_idx):
        first = normalize(self.encoder(x + 0.1 * torch.randn_like(x)), dim=1)
        second = normalize(self.encoder(x + 0.1 * torch.randn_like(x)), dim=1)
        return self.objective(self, first, second)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def attract(model, first, second):
    """Nothing but attraction of all points, the shortest way to one point."""
    return {"loss": -(first @ second.T).mean(), "embedding": first}


def contrast(model, first, second):
    scores = first @ second.T / 0.5
    target = torch.arange(len(first))
    return {
        "loss": nn.functional.cross_entropy(scores, target),
        "trivial_loss": log(len(first)),
        "embedding": first,
        "positive_score": scores.diagonal(),
        "negative_score": scores[~torch.eye(len(first), dtype=torch.bool)],
    }


def predict_mean_code(model, first, second):
    """Swapped prediction whose target is the same uniform code for everyone."""
    log_p = (model.prototypes(first) / 0.1).log_softmax(dim=1)
    return {"loss": -log_p.mean(), "trivial_loss": log(K)}


def sharpen(model, first, second):
    """Every point joins the largest cluster."""
    codes = (model.prototypes(first) / 0.1).softmax(dim=1)
    largest = codes.mean(dim=0).argmax()
    return {"loss": -codes[:, largest].log().mean(), "assignment": codes}


def fit(objective, monitor, lr: float = 0.1, epochs: int = 30) -> Learner:
    model = Learner(objective, lr)
    loader = torch.utils.data.DataLoader(points(), batch_size=30)
    trainer(epochs, callbacks=[monitor]).fit(model, loader)
    return model


def warned(objective, **options) -> tuple[list[str], HealthMonitor]:
    monitor = HealthMonitor(window=4, patience=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(objective, monitor, **options)
    return [str(w.message) for w in caught if "unhealthy" in str(w.message)], monitor


@pytest.mark.parametrize(
    ("objective", "lr", "words"),
    [
        (attract, 3.0, ["embeddings point the same way", "stop-gradient"]),
        (predict_mean_code, 0.5, ["is stuck at 1.609", "lower epsilon"]),
        (sharpen, 1.0, ["All samples are in 1 of 5 clusters", "Sinkhorn"]),
        (contrast, float("nan"), ["is nan", "learning rate"]),
    ],
)
def test_a_collapsing_run_is_told_once_what_to_try(objective, lr, words):
    messages, monitor = warned(objective, lr=lr)
    assert len(messages) == 1
    assert all(word in messages[0] for word in ["Learner looks unhealthy", *words])
    assert monitor.warning == messages[0]


def test_a_healthy_run_is_left_in_peace():
    messages, monitor = warned(contrast)
    assert messages == []
    assert monitor.warning is None
    readings = monitor.readings
    assert readings["loss_ratio"] < 0.9
    assert readings["positive_score"] > readings["negative_score"] + 1
    assert readings["embedding_std"] > 0.8
    assert 2 < readings["effective_rank"] <= DIM


def returning(outputs: list[dict]):
    """Readings of a monitor over one window of steps that returned ``outputs``."""

    class Scripted(Learner):
        def training_step(self, x, batch_idx):
            return {"loss": self.encoder.weight.sum() * 0 + 1.0, **outputs[batch_idx]}

    monitor = HealthMonitor(window=len(outputs), n_clusters=4)
    loader = torch.utils.data.DataLoader(torch.zeros(len(outputs), WIDTH), batch_size=1)
    fitting = trainer(1, callbacks=[monitor])
    fitting.fit(Scripted(None), loader)
    logged = {f"health/{name}": value for name, value in monitor.readings.items()}
    assert {name: float(fitting.callback_metrics[name]) for name in logged} == pytest.approx(logged)
    return monitor.readings


def test_readings_equal_their_definitions_over_the_window():
    z = torch.randn(14, 5) + 1
    codes = torch.randn(14, 4).softmax(dim=1)
    parts = [
        {"embedding": z[:6], "assignment": codes[:6], "positive_score": z[:6, 0]},
        {"embedding": z[6:], "assignment": codes[6:], "positive_score": z[6:, 0]},
    ]
    readings = returning(parts)
    unit = normalize(z.double(), dim=1)
    singular = torch.linalg.svdvals(unit - unit.mean(dim=0))
    share = singular / singular.sum()
    mean = codes.double().mean(dim=0)
    assert readings == pytest.approx(
        {
            "loss": 1.0,
            "positive_score": float(z[:, 0].mean()),
            "clusters_in_use": len(codes.argmax(dim=1).unique()) / 4,
            "code_entropy": float(-(mean * mean.log()).sum()),
            "embedding_std": float((unit.var(dim=0, correction=0).mean() * 5).sqrt()),
            "effective_rank": float((-(share * share.log()).sum()).exp()),
        },
        rel=1e-5,
    )


def test_labels_serve_as_assignment():
    readings = returning([{"assignment": torch.tensor([0, 0, 3])}])
    assert readings["clusters_in_use"] == pytest.approx(2 / 3)  # three samples can fill three
    assert readings["code_entropy"] == pytest.approx(log(3) - 2 / 3 * log(2))


def test_rounding_is_no_rank():
    line = torch.arange(-49.5, 50)[:, None] * torch.randn(1, 200) + 1e-6 * torch.randn(100, 200)
    readings = returning([{"embedding": line}])
    assert readings["effective_rank"] == pytest.approx(1, abs=1e-3)


def test_the_state_survives_a_checkpoint_and_the_warning_with_it():
    monitor = HealthMonitor(window=4, patience=2)
    with pytest.warns(UserWarning, match="stuck"):
        fit(predict_mean_code, monitor, lr=0.5)
    resumed = HealthMonitor(window=4, patience=2)
    resumed.load_state_dict(monitor.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*unhealthy")
        fit(predict_mean_code, resumed, lr=0.5)
    assert resumed.warning == monitor.warning
    assert resumed.readings.keys() == monitor.readings.keys()


def test_a_window_follows_the_length_of_training():
    monitor = HealthMonitor()
    fit(contrast, monitor, epochs=50)  # 100 batches
    assert monitor._length == 2


def test_wrong_arguments_and_outputs_are_named():
    for name, value in (("trivial_loss", 0.0), ("n_clusters", 1), ("window", 0), ("patience", 0)):
        with pytest.raises(ArgumentError, match=f"{name} must be"):
            HealthMonitor(**{name: value})

    def labels(model, first, second):
        return {"loss": first.sum(), "assignment": torch.zeros(len(first), dtype=torch.int64)}

    with pytest.raises(ArgumentError, match="n_clusters is needed"):
        fit(labels, HealthMonitor(window=1))

    def flat(model, first, second):
        return {"loss": first.sum(), "embedding": first[0]}

    with pytest.raises(ArgumentError, match=r"outputs\['embedding'\] must be of shape"):
        fit(flat, HealthMonitor(window=1))
