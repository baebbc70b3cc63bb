"""The tables of :mod:`inference.experiment`: the runs of each, with their settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from inference.folders.config import load_yaml
from pyro_mdm.support.files import ROOT

RECIPES = ROOT / "models"

RunOptions = dict[str, Any]

GUIDES: dict[str, RunOptions] = {
    "vpsde": {"guide": "vpsde"},
    "cld": {"guide": "cld"},
    "malda": {"guide": "malda"},
    "alda": {"guide": "alda"},
    "learned1": {"guide": "learned", "num_variables": 1},
    "learned2": {"guide": "learned", "num_variables": 2},
    "learned3": {"guide": "learned", "num_variables": 3},
}
# what learning gains beside its start, for scores of the raw state (with a denoiser all diffusions
# are the same): what `learned` starts as, left so (for K = 1 that is vpsde), and learned ones that
# start elsewhere
GAINS: dict[str, RunOptions] = {
    f"{name}_frozen": GUIDES[name] | {"diffusion_learning_rate": 0.0}
    for name in ("learned2", "learned3")
} | {
    f"learned_from_{name}": {"guide": "learned", "learned_from": name}
    for name in ("cld", "malda", "alda")
}
STARTS = {
    "learned1": "vpsde",
    "learned2": "learned2_frozen",
    "learned3": "learned3_frozen",
    **{f"learned_from_{name}": name for name in ("cld", "malda", "alda")},
}
"""The guide that each learned one starts as, where a table has both."""
# the same diffusions with one log SNR at time T
MATCHED: dict[str, RunOptions] = {
    name: options | {"min_log_snr": -10.0}
    for name, options in GUIDES.items()
    if options["guide"] != "learned"
}

# a learned drift beside its linear start, simulated and in closed form
DRIFTS: dict[str, RunOptions] = {
    name: {"guide": f"inference.guides.learned_drift:{name}"}
    for name in ("linear", "learned", "closed")
}


# linear diffusions of every kind, in time, by dimension and seeing the data, between the same ends
LINEAR: dict[str, RunOptions] = {
    "vpsde": {"guide": "vpsde"},
    "time_varying": {"guide": "learned", "time_varying": True},
    "per_pixel": {"guide": "inference.guides.by_dimension:per_pixel"},
    "encoder": {"guide": "inference.guides.encoder:cld"},
    "context": {"guide": "inference.guides.latent_context:gaussian"},
    "scales": {"guide": "inference.guides.driven:scales"},
    "means_and_scales": {"guide": "inference.guides.driven:means_and_scales"},
}
FREQUENCIES: dict[str, RunOptions] = {
    "per_frequency": {"guide": "inference.guides.blurring:blurring"},  # levels are of pixels
}


@dataclass(frozen=True)
class Cell:
    """One training run of a table."""

    guide: str
    score: str
    seed: int
    options: RunOptions

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.score}-{self.guide}-{self.seed}"


@dataclass(frozen=True)
class RunTable:
    """The runs of a table: one network (up to its channels), optimizer, steps and data for all."""

    scores: tuple[str, ...]
    options: RunOptions
    guides: dict[str, RunOptions] = field(default_factory=lambda: GUIDES)
    seeds: int = 3
    further: dict[str, dict[str, RunOptions]] = field(default_factory=dict)  # guides of one score

    def guides_of(self, score: str) -> dict[str, RunOptions]:
        """The guides of a score by name, those of all scores first."""
        return self.guides | self.further.get(score, {})

    def cells(self) -> Iterator[Cell]:
        """The runs, seed by seed, so that the first ones already make a table."""
        for seed in range(self.seeds):
            for score in self.scores:
                for guide, options in self.guides_of(score).items():
                    yield Cell(guide, score, seed, self.options | options)


# what these tables were measured with
PLAIN: RunOptions = {"times": "log_volume", "batch_size": 128, "network": "small"}

# few measurements and pictures during training: the comparison at the end is what counts
BRIEF: RunOptions = {
    "measure_every": 100,
    "num_samples": 16,
    "sampler_steps": 64,
    "draws": 8,
    "figures": False,
}

TABLES = {
    "digits": RunTable(
        ("discrete", "denoiser", "noise"),
        {"model": "digits", "steps": 400, **PLAIN, **BRIEF},
        further={"noise": GAINS},
    ),
    "mnist5k": RunTable(
        ("discrete", "denoiser", "noise"),
        {"model": "mnist5k", "steps": 100, **PLAIN, **BRIEF},
        further={"noise": GAINS},
    ),
    "fashion_mnist": RunTable(
        ("discrete", "denoiser", "noise"),
        {"model": "fashion_mnist", "steps": 100, "test_size": 256, **PLAIN, **BRIEF},
        further={"noise": GAINS},
    ),
    "ends": RunTable(("discrete",), {"model": "digits", "steps": 400, **PLAIN, **BRIEF}, MATCHED),
    "drift": RunTable(
        ("residual",),
        {
            "model": "toy",
            "steps": 800,
            "batch_size": 256,
            "diffusion_learning_rate": 2e-3,
            **BRIEF,
            "draws": 64,
        },
        DRIFTS,
    ),
    "linear": RunTable(
        ("discrete", "denoiser", "noise"),
        {
            "model": "fashion_mnist",
            "steps": 250,
            **PLAIN,
            "batch_size": 64,
            "warmup": 50,
            "min_log_snr": -10.0,
            "test_size": 256,
            **BRIEF,
            "measure_every": 125,
        },
        LINEAR,
        further={"denoiser": FREQUENCIES, "noise": FREQUENCIES},
    ),
}

# -- the paper's table -----------------------------------------------------------------------------

PaperData = Literal["mnist", "cifar10", "imagenet32", "fashion_mnist", "mnist5k", "digits"]
"""Data sets of the paper, and three that are small or at hand."""

PAPER_GUIDES: dict[str, RunOptions] = {
    name: {"guide": f"inference.guides.published:{name}_at_time"}
    for name in ("vpsde", "cld", "malda", "alda", "learned2", "learned3")
}
PAPER_GUIDES["alda"] |= {"precision": "64-true"}  # its log SNR at s = 0.001 is 48
FIXED = ("vpsde", "cld", "malda", "alda")

SIZES: dict[str, RunOptions] = {
    "mnist": {},
    "cifar10": {},
    "imagenet32": {},
    "fashion_mnist": {"steps": 3000, "batch_size": 64, "test_size": 1000, **BRIEF},
    "mnist5k": {"steps": 3000, "batch_size": 64, **BRIEF},
    "digits": {"steps": 4000, "network": "small", **BRIEF},
}
"""What differs from the recipes, which are those of the paper: for data sets that it does not have,
how much a CPU can train."""


def paper(images: PaperData) -> RunTable:
    """The paper's table of a data set: four diffusions and two learned ones by its protocol.

    Settings are those of ``models/*_paper.yaml``; the loss of a datum has the clip of 2 nats and
    Adam's ε of 1e-8 there, which are divided by the dimensions of a datum.
    """
    recipe = images if (RECIPES / f"{images}_paper.yaml").exists() else "mnist"
    options: RunOptions = load_yaml((RECIPES / f"{recipe}_paper.yaml").read_text("utf-8"))
    options = {name: value for name, value in options.items() if name not in ("guide", "score")}
    options |= {"model": "imagenet32_new" if images == "imagenet32" else images} | SIZES[images]
    if images == "digits":
        options |= {"clip": 2 / 64, "adam_epsilon": 1e-8 / 64}
    if SIZES[images]:
        options["measure_every"] = options["steps"] // 4
    seeds = {"digits": 10}.get(images, 3)
    return RunTable(("noise",), options, PAPER_GUIDES, seeds)
