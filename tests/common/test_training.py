import random

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from torch import nn

from common.errors import DataError
from common.training import Method, load_checkpoint
from common.training.randomness import random_state, restore_random_state


class Noisy(Method):
    """Its weight adds up random numbers of all three generators, one a step."""

    def __init__(self, width: int = 2):
        super().__init__()
        self.save_hyperparameters()
        self.weight = nn.Parameter(torch.zeros(width))

    def training_step(self, batch, batch_idx):
        drawn = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return (self.weight * drawn).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def run(epochs: int, seed: int, ckpt_path=None) -> tuple[Noisy, Trainer]:
    seed_everything(seed)
    model = Noisy()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(torch.zeros(6, 1), batch_size=2, shuffle=True)
    trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True)
    return model, trainer


def test_random_state_goes_there_and_back(tmp_path):
    torch.save(random_state(), tmp_path / "state.pt")

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    expected = [draw() for _ in range(3)]
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_resumed_run_draws_the_same_numbers(tmp_path):
    straight, _ = run(epochs=5, seed=1)
    _, half = run(epochs=2, seed=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(epochs=5, seed=2, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(resumed.weight, straight.weight)
    other, _ = run(epochs=5, seed=2)
    assert not torch.equal(other.weight, straight.weight)


def test_checkpoint_names_its_class(tmp_path):
    _, trainer = run(epochs=1, seed=0)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = load_checkpoint(tmp_path / "model.ckpt")
    assert checkpoint["class_path"].endswith("Noisy")
    assert checkpoint["hyper_parameters"]["width"] == 2


@pytest.mark.parametrize("cut", [0, 100, 0.5, -10])
def test_half_a_checkpoint_is_a_clear_error(tmp_path, cut):
    _, trainer = run(epochs=1, seed=0)
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if 0 < cut < 1 else cut])
    with pytest.raises(DataError, match=r"model\.ckpt cannot be read"):
        load_checkpoint(path)


class Payload:
    """Writes to a list when unpickled, as hostile code would."""

    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    torch.save({"class_path": "graphs.SCGC", "state_dict": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(tmp_path / "evil.ckpt")
    assert not Payload.ran


def test_what_is_no_method_checkpoint_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(DataError, match="has no class_path"):
        load_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(DataError, match="does not exist"):
        load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_encode_must_be_defined():
    with pytest.raises(NotImplementedError, match=r"Noisy must define encode"):
        Noisy().encode(torch.zeros(1))
