"""The checks every method passes. A new one joins by one line in ``CASES``."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from lightning import LightningDataModule, seed_everything

from benchmarks.registry import METHODS as REGISTERED
from common.errors import ArgumentError
from common.training import GradientCache, HealthMonitor, Method, load_checkpoint
from tests.graphs.blobs import METHODS, blobs, trainer


@dataclass(frozen=True)
class Case:
    """A method small enough to train in a second.

    Args:
        slug: of the method in the registry.
        make: a new method; takes hyper-parameters by keyword.
        data: its data module.
        wrong: a hyper-parameter and a value out of its range.
    """

    slug: str
    make: Callable[..., Method]
    data: Callable[[], LightningDataModule]
    wrong: tuple[str, object]


def clustering(name: str, wrong: tuple[str, object]) -> Case:
    make = partial(METHODS[name], pretraining_epochs=2)
    return Case(name.removesuffix("*"), make, blobs, wrong)


CASES = {
    "scgc": clustering("scgc", ("alpha", -1.0)),
    "scgc*": clustering("scgc*", ("order", 0)),
    "pamc": clustering("pamc", ("beta", float("nan"))),
}

every_method = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def trained(case: Case, epochs: int = 3, **options) -> tuple[Method, LightningDataModule]:
    seed_everything(0)
    data, model = case.data(), case.make()
    model.before_fit(data, accelerator="cpu", enable_progress_bar=False)
    seed_everything(0)  # as Lightning does in each process it starts
    trainer(epochs, **options).fit(model, data)
    return model, data


def batch_of(data: LightningDataModule):
    data.setup("predict")
    return next(iter(data.predict_dataloader()))


def assert_same_weights(first: Method, second: Method) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_every_registered_method_has_a_case():
    assert {method.slug for method in REGISTERED} == {case.slug for case in CASES.values()}


@every_method
def test_registered_class(case):
    (registered,) = (method for method in REGISTERED if method.slug == case.slug)
    assert isinstance(case.make(), registered.cls)
    assert issubclass(registered.cls, Method)
    assert "Args:" in inspect.getdoc(registered.cls)


@every_method
def test_embedding_is_frozen_and_deterministic(case):
    model, data = trained(case)
    batch = batch_of(data)
    model.eval()
    z = model.encode(batch)
    assert z.ndim == 2
    assert z.isfinite().all()
    assert torch.equal(z, model.encode(batch))
    assert isinstance(model.encoder, torch.nn.Module)


@every_method
def test_same_seed_same_weights(case):
    first, _ = trained(case)
    second, _ = trained(case)
    assert_same_weights(first, second)


@every_method
def test_resume_gives_the_same_numbers(case, tmp_path):
    straight, data = trained(case, epochs=6)
    seed_everything(0)
    model = case.make()
    model.before_fit(data, accelerator="cpu", enable_progress_bar=False)
    seed_everything(0)
    half = trainer(3)
    half.fit(model, data)
    half.save_checkpoint(tmp_path / "half.ckpt")
    seed_everything(99)
    resumed = case.make()
    trainer(6).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert_same_weights(straight, resumed)


@every_method
def test_checkpoint_gives_the_method_back(case, tmp_path):
    model, data = trained(case)
    model.trainer.save_checkpoint(tmp_path / "model.ckpt")
    class_path = load_checkpoint(tmp_path / "model.ckpt")["class_path"]
    assert class_path == f"{type(model).__module__}.{type(model).__name__}"
    loaded = type(model).load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    batch = batch_of(data)
    assert torch.equal(loaded.eval().encode(batch), model.eval().encode(batch))


@every_method
def test_a_copy_trains_on_its_own(case):
    model, data = trained(case)
    twin = copy.deepcopy(model)
    trainer(1).fit(twin, data)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


@every_method
def test_bf16_mixed_precision(case):
    model, data = trained(case, precision="bf16-mixed")
    assert model.encode(batch_of(data)).isfinite().all()


@every_method
def test_callbacks_attach_and_leave_the_weights_alone(case):
    plain, _ = trained(case)
    monitor = HealthMonitor(window=1)
    watched, _ = trained(case, callbacks=[monitor, GradientCache(micro_batch_size=20)])
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(watched.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    assert "loss" in monitor.readings
    assert torch.tensor(list(monitor.readings.values())).isfinite().all()


@every_method
def test_two_processes_agree_with_one(case, tmp_path):
    alone, _ = trained(case)
    together, _ = trained(case, strategy="ddp_fork", devices=2)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], value, atol=1e-5, rtol=1e-4)


@every_method
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(case):
    on_cpu, data = trained(case)
    on_gpu, _ = trained(case, accelerator="cuda", devices=1)
    batch = batch_of(data)
    torch.testing.assert_close(
        on_gpu.cpu().encode(batch), on_cpu.encode(batch), atol=1e-3, rtol=1e-3
    )


@every_method
def test_a_wrong_hyper_parameter_names_itself(case):
    name, value = case.wrong
    with pytest.raises(ArgumentError, match=f"{name} must be .*, got {value}"):
        case.make(**{name: value})
