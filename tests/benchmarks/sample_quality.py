"""Quality of samples against network calls, by sampler and diffusion; run by hand.

    python -m tests.benchmarks.sample_quality mixture
    python -m tests.benchmarks.sample_quality runs/digits-vpsde-0-0 --guides vpsde cld malda alda
    python -m tests.benchmarks.sample_quality --plot docs/measured/samplers.png

``mixture`` has exact scores; a run's denoiser serves every guide, and a run with a score of the raw
state its own alone. Quality is the squared energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of
samples X to held-out data Y, without bias (so that it may be below 0), of x as it is and in the
features of ``tests.benchmarks.classifier``. Its standard error is over blocks of samples, given the
data. Calls are of the sampler; reading x off y_ε may take one more, for all alike. Each row is
written to ``--out`` when it is found, and what is there is not drawn again.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from inference.folders.loading import load_trained
from inference.measuring.reuse import reuse
from pyro_mdm import ALDA, CLD, MALDA, VPSDE, DiffusionModel, LinearDiffusion
from pyro_mdm.samplers import (
    Ancestral,
    EulerMaruyama,
    ExponentialIntegrator,
    ProbabilityFlow,
    Sampler,
    Splitting,
    StochasticExponentialIntegrator,
    StochasticHeun,
)
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.modules import evaluating
from tests.benchmarks.classifier import features_of
from tests.problems import ExactScore, mixture

COLUMNS = ("data", "score", "guide", "sampler", "calls", "space", "distance", "error", "seconds")
CALLS = (5, 10, 20, 50, 100, 500)
BLOCKS = 8
PRESETS = {"vpsde": VPSDE, "cld": CLD, "malda": MALDA, "alda": ALDA}

E, S = ExponentialIntegrator, StochasticExponentialIntegrator
SAMPLERS: dict[str, tuple[int, Callable[[int], Sampler]]] = {  # calls a step
    "euler": (1, EulerMaruyama),
    "splitting": (1, Splitting),
    "ancestral": (1, Ancestral),
    "exponential-1": (1, lambda n: E(n, order=1)),
    "exponential-2": (1, E),
    "exponential-3": (1, lambda n: E(n, order=3)),
    "exponential-2-log_snr": (1, lambda n: E(n, grid="log_snr")),
    "exponential-2-log_volume": (1, lambda n: E(n, grid="log_volume")),
    "stochastic-2": (1, S),
    "stochastic-2-half": (1, lambda n: S(n, noise=0.5)),
    "probability_flow": (2, ProbabilityFlow),
    "stochastic_heun": (2, StochasticHeun),
}

Draw = Callable[[Sampler, int, int], Tensor]
Space = Callable[[Tensor], Tensor]


class Case:
    """A diffusion with what draws from it, and held-out data in each space."""

    def __init__(self, key: tuple[str, str, str], draw: Draw, spaces: dict[str, Space], y: Tensor):
        self.key, self.draw, self.spaces = key, draw, spaces
        self.data = {name: space(y) for name, space in spaces.items()}
        self.own = {name: within(y) for name, y in self.data.items()}

    def distances(self, x: list[Tensor]) -> Iterator[tuple[str, float, float]]:
        """By space, of blocks of samples."""
        for name, space in self.spaces.items():
            found = torch.stack(
                [
                    2 * torch.cdist(b, self.data[name]).mean() - within(b) - self.own[name]
                    for b in map(space, x)
                ]
            )
            yield name, float(found.mean()), float(found.std()) / math.sqrt(len(found))


def within(x: Tensor) -> Tensor:
    """E|X - X'| of different rows."""
    return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))


def _flat(x: Tensor) -> Tensor:
    return x.double().flatten(1)


def cases_of_mixture(guides: list[str]) -> Iterator[Case]:
    problem = mixture()
    y = problem.sample(20_000, seed=99)
    for guide in guides:
        diffusion = PRESETS[guide](max_log_snr=9.0)
        draw = _of_mixture(diffusion, problem)
        yield Case(("mixture", "exact", guide), draw, {"x": _flat}, _flat(y))


def _of_mixture(diffusion: LinearDiffusion, problem) -> Draw:  # type: ignore[no-untyped-def]
    score = ExactScore(problem, diffusion)

    def draw(sampler: Sampler, n: int, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        y = sampler(diffusion, score, (n, diffusion.num_variables, 2), rng)
        s = diffusion.start_time
        return score.denoise(y, s.expand(n))

    return draw


def cases_of_run(folder: Path, guides: list[str], most: int, classifiers: Path) -> Iterator[Case]:
    run, own, _ = load_trained(folder)
    problem, model = own.problem, own.model
    y = torch.cat([problem.test, problem.validation])
    y = problem.to_model_space(y[:most])
    spaces: dict[str, Space] = {"x": _flat}
    if problem.name in ("digits", "fashion_mnist"):
        net = features_of(problem.name, classifiers)
        spaces["features"] = lambda x: net.features(x).double()
    kind = "denoiser" if isinstance(model.score_function, DenoiserScore) else "raw state"
    if kind == "raw state":
        guides = [run.config["guide"]]
    for guide in guides:
        other = model if guide in ("own", run.config["guide"]) else _reused(folder, guide)
        yield Case((problem.name, kind, guide), _of_model(other), spaces, y)


def _reused(folder: Path, guide: str) -> DiffusionModel:
    return reuse(folder, guide).programs.model


def _of_model(model: DiffusionModel) -> Draw:
    def draw(sampler: Sampler, n: int, seed: int) -> Tensor:
        model.sampler = sampler
        with torch.random.fork_rng(devices=[]), evaluating(model):
            torch.manual_seed(seed)
            return model(batch_size=n).detach()

    return draw


def measure(case: Case, samplers: list[str], calls: list[int], n: int, out: Path) -> None:
    done = {tuple(row[c] for c in COLUMNS[:5]) for row in read(out)}
    for name in samplers:
        per_step, make = SAMPLERS[name]
        for number in calls:
            key = (*case.key, name, str(number))
            if key in done or number % per_step:
                continue
            sampler, start = make(max(1, number // per_step)), time.perf_counter()
            x = [case.draw(sampler, n // BLOCKS, seed) for seed in range(BLOCKS)]
            seconds = time.perf_counter() - start
            found = list(case.distances(x))
            with out.open("a", newline="") as f:
                writer = csv.writer(f)
                for space, distance, error in found:
                    writer.writerow(
                        [*key, space, f"{distance:.6g}", f"{error:.3g}", f"{seconds:.1f}"]
                    )
                    print(f"{' '.join(key)} {space}: {distance:.5f} ± {error:.5f}", flush=True)


def read(out: Path) -> list[dict[str, str]]:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(",".join(COLUMNS) + "\n")
    with out.open(newline="") as f:
        return list(csv.DictReader(f))


# -- for people ------------------------------------------------------------------------------------


def plot(rows: list[dict[str, str]], out: Path) -> None:
    """Distance against calls: a panel for each data set and score, a line for each diffusion.

    In the features of the classifier, where there is one.
    """
    names = ["euler", "splitting", "ancestral", "probability_flow"]
    names += ["exponential-2", "exponential-3", "stochastic-2"]
    spaces = {row["data"]: row["space"] for row in rows}  # the last, features
    panels = list(dict.fromkeys((r["data"], r["score"], spaces[r["data"]]) for r in rows))
    columns = min(4, len(panels))
    figure, grid = plt.subplots(
        *(math.ceil(len(panels) / columns), columns),
        figsize=(3.3 * columns, 2.9 * math.ceil(len(panels) / columns)),
        layout="constrained",
        squeeze=False,
    )
    for axes, (data, score, space) in zip(grid.flat, panels, strict=False):
        here = [r for r in rows if (r["data"], r["score"], r["space"]) == (data, score, space)]
        for color, name in enumerate(names):
            for guide in dict.fromkeys(row["guide"] for row in here):
                some = [r for r in here if (r["guide"], r["sampler"]) == (guide, name)]
                some.sort(key=lambda r: int(r["calls"]))
                calls = [int(r["calls"]) for r in some]
                values = [max(float(r["distance"]), float(r["error"])) for r in some]
                first = guide == here[0]["guide"]
                label = name if first else None
                axes.loglog(calls, values, f"C{color}.-", lw=1, alpha=0.7, label=label)
        axes.set_title(f"{data}, {score}, {space}", fontsize=9)
        axes.set_xlabel("network calls")
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    grid[0, 0].set_ylabel("energy distance to held-out data")
    grid[0, 0].legend(fontsize=6)
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plot", type=Path, help="of --out, as a .png")
    parser.add_argument("source", nargs="?", help="mixture, or a run's folder")
    parser.add_argument("--guides", nargs="*", default=list(PRESETS), help="run:FOLDER too, or own")
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--calls", type=int, nargs="*", default=list(CALLS))
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--data", type=int, default=2000, help="the most held-out data")
    parser.add_argument("--classifiers", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("runs/quality.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.plot is not None:
        plot(read(options.out), options.plot)
    if options.source is None:
        return
    if options.source == "mixture":
        cases = cases_of_mixture(options.guides)
    else:
        folder = Path(options.source)
        cases = cases_of_run(folder, options.guides, options.data, options.classifiers)
    for case in cases:
        measure(case, options.samplers, options.calls, options.samples, options.out)


if __name__ == "__main__":
    main()
