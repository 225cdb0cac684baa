import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import nn
from torch_geometric.data import Data

from common.errors import ArgumentError
from common.evaluation import ClusteringScores, cluster_embeddings, clustering_scores, hard_labels
from common.metrics import cluster_accuracy, matched_macro_f1
from tests.common.mps import Single

K = 3


def predictions(kind: str, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(k, (n,), generator=generator)
    chance = torch.randint(k, (n,), generator=generator)
    noisy = torch.where(torch.rand(n, generator=generator) < 0.7, target, chance)
    single = torch.zeros(n, dtype=torch.int64)
    return {"noisy": noisy, "chance": chance, "single": single, "perfect": k - target}[kind], target


@pytest.mark.parametrize("kind", ["noisy", "chance", "single", "perfect"])
@pytest.mark.parametrize(("n", "k"), [(40, 3), (10_000, 10), (200_000, 4)])
def test_scores_equal_scikit_learns(kind, n, k):
    labels, target = predictions(kind, n, k)
    scores = clustering_scores(labels, target)
    assert list(scores) == ["acc", "nmi", "ari", "f1"]
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(target, labels), abs=1e-6)
    assert scores["ari"] == pytest.approx(adjusted_rand_score(target, labels), abs=1e-9)
    assert scores["acc"] == pytest.approx(float(cluster_accuracy(labels, target)))
    assert scores["f1"] == pytest.approx(float(matched_macro_f1(labels, target)))
    assert scores["nmi"] <= 1


def test_one_cluster_of_one_class_is_perfect():
    ones = torch.ones(5, dtype=torch.int64)
    assert clustering_scores(ones, 2 * ones) == {"acc": 1, "nmi": 1, "ari": 1, "f1": 1}


def test_no_float64_is_asked_of_a_device_without():
    labels, target = predictions("noisy", 40, 3)
    scores = clustering_scores(labels.as_subclass(Single), target.as_subclass(Single))
    assert scores == clustering_scores(labels, target)


def test_scores_of_soft_codes_are_those_of_their_maximum():
    codes = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(50) % 4
    assert clustering_scores(codes, target) == clustering_scores(codes.argmax(dim=1), target)


def test_any_non_negative_names_will_do():
    labels, target = predictions("noisy", 100, 4)
    assert clustering_scores(labels * 10**12, target * 7 + 3) == clustering_scores(labels, target)


@pytest.mark.parametrize(
    ("assignment", "target", "words"),
    [
        (torch.arange(3), torch.arange(4), ["assignment and target", "3", "4"]),
        (torch.arange(3.0), torch.arange(3), ["assignment", "integers", "float32"]),
        (torch.arange(3), torch.full((3,), float("nan")), ["target", "integers"]),
        (torch.full((3, 2), float("nan")), torch.arange(3), ["assignment", "NaN"]),
        (torch.empty(0, 2), torch.arange(3), ["assignment", "empty"]),
        (torch.arange(3)[:, None], torch.arange(3), ["assignment", "floating-point", "int64"]),
        (torch.arange(3), torch.tensor([0, -1, 1]), ["target", "-1"]),
    ],
)
def test_wrong_input_is_named(assignment, target, words):
    with pytest.raises(ArgumentError) as error:
        clustering_scores(assignment, target)
    assert all(word in str(error.value) for word in words)


def test_hard_labels_pass_through():
    labels = torch.tensor([2, 0, 1])
    assert hard_labels(labels) is labels


def test_embeddings_of_digits():
    data = load_digits()
    x, y = torch.from_numpy(data.data).float() / 16, torch.from_numpy(data.target).long()
    scores, labels = cluster_embeddings(x, y, 10, seed=0)
    assert 0.75 < scores["acc"] < 0.85
    assert clustering_scores(labels, y) == scores
    assert torch.equal(cluster_embeddings(x, y, 10, seed=0)[1], labels)


class Nearest(LightningModule):
    """Soft assignment to trainable centroids, with dropout so that the mode can be seen."""

    def __init__(self, hard: bool = False):
        super().__init__()
        self.centroids = nn.Parameter(torch.eye(K))
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Linear(1, 1).eval()
        self.hard = hard
        self.assigned_in_training_mode: list[bool] = []

    def assign(self, batch):
        self.assigned_in_training_mode.append(self.training or torch.is_grad_enabled())
        return self.codes(batch)

    def codes(self, batch):
        codes = (self.dropout(batch.x) @ self.centroids.T).softmax(dim=1)
        return codes.argmax(dim=1) if self.hard else codes

    def training_step(self, batch, batch_idx):
        loss = (batch.x @ self.centroids.T).logsumexp(dim=1).mean()
        return {"loss": loss, "assignment": self.codes(batch)}

    def validation_step(self, batch, batch_idx):
        return {"assignment": self.codes(batch)}

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def graph(n: int = 60) -> Data:
    y = torch.arange(n) % K
    noise = torch.randn(n, K, generator=torch.Generator().manual_seed(0))
    return Data(x=torch.eye(K)[y] * 3 + noise, y=y)


def loader(*batches: Data) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(list(batches), batch_size=None)


def trainer(folder, *callbacks, epochs: int = 3, **options) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        callbacks=list(callbacks),
        **options,
    )


def test_training_is_scored_before_each_step_and_after_the_last(tmp_path):
    torch.manual_seed(0)
    model, scores = Nearest(), ClusteringScores()
    fitting = trainer(tmp_path, scores)
    fitting.fit(model, loader(graph()))

    assert [(h["epoch"], h["step"]) for h in scores.history] == [(0, 0), (1, 1), (2, 2)]
    assert all(sum(h["sizes"]) == 60 and len(h["sizes"]) == K for h in scores.history)
    assert fitting.callback_metrics["train/acc"] == pytest.approx(scores.history[-1]["acc"])
    assert {"train/acc", "train/nmi", "train/ari", "train/f1"} <= set(fitting.callback_metrics)
    assert model.assigned_in_training_mode == [False]
    model.eval()
    with torch.no_grad():
        expected = clustering_scores(model.codes(graph()), graph().y)
    assert {name: scores.final[name] for name in expected} == expected
    assert sum(scores.final["sizes"]) == 60


def test_the_final_score_restores_the_modes(tmp_path):
    model, scores = Nearest(), ClusteringScores()
    fitting = trainer(tmp_path, scores)
    fitting.fit(model, loader(graph()))
    model.train()
    model.frozen.eval()
    scores.on_train_end(fitting, model)
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training


def test_a_failing_final_score_restores_the_modes(tmp_path):
    class Failing(Nearest):
        def assign(self, batch):
            raise RuntimeError("no assignment")

    model = Failing()
    with pytest.raises(RuntimeError, match="no assignment"):
        trainer(tmp_path, ClusteringScores(), epochs=1).fit(model, loader(graph()))
    assert model.dropout.training
    assert not model.frozen.training


def test_batches_of_the_final_score_pass_the_hooks_of_training(tmp_path):
    class Unpacking(Nearest):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch[0]

    scores = ClusteringScores()
    packed = torch.utils.data.DataLoader([[graph()]], batch_size=None)
    trainer(tmp_path, scores, epochs=1).fit(Unpacking(), packed)
    assert sum(scores.final["sizes"]) == 60


def test_the_final_score_is_made_in_the_precision_of_training(tmp_path):
    class Recording(Nearest):
        def codes(self, batch):
            product = batch.x @ self.centroids.T
            seen.append((batch.x.dtype, product.dtype))
            return product.softmax(dim=1)

    seen: list[tuple[torch.dtype, torch.dtype]] = []
    scores = ClusteringScores()
    fitting = trainer(tmp_path, scores, epochs=1, precision="bf16-mixed")
    fitting.fit(Recording(), loader(graph()))
    in_training, in_the_end = seen
    assert in_training[1] == torch.bfloat16
    assert in_the_end == in_training
    assert 0.5 < scores.final["acc"] <= 1


def test_the_final_score_covers_all_batches_and_leaves_the_generator_alone(tmp_path):
    whole = graph(90)
    parts = [Data(x=whole.x[i::3], y=whole.y[i::3]) for i in range(3)]
    shuffled = torch.utils.data.DataLoader(parts, batch_size=None, shuffle=True)
    model, scores = Nearest(), ClusteringScores()
    fitting = trainer(tmp_path, scores, epochs=2)
    fitting.fit(model, shuffled)
    assert len(scores.history) == 6
    assert sum(scores.final["sizes"]) == 90
    state = torch.get_rng_state()
    scores.on_train_end(fitting, model)
    assert torch.equal(torch.get_rng_state(), state)


def test_hard_assignments_show_an_empty_cluster(tmp_path):
    scores = ClusteringScores(n_clusters=5)
    trainer(tmp_path, scores, epochs=1).fit(Nearest(hard=True), loader(graph()))
    assert scores.history[0]["sizes"][3:] == [0, 0]
    assert scores.final["sizes"][3:] == [0, 0]


def test_validation_and_test_score_all_batches_together(tmp_path):
    whole, model = graph(90), Nearest()
    parts = [Data(x=whole.x[i::3], y=whole.y[i::3]) for i in range(3)]
    expected = clustering_scores(model.eval().codes(whole), whole.y)
    for stage, run in (("val", "validate"), ("test", "test")):
        evaluating = trainer(tmp_path, ClusteringScores())
        getattr(evaluating, run)(model, loader(*parts), verbose=False)
        for name, value in expected.items():
            assert evaluating.callback_metrics[f"{stage}/{name}"] == pytest.approx(value)


def test_codes_are_not_kept(tmp_path):
    class Watched(ClusteringScores):
        def on_validation_epoch_end(self, trainer, pl_module):
            kept.extend(part for seen in self._seen for part in seen if torch.is_tensor(part))
            super().on_validation_epoch_end(trainer, pl_module)

    kept: list[torch.Tensor] = []
    scores = Watched()
    trainer(tmp_path, scores).validate(Nearest(), loader(graph(), graph()), verbose=False)
    assert [tuple(part.shape) for part in kept] == [(60,)] * 4
    assert scores._seen == []


def test_a_resumed_run_keeps_its_history(tmp_path):
    def run(folder, epochs, resume=None):
        torch.manual_seed(0)
        scores = ClusteringScores()
        saving = ModelCheckpoint(folder, save_last=True)
        fitting = trainer(folder, scores, saving, epochs=epochs)
        fitting.fit(Nearest(), loader(graph()), ckpt_path=resume)
        return scores, saving.last_model_path

    first, path = run(tmp_path / "first", epochs=2)
    state = torch.load(path, weights_only=True)["callbacks"]["ClusteringScores"]
    assert state["history"] == first.history
    resumed, _ = run(tmp_path / "second", epochs=4, resume=path)
    assert resumed.history[:2] == first.history
    assert [h["epoch"] for h in resumed.history] == [0, 1, 2, 3]
    assert [h["step"] for h in resumed.history] == [0, 1, 2, 3]


def test_the_state_is_plain_and_complete():
    scores = ClusteringScores()
    scores.history.append({"epoch": 0, "step": 0, "acc": 0.5, "sizes": [1, 2]})
    scores.final = {"acc": 0.5, "sizes": [1, 2]}
    other = ClusteringScores()
    other.load_state_dict(scores.state_dict())
    assert (other.history, other.final) == (scores.history, scores.final)


def test_missing_labels_and_assignments_are_named(tmp_path):
    unlabelled = Data(x=graph().x)
    with pytest.raises(ArgumentError, match=r"batch\.y is missing"):
        trainer(tmp_path, ClusteringScores()).fit(Nearest(), loader(unlabelled))

    class Silent(Nearest):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)["loss"]

    with pytest.raises(ArgumentError, match="'assignment'"):
        trainer(tmp_path, ClusteringScores()).fit(Silent(), loader(graph()))
