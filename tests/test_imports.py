"""What the faces of the packages may cost."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "torch_geometric", "transformers", "timm", "faiss", "monai")


def loaded_by(code: str) -> set[str]:
    """The heavy packages that running ``code`` in a fresh interpreter imports."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(HEAVY) & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "package",
    ["common", "vision", "vision.data", "graphs", "graphs.data", "text", "medical", "benchmarks"],
)
def test_the_face_of_a_package_loads_nothing_heavy(package):
    assert loaded_by(f"import {package}") == set()


def test_a_graph_method_loads_nothing_of_other_domains():
    loaded = loaded_by("import graphs; graphs.SCGC")
    assert {"torch", "lightning", "torch_geometric"} <= loaded
    assert not loaded & {"timm", "faiss", "monai"}  # transformers comes with torchmetrics


def test_an_unknown_name_is_an_attribute_error():
    import graphs

    with pytest.raises(AttributeError, match="SGCC"):
        graphs.SGCC  # noqa: B018
    assert "SCGC" in dir(graphs)
