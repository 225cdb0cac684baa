"""The commands as a user types them."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import cli, registry
from benchmarks.harness.table import PROJECT

HEAVY = ("torch", "lightning", "numpy", "matplotlib", "pandas", "sklearn", "yaml", "faiss")


def modules_after(*arguments: str) -> set[str]:
    """What is imported by a command."""
    script = (
        "import sys; from benchmarks.cli import main\n"
        f"try: status = main({list(arguments)!r})\n"
        "except SystemExit as end: status = end.code or 0\n"
        "print(status, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True
    )
    status, *modules = done.stderr.splitlines()[-1].split()
    assert status == "0"
    return set(modules)


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["datasets"], []])
def test_light_commands_import_nothing_heavy(arguments):
    assert not modules_after(*arguments) & set(HEAVY)


def fails(capsys, *arguments: str) -> str:
    """The one line that a wrong command prints."""
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert not output.out
    assert output.err.startswith("clustrast: error: ")
    assert output.err.count("\n") == 1, output.err
    return output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["metods"], "unknown command 'metods', did you mean 'methods'?"),
        (["reproduce", "sgcg"], "unknown table 'sgcg', did you mean 'scgc'? known: pamc, scgc"),
        (["reproduce"], "TABLE"),
        (["reproduce", "scgc", "--scale", "big"], "unknown scale 'big'"),
        (["reproduce", "scgc", "--datasets", "acn"], "did you mean 'acm'?"),
        (["reproduce", "scgc", "--rows", "SGCG*"], "did you mean 'SCGC*'?"),
        (["reproduce", "scgc", "--jobs", "many"], "--jobs: invalid int value: 'many'"),
        (["reproduce", "scgc", "--sedes", "3"], "--sedes"),
        (["datasets", "fetsh", "acm"], "did you mean 'fetch'?"),
        (["datasets", "fetch", "acn"], "unknown data set 'acn', did you mean 'acm'?"),
        (["datasets", "fetch"], "needs the NAME"),
        (["speed", "nothing-like-this"], "unknown speed benchmark 'nothing-like-this'"),
        (["embed", "missing.ckpt", "--data", "digits", "--out", "x.npz"], "missing.ckpt"),
        (["embed", "missing.ckpt", "--data", "digits", "--out", "x.csv"], ".npz or .parquet"),
        (["report", "--from", "nowhere"], "no table in nowhere"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_commands_say_what_is_wrong_in_one_line(
    capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.alhpa=1", "option 'alhpa' is not accepted"),
        ("--model.alpha=much", "key alpha: expected float, got much"),
        ("--model.n_clusters=1", "n_clusters must be an integer of at least 2, got 1"),
        ("--trainer.max_epochs=many", "key trainer.max_epochs: expected int, got many"),
        ("--trainer.epochs=3", "--trainer.epochs"),
        ("--data.dataset=acn", "acn"),
        ("--model=graphs.SGCG", "SGCG"),
    ],
)
def test_fit_names_the_key_that_is_wrong(capsys, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    recipe = PROJECT / "graphs/recipes/scgc/digits_star.yaml"
    assert cli.main(["fit", f"--config={recipe}", "--model.pretraining_epochs=0", change]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("clustrast: error: ")
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


def test_debug_shows_where(monkeypatch):
    from common.errors import ArgumentError

    monkeypatch.setenv("CLUSTRAST_DEBUG", "1")
    with pytest.raises(ArgumentError):
        cli.main(["reproduce", "sgcg"])


def test_methods_for_programs(capsys):
    assert cli.main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [method["slug"] for method in listed] == [m.slug for m in registry.METHODS]
    assert set(listed[0]) == {"slug", "class", "domain", "paper", "tables", "datasets"}
    assert listed[0]["paper"]["arxiv"] == "2204.12656"


def test_datasets_for_programs(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CLUSTRAST_DATA", str(tmp_path))
    assert cli.main(["datasets", "--json"]) == 0
    states = {spec["name"]: spec["state"] for spec in json.loads(capsys.readouterr().out)}
    assert states["digits"] == "embedded"
    assert states["acm"] == "to fetch"
    assert states["hhar"] == "by hand"


def test_fetching_an_embedded_data_set_is_done_at_once(capsys):
    assert cli.main(["datasets", "fetch", "digits"]) == 0
    assert "digits" in capsys.readouterr().out


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Checkpoint of ``clustrast fit`` on digits, small and short."""
    folder = tmp_path_factory.mktemp("fit")
    recipe = PROJECT / "graphs/recipes/pamc/digits.yaml"
    changes = {
        "model.hidden_dims": "[16]",
        "model.pretraining_epochs": "1",
        "model.kmeans_restarts": "1",
        "trainer.max_epochs": "2",
        "trainer.default_root_dir": str(folder),
        "trainer.enable_progress_bar": "false",
        "seed_everything": "0",
    }
    arguments = [f"--{key}={value}" for key, value in changes.items()]
    assert cli.main(["fit", f"--config={recipe}", *arguments]) == 0
    (checkpoint,) = folder.rglob("*.ckpt")
    assert (checkpoint.parents[1] / "config.yaml").is_file()
    return checkpoint


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_fitted_model_goes_through_the_other_commands(fitted, command, capsys):
    config = fitted.parents[1] / "config.yaml"
    arguments = [command, f"--config={config}", f"--ckpt_path={fitted}"]
    assert cli.main(arguments) == 0
    if command == "test":
        assert "test/acc" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embeddings_of_a_checkpoint(fitted, tmp_path, suffix, capsys):
    out = tmp_path / f"z{suffix}"
    assert cli.main(["embed", str(fitted), "--data", "digits", "--out", str(out)]) == 0
    assert "(1797, 10)" in capsys.readouterr().out
    if suffix == ".npz":
        arrays = dict(np.load(out))
    else:
        frame = pd.read_parquet(out)
        arrays = {name: np.stack(frame[name]) for name in frame}
    assert {name: array.shape for name, array in arrays.items()} == {
        "embedding": (1797, 10),
        "id": (1797,),
        "assignment": (1797,),
        "y": (1797,),
    }
    assert (arrays["id"] == np.arange(1797)).all()
    saved = torch.load(fitted, weights_only=True)["state_dict"]
    distance = np.linalg.norm(arrays["embedding"][:, None] - saved["centroids"].numpy(), axis=2)
    assert (arrays["assignment"] == distance.argmin(axis=1)).mean() > 0.99


def test_embed_refuses_what_is_no_method(fitted, tmp_path, capsys):
    other = tmp_path / "other.ckpt"
    out = ("--out", str(tmp_path / "z.npz"))
    saved = torch.load(fitted, weights_only=True)
    torch.save(saved | {"class_path": "os.path.PamC"}, other)
    message = fails(capsys, "embed", str(other), "--data", "digits", *out)
    assert "os.path.PamC, which is no method" in message
    torch.save(saved | {"state_dict": {}}, other)
    message = fails(capsys, "embed", str(other), "--data", "digits", *out)
    assert "does not fit graphs.PamC" in message
    other.write_bytes(fitted.read_bytes()[:1000])
    assert "other.ckpt" in fails(capsys, "embed", str(other), "--data", "digits", *out)
    assert "acn" in fails(capsys, "embed", str(fitted), "--data", "acn", *out)
    assert not (tmp_path / "z.npz").exists()


def test_speed_passes_its_options_on(capsys, monkeypatch):
    import types

    made = types.ModuleType("benchmarks.speed.scgc")
    made.main = lambda argv: print(argv)
    monkeypatch.setitem(sys.modules, "benchmarks.speed.scgc", made)
    assert cli.main(["speed", "scgc", "--rounds", "2"]) == 0
    assert capsys.readouterr().out == "['--rounds', '2']\n"
