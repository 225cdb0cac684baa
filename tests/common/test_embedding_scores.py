import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch_geometric.data import Data

from common.errors import ArgumentError
from common.evaluation import (
    GeometryScores,
    KMeansScores,
    KNNScores,
    LinearProbeScores,
    RetrievalScores,
    cluster_embeddings,
    fit_linear_probe,
    knn_classify,
    retrieval_scores,
    tolerance,
    topk_accuracy,
    uniformity,
)
from common.training import Method
from tests.graphs.blobs import blobs, trainer

K, WIDTH = 3, 5


class Embedding(Method):
    """Random numbers of all generators are in its weights; its embeddings tell the mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(0.5))
        self.frozen = nn.Linear(1, 1).eval()
        self.encoded: list[tuple[int, bool, bool]] = []

    def encode(self, x):
        if isinstance(x, Data):
            x = x.x
        self.encoded.append((len(x), self.training, torch.is_grad_enabled()))
        return self.encoder(x)

    def training_step(self, batch, batch_idx):
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return (self.encoder(batch[0]) * noise).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def samples(n: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    return TensorDataset(torch.eye(WIDTH)[y] + 0.4 * torch.randn(n, WIDTH, generator=generator), y)


class Disturbing(TensorDataset):
    """Draws from every generator, as augmentations do."""

    def __getitem__(self, index):
        random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
        return super().__getitem__(index)


def loaders():
    return [
        DataLoader(Disturbing(*samples(60).tensors), batch_size=16, shuffle=True),
        DataLoader(samples(40, seed=1), batch_size=16),
    ]


def fit(*callbacks, epochs: int = 1, **options) -> Embedding:
    random.seed(0), np.random.seed(0)  # noqa: NPY002
    model = Embedding()
    torch.manual_seed(1)
    batches = DataLoader(samples(24), batch_size=8, shuffle=True)
    trainer(epochs, callbacks=list(callbacks), **options).fit(model, batches)
    return model


def test_callbacks_give_what_the_functions_give_from_one_pass():
    both = loaders()
    callbacks = [
        KNNScores(n_neighbors=9, loaders=both),
        LinearProbeScores(loaders=both),
        KMeansScores(n_init=3, loaders=both),
        RetrievalScores(ks=[1, 3], loaders=both),
        GeometryScores(loaders=both),
    ]
    model = fit(*callbacks)
    assert model.encoded == [(n, False, False) for n in (16, 16, 16, 12, 16, 16, 8)]
    model.eval()
    with torch.no_grad():
        train, train_y = model.encoder(samples(60).tensors[0]), samples(60).tensors[1]
        z, y = model.encoder(samples(40, seed=1).tensors[0]), samples(40, seed=1).tensors[1]
    expected = [
        topk_accuracy(knn_classify(train, train_y, z, n_neighbors=9), y),
        topk_accuracy(fit_linear_probe(train, train_y).logits(z), y),
        cluster_embeddings(z, y, K, 3, 0)[0],
        retrieval_scores(z, y, ks=[1, 3]),
        {"uniformity": uniformity(z), "tolerance": tolerance(z, y)},
    ]
    for callback, scores in zip(callbacks, expected, strict=True):
        (entry,) = callback.history
        assert entry == pytest.approx({"epoch": 0, **scores}, abs=1e-5), callback.name
        metrics = model.trainer.callback_metrics
        for name, value in scores.items():
            assert float(metrics[f"{callback.name}/{name}"]) == pytest.approx(value, abs=1e-5)
    assert callbacks[0].history[0]["top1"] > 0.6


def test_training_is_as_if_nothing_had_been_scored():
    plain = fit(epochs=3)
    scored = fit(KNNScores(9, loaders=loaders()), epochs=3)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, scored.state_dict()[name]), name
    assert plain.encoded == []
    assert len(scored.encoded) == 3 * 7


def test_modes_come_back_after_a_failure():
    class Failing(Embedding):
        def encode(self, x):
            raise RuntimeError("no embedding")

    model = Failing().train()
    model.frozen.eval()
    with pytest.raises(RuntimeError, match="no embedding"):
        trainer(1, callbacks=[GeometryScores(loaders=loaders())]).fit(
            model, DataLoader(samples(8), batch_size=8)
        )
    assert model.encoder.training
    assert not model.frozen.training


def test_only_some_epochs_and_always_the_last():
    often, seldom = (
        GeometryScores(loaders=loaders()[1:]),
        GeometryScores(loaders=loaders()[1:], every_n_epochs=2, name="seldom"),
    )
    fit(often, seldom, epochs=5)
    assert [entry["epoch"] for entry in often.history] == [0, 1, 2, 3, 4]
    assert [entry["epoch"] for entry in seldom.history] == [1, 3, 4]
    assert often.state_key != seldom.state_key
    other = GeometryScores()
    other.load_state_dict(often.state_dict())
    assert other.history == often.history


def test_a_checkpoint_can_follow_a_score(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="knn/top1", mode="max")
    fit(KNNScores(9, loaders=loaders()), best, enable_checkpointing=True)
    assert best.best_model_score is not None


def test_graphs_of_the_data_module_are_scored():
    from tests.graphs.blobs import METHODS

    model, data = METHODS["scgc"](pretraining_epochs=0), blobs()
    scores = KMeansScores(n_init=2)
    trainer(2, callbacks=[scores]).fit(model, data)
    assert len(scores.history) == 2
    assert 0 < scores.history[0]["acc"] <= 1


def test_what_is_missing_is_named():
    unlabelled = [DataLoader(samples(8).tensors[0], batch_size=8)]
    three = [DataLoader(TensorDataset(*samples(8).tensors, torch.zeros(8)), batch_size=8)]
    for callback, words in (
        (KNNScores(3, loaders=unlabelled), "loaders must be two"),
        (RetrievalScores(loaders=unlabelled), "batches of the last loader have no y"),
        (GeometryScores(loaders=three), "got 3 items"),
        (GeometryScores(loaders=[]), "loaders must be at least one"),
        (GeometryScores(), "loaders must be given"),
    ):
        with pytest.raises(ArgumentError, match=words):
            fit(callback)
    geometry = GeometryScores(loaders=unlabelled)
    fit(geometry)
    assert set(geometry.history[0]) == {"epoch", "uniformity"}
