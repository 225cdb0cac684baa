"""PamC (arXiv 2209.14067): meta-nodes in place of the exact negatives of SCGC*."""

from benchmarks.graphs.scgc import (
    AUTOENCODER,
    AUTOENCODER_RECIPE,
    METRICS,
    PAMC_RECIPE,
    SCALES,
    STAR_RECIPE,
)
from benchmarks.harness.table import Row, Table

TABLE = Table(
    name="pamc",
    title="Deep graph clustering: meta-nodes (PamC) against exact negatives (SCGC*)",
    domain="graphs",
    rows=(
        Row(AUTOENCODER, AUTOENCODER_RECIPE, score="kmeans"),
        Row(
            "DEC (alpha = 0)",
            STAR_RECIPE,
            overrides={"model.init_args.alpha": 0.0},
            starts_from=AUTOENCODER,
        ),
        Row("SCGC* (exact negatives)", STAR_RECIPE, starts_from=AUTOENCODER),
        Row("PamC (meta-nodes)", PAMC_RECIPE, starts_from=AUTOENCODER),
        Row(
            "Exact negatives, settings of PamC",
            PAMC_RECIPE,
            overrides={"model.class_path": "graphs.SCGC", "model.init_args.variant": "scgc*"},
            starts_from=AUTOENCODER,
            optional=True,
        ),
        Row(
            "PamC, beta = 0",
            PAMC_RECIPE,
            overrides={"model.init_args.beta": 0.0},
            starts_from=AUTOENCODER,
            optional=True,
        ),
    ),
    scales=SCALES,
    metrics=METRICS,
    published="pamc.csv",
    expect=(
        "PamC above autoencoder + k-means and above alpha = 0 at the last epoch, "
        "and not below SCGC* by more than a few points."
    ),
)
