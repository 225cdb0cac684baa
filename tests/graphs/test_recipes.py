"""Every recipe against the hyper-parameter tables of the papers' official code."""

from pathlib import Path

import pytest
import yaml

import graphs

RECIPES = Path(graphs.__file__).parent / "recipes"

SHAPES = {  # attributes, clusters
    "usps": (256, 10),
    "hhar": (561, 6),
    "reuters": (2000, 4),
    "acm": (1870, 3),
    "dblp": (334, 4),
    "citeseer": (3703, 6),
}
SETTINGS = {  # alpha, beta, order, inverse temperature, learning rate
    "scgc": {
        "usps": (1, 0.1, 4, 0.5, 1e-3),
        "hhar": (1, 10, 4, 2.25, 1e-3),
        "reuters": (3, 0.1, 3, 1, 1e-3),
        "acm": (0.5, 0.1, 2, 0.25, 1e-3),
        "dblp": (0.5, 0.1, 1, 0.25, 1e-3),
        "citeseer": (1, 0.1, 1, 0.25, 1e-4),
    },
    "scgc*": {
        "usps": (4, 0.1, 4, 0.25, 1e-3),
        "hhar": (1, 10, 3, 2.25, 1e-3),
        "reuters": (0.5, 0.1, 3, 0.25, 1e-3),
        "acm": (1, 0.1, 1, 0.25, 1e-3),
        "dblp": (1, 0.1, 1, 0.25, 1e-3),
        "citeseer": (1, 0.1, 1, 0.25, 1e-4),
    },
    "pamc": {
        "usps": (2, 2, 4, 0.5, 1e-3),
        "hhar": (0.5, 12.5, 2, 1.5, 1e-3),
        "reuters": (1, 0.2, 1, 0.25, 1e-4),
        "acm": (0.5, 0.5, 1, 0.5, 1e-3),
        "dblp": (2, 2, 1, 1, 1e-3),
        "citeseer": (2, 2.5, 3, 0.5, 1e-3),
    },
}
FILES = {"scgc": "scgc/{}.yaml", "scgc*": "scgc/{}_star.yaml", "pamc": "pamc/{}.yaml"}


def read(name: str) -> dict:
    return yaml.safe_load((RECIPES / name).read_text())


@pytest.mark.parametrize("dataset", SHAPES)
@pytest.mark.parametrize("method", SETTINGS)
def test_settings_are_those_of_the_official_code(method, dataset):
    recipe = read(FILES[method].format(dataset))
    args = recipe["model"]["init_args"]
    adam = args["optimizer"]
    assert recipe["model"]["class_path"] == ("graphs.PamC" if method == "pamc" else "graphs.SCGC")
    assert (args["in_dim"], args["n_clusters"]) == SHAPES[dataset]
    assert SETTINGS[method][dataset] == (
        args["alpha"],
        args["beta"],
        args["order"],
        args["inverse_temperature"],
        adam["init_args"]["lr"],
    )
    assert adam["class_path"] == "torch.optim.Adam"
    assert "weight_decay" not in adam["init_args"]
    assert method == "pamc" or args["variant"] == method
    assert "pretraining_epochs" not in args  # 30, the default
    assert recipe["trainer"]["max_epochs"] == 200
    assert recipe["data"]["init_args"] == {"dataset": dataset}


@pytest.mark.parametrize("dataset", SHAPES)
def test_autoencoders_are_pre_trained_as_sdcn_does(dataset):
    recipe = read(f"autoencoder/{dataset}.yaml")
    args = recipe["model"]["init_args"]
    assert args["in_dim"] == SHAPES[dataset][0]
    assert args["optimizer"]["init_args"]["lr"] == 1e-3
    assert recipe["trainer"]["max_epochs"] == 30
    assert recipe["data"]["init_args"] == {"dataset": dataset, "batch_size": 256}


def test_no_recipe_is_left_unchecked():
    checked = {
        *(pattern.format(d) for pattern in FILES.values() for d in (*SHAPES, "digits")),
        *(f"autoencoder/{d}.yaml" for d in (*SHAPES, "digits")),
        *(f"{folder}/small.yaml" for folder in ("autoencoder", "scgc", "pamc")),
    }
    assert {str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml")} == checked
