"""SCGC and PamC as methods: the cards' checks, resume, checkpoints, bad input."""

import copy

import pytest
import torch
from lightning import seed_everything
from torch_geometric.data import Data

from common.errors import ArgumentError, DataError
from common.kmeans import KMeans
from common.losses import block_contrast, neighbor_contrast
from common.metrics import cluster_accuracy
from common.training import load_checkpoint
from graphs import SCGC, AttributedGraph, Autoencoder, PamC
from tests.graphs.blobs import IN_DIM, METHODS, SMALL, K, N, blobs, trainer

every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())


def fitted(make, data=None, epochs=5, **kwargs):
    seed_everything(0)
    data = data or blobs()
    model = make(pretraining_epochs=2, **kwargs)
    model.before_fit(data)
    trainer(epochs).fit(model, data)
    return model, data


def ready(make, graph: Data, **kwargs):
    """A model that is initialised on ``graph`` and has not been trained."""
    seed_everything(0)
    model = make(pretraining_epochs=0, **kwargs)
    model.on_train_batch_start(graph, 0)
    model.log = lambda *args, **kwargs: None
    return model


@every_method
def test_training_lowers_the_loss_and_finds_the_blobs(make):
    seed_everything(0)
    data = blobs()
    data.setup()
    model = make(pretraining_epochs=200, alpha=0.5)
    model.before_fit(data)
    losses = []
    training_step = model.training_step

    def recorded(graph, batch_idx):
        out = training_step(graph, batch_idx)
        losses.append(out["loss"].item())
        return out

    model.training_step = recorded
    trainer(40).fit(model, data)
    assert losses[-1] < losses[0]
    assert cluster_accuracy(model.assign(data.graph).argmax(dim=1), data.graph.y) > 0.95


@every_method
def test_pre_trained_start_and_centroids(make):
    seed_everything(0)
    data = blobs()
    data.setup()
    autoencoder = Autoencoder(IN_DIM, (16, 16), 4)
    model = make(kmeans_restarts=20)
    model.start_from(autoencoder)
    assert torch.equal(model.encode(data.graph), autoencoder.encode(data.graph))
    if getattr(model, "decoder", None) is not None:
        z = torch.randn(5, 4)
        assert torch.equal(model.decoder(z), autoencoder.decoder(z))
    torch.manual_seed(7)
    model.on_train_batch_start(data.graph, 0)
    torch.manual_seed(7)
    kmeans = KMeans(K, n_init=20).fit(model.encode(data.graph).detach())
    torch.testing.assert_close(model.centroids.detach(), kmeans.centroids)


@every_method
def test_a_second_start_places_the_centroids_anew(make):
    model, data = fitted(make)
    model.before_fit(data, accelerator="cpu", enable_progress_bar=False)
    assert not model.initialized
    other = AttributedGraph.from_arrays(data.graph.x, edge_index=[[0], [1]], n_clusters=K)
    trainer(1).fit(model, other)
    assert int(model.contrast.weights.crow[-1]) == N + 2  # the weights of the new graph


@every_method
def test_soft_assignment_and_embedding(make):
    model, data = fitted(make)
    q = model.assign(data.graph)
    assert q.shape == (N, K)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(N))
    z = model.eval().encode(data.graph)
    assert z.shape == (N, 4)
    assert torch.equal(z, model.encode(data.graph))


def test_parameter_counts():  # SCGC card: d = 256
    encoder_only = SCGC(256, 10, variant="scgc*")
    assert sum(p.numel() for p in encoder_only.encoder.parameters()) == 1_401_010
    assert encoder_only.decoder is None
    with_decoder = SCGC(256, 10, variant="scgc")
    assert sum(p.numel() for p in with_decoder.decoder.parameters()) == 1_401_256
    assert with_decoder.centroids.numel() == 10 * 10


@every_method
def test_permuting_the_nodes_permutes_the_assignment(make):  # SCGC card, check 7
    data = blobs()
    data.setup()
    graph = data.graph
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    place = torch.empty_like(order)
    place[order] = torch.arange(N)
    permuted = Data(x=graph.x[order], edge_index=place[graph.edge_index])
    model = ready(make, graph)
    twin = copy.deepcopy(model)
    twin.contrast = None
    twin.on_train_batch_start(permuted, 0)
    first, second = model.training_step(graph, 0), twin.training_step(permuted, 0)
    torch.testing.assert_close(second["assignment"], first["assignment"][order])
    torch.testing.assert_close(second["loss"], first["loss"])


def loss_by_hand(model, graph, contrast):
    """The total of the card from dense matrices."""
    n = len(graph.x)
    a = torch.zeros(n, n)
    a[graph.edge_index[0], graph.edge_index[1]] = 1
    a = torch.maximum(a, a.T) + torch.eye(n)
    a = a / a.sum(dim=1, keepdim=True)
    z = model.encoder(graph.x)
    q = 1 / (1 + (z[:, None] - model.centroids).square().sum(dim=2))
    q = q / q.sum(dim=1, keepdim=True)
    p = q.square() / q.sum(dim=0)
    p = (p / p.sum(dim=1, keepdim=True)).detach()
    kl = (p * (p / q).log()).sum(dim=1).mean()
    return kl, contrast(z, q, a)


def test_scgc_total_loss():
    data = blobs()
    data.setup()
    settings = {"alpha": 0.7, "beta": 1.3, "order": 2, "inverse_temperature": 0.5}
    for name, gamma in (("scgc", lambda a: a @ a), ("scgc*", lambda a: a + a @ a)):
        model = ready(METHODS[name], data.graph, **settings)
        kl, contrast = loss_by_hand(
            model,
            data.graph,
            lambda z, q, a, gamma=gamma: neighbor_contrast(z, gamma(a), inverse_temperature=0.5),
        )
        expected = 1.3 * kl + 0.7 * contrast
        if name == "scgc":
            x = data.graph.x
            expected = expected + (model.decoder(model.encoder(x)) - x).square().mean()
        torch.testing.assert_close(model.training_step(data.graph, 0)["loss"], expected)


def test_pamc_total_loss_and_detached_assignment():
    data = blobs()
    data.setup()
    settings = {"alpha": 0.7, "beta": 1.3, "order": 2, "inverse_temperature": 0.5}
    model = ready(METHODS["pamc"], data.graph, **settings)
    kl, contrast = loss_by_hand(
        model,
        data.graph,
        lambda z, q, a: block_contrast(z, a + a @ a, q.argmax(dim=1), K, inverse_temperature=0.5),
    )
    expected = 1.3 * kl + 0.7 * contrast
    ours = model.training_step(data.graph, 0)["loss"]
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours, model.centroids), torch.autograd.grad(1.3 * kl, model.centroids)
    )


def test_alpha_zero_is_plain_self_training():
    data = blobs()
    data.setup()
    model = ready(METHODS["scgc*"], data.graph, alpha=0.0, beta=1.0)
    kl, _ = loss_by_hand(model, data.graph, lambda z, q, a: z.new_zeros(()))
    torch.testing.assert_close(model.training_step(data.graph, 0)["loss"], kl)


@every_method
def test_sparse_and_dense_attributes_agree(make):
    dense, _ = fitted(make, blobs(sparse=False))
    sparse, data = fitted(make, blobs(sparse=True))
    assert data.graph.x.layout == torch.sparse_csr
    torch.testing.assert_close(sparse.centroids, dense.centroids, atol=1e-4, rtol=1e-4)


def test_autoencoder_resumes_with_the_same_batches(tmp_path):
    data = AttributedGraph.from_arrays(torch.rand(50, IN_DIM), n_clusters=2, batch_size=16)

    def run(epochs, seed, ckpt_path=None):
        seed_everything(seed)
        model = Autoencoder(IN_DIM, hidden_dims=(8,), embedding_dim=2)
        run_trainer = trainer(epochs)
        run_trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
        return model, run_trainer

    straight, _ = run(4, seed=1)
    _, half = run(2, seed=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(4, seed=2, ckpt_path=tmp_path / "half.ckpt")
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@every_method
def test_checkpoint_loads_without_the_autoencoder_file(make, tmp_path):
    seed_everything(0)
    data = blobs()
    data.setup()
    autoencoder = Autoencoder(IN_DIM, (16, 16), 4)
    pretraining = trainer(1)
    pretraining.fit(autoencoder, data.node_batches(32))
    pretraining.save_checkpoint(tmp_path / "autoencoder.ckpt")
    model = make(autoencoder=str(tmp_path / "autoencoder.ckpt"))
    model.before_fit(data)
    torch.testing.assert_close(model.encode(data.graph), autoencoder.encode(data.graph))
    run = trainer(2)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "autoencoder.ckpt").unlink()
    checkpoint = load_checkpoint(tmp_path / "model.ckpt")
    assert checkpoint["class_path"].endswith(type(model).__name__)
    loaded = type(model).load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.assign(data.graph), model.assign(data.graph))


@every_method
def test_an_isolated_node_and_an_empty_cluster_are_trained_through(make):
    data = blobs()
    data.setup()
    graph = data.graph
    lonely = (graph.edge_index != 0).all(dim=0)
    graph = Data(x=graph.x, edge_index=graph.edge_index[:, lonely])
    model = ready(make, graph)
    with torch.no_grad():
        model.centroids[1] = 1e6  # far from every node: argmax never picks it
    out = model.training_step(graph, 0)
    assert (out["assignment"].argmax(dim=1) != 1).all()
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SCGC(4, 3, variant="scgc2"), "variant must be 'scgc' or 'scgc\\*', got 'scgc2'"),
        (lambda: SCGC(4, 3, alpha=-1.0), "alpha must be at least 0, finite, got -1.0"),
        (lambda: SCGC(4, 1), "n_clusters must be an integer of at least 2, got 1"),
        (lambda: SCGC(0, 3), "in_dim must be an integer of at least 1, got 0"),
        (lambda: PamC(4, 3, order=0), "order must be an integer of at least 1, got 0"),
        (lambda: PamC(4, 3, beta=float("nan")), "beta must be at least 0, finite, got nan"),
        (
            lambda: PamC(4, 3, pretraining_epochs=-1),
            "pretraining_epochs must be an integer of at least 0",
        ),
        (lambda: PamC(4, 3, kmeans_restarts=0), "kmeans_restarts must be an integer of at least 1"),
    ],
)
def test_bad_hyper_parameters_name_themselves(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_bad_use_says_what_to_do(tmp_path):
    data = blobs()
    data.setup()
    with pytest.raises(ArgumentError, match="call before_fit"):
        METHODS["pamc"]().on_train_batch_start(data.graph, 0)
    with pytest.raises(ArgumentError, match="trains on whole graphs"):
        METHODS["pamc"]().on_train_batch_start(Data(x=data.graph.x), 0)
    with pytest.raises(ArgumentError, match="in_dim is 5, but the graph has 12"):
        SCGC(5, 3).encode(data.graph)
    with pytest.raises(ArgumentError, match="n_clusters"):
        ready(lambda **kwargs: SCGC(IN_DIM, N + 1, **SMALL, **kwargs), data.graph)
    with pytest.raises(DataError, match="does not exist"):
        METHODS["scgc"](autoencoder=str(tmp_path / "none.ckpt")).before_fit(data)
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(DataError, match="cannot be read"):
        METHODS["scgc"](autoencoder=str(tmp_path / "broken.ckpt")).before_fit(data)
    wrong = trainer(1)
    wrong.fit(Autoencoder(IN_DIM, (8,), 4), data.node_batches(32))
    wrong.save_checkpoint(tmp_path / "wrong.ckpt")
    with pytest.raises(ArgumentError, match="autoencoder must be the checkpoint"):
        METHODS["scgc"](autoencoder=str(tmp_path / "wrong.ckpt")).before_fit(data)
