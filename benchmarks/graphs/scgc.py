"""SCGC and SCGC* (arXiv 2204.12656): clustering of attributed graphs, and their baselines."""

from benchmarks.harness.table import Row, Scale, Table

AUTOENCODER = "Autoencoder + k-means"
AUTOENCODER_RECIPE = "graphs/recipes/autoencoder/{dataset}.yaml"
SCGC_RECIPE = "graphs/recipes/scgc/{dataset}.yaml"
STAR_RECIPE = "graphs/recipes/scgc/{dataset}_star.yaml"
PAMC_RECIPE = "graphs/recipes/pamc/{dataset}.yaml"

SDCN_BENCHMARK = ("acm", "dblp", "citeseer", "usps", "hhar", "reuters")
METRICS = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "f1": "F1"}
SCALES = {
    "small": Scale(
        datasets=("digits",),
        others=SDCN_BENCHMARK,
        seeds=3,
        overlay="small.yaml",
        as_is=("digits",),
    ),
    "paper": Scale(datasets=SDCN_BENCHMARK, seeds=10),
}

TABLE = Table(
    name="scgc",
    title="Deep graph clustering: SCGC, SCGC* and what they are compared with",
    domain="graphs",
    rows=(
        Row("k-means", STAR_RECIPE, score="features"),
        Row(AUTOENCODER, AUTOENCODER_RECIPE, score="kmeans"),
        Row(
            "DEC (alpha = 0)",
            STAR_RECIPE,
            overrides={"model.init_args.alpha": 0.0},
            starts_from=AUTOENCODER,
        ),
        Row("SCGC", SCGC_RECIPE, starts_from=AUTOENCODER),
        Row("SCGC*", STAR_RECIPE, starts_from=AUTOENCODER),
        Row("PamC", PAMC_RECIPE, starts_from=AUTOENCODER),
        Row(
            "SCGC*, beta = 0",
            STAR_RECIPE,
            overrides={"model.init_args.beta": 0.0},
            starts_from=AUTOENCODER,
            optional=True,
        ),
        *(
            Row(
                f"SCGC*, r = {order}",
                STAR_RECIPE,
                overrides={"model.init_args.order": order},
                starts_from=AUTOENCODER,
                optional=True,
            )
            for order in (1, 2, 3, 4)
        ),
    ),
    scales=SCALES,
    metrics=METRICS,
    published="scgc.csv",
    expect=(
        "SCGC* above both k-means rows and above alpha = 0 in ACC, NMI and ARI at the last epoch."
    ),
)
