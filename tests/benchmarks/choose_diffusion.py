"""Choose Q, D and the grid of a sampler after training, for few network calls; run by hand.

    python -m tests.benchmarks.choose_diffusion mixture
    python -m tests.benchmarks.choose_diffusion runs/digits-vpsde-0-0 --samples 2048

A trained denoiser serves every linear diffusion, and ancestral sampling cannot tell one from
another (tests/core/test_sampler_orders.py). A deterministic sampler turns through the K noises. So
here the diffusion is what is trained: the energy distance between training data and what the
exponential integrator of order 2 makes of noise in N calls, and one that reads x̂ at ε, is
minimized over Q, D and the grid, through the sampler, for K = 1 (where the grid is all there is), 2
and 3. Then all are compared with VPSDE on its usual grid, on held-out data, from the same noise of
z, with the standard error of paired differences over 8 blocks of samples. It is given the diffusion
that was chosen and the data; a 95% interval is ± 2.4 of it."""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from inference.folders.loading import load_trained
from pyro_mdm import VPSDE, LearnedDiffusion, LinearDiffusion
from pyro_mdm.diffusions.base import apply_vector
from pyro_mdm.diffusions.clocks import as_times
from pyro_mdm.diffusions.matrices import apply_matrix
from pyro_mdm.paths.base import BoundScore
from pyro_mdm.samplers import ExponentialIntegrator, quadratic_grid
from pyro_mdm.samplers.base import Questions
from pyro_mdm.scores.base import rotated
from pyro_mdm.support.progress import progress_bar
from tests.benchmarks.classifier import features_of
from tests.benchmarks.sample_quality import within
from tests.problems import mixture

COLUMNS = (
    *("data", "calls", "diffusion", "space", "distance", "error"),
    *("less_vpsde", "less_vpsde_error", "less_k1", "less_k1_error"),
)
SILENT = progress_bar(1, "", "", shown=False)
BLOCKS = 8

Space = Callable[[Tensor], Tensor]


class Problem(NamedTuple):
    """What is sampled: a denoiser for every diffusion, data to fit and held-out data."""

    name: str
    denoiser: Callable[[LinearDiffusion], Any]  # with denoise(y, s)
    train: Tensor
    test: Tensor
    spaces: dict[str, Space]
    max_log_snr: float
    min_log_snr: float
    dtype: torch.dtype


class Exact:
    """The mixture's denoiser, differentiable in the diffusion."""

    dtype = torch.float64

    def __init__(self, diffusion: LinearDiffusion) -> None:
        self.diffusion, self.problem = diffusion, mixture()

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        marginal = self.diffusion.marginal(s[0])
        return self.problem.x_hat(apply_vector(marginal.readout, y), marginal.log_snr)


def problem_of(source: str, classifiers: Path) -> Problem:
    flat: dict[str, Space] = {"x": lambda x: x.double().flatten(1)}
    if source == "mixture":
        data = mixture()
        train, test = data.sample(10_000, seed=98), data.sample(10_000, seed=99)
        return Problem("mixture", Exact, train, test, flat, 9.0, -10.0, torch.float64)
    _, (problem, model, _), _ = load_trained(Path(source))
    score = model.score_function.eval().requires_grad_(False)
    net = features_of(problem.name, classifiers)
    spaces = flat | {"features": lambda x: net.features(x.float()).double()}
    train = problem.to_model_space(problem.train)
    test = problem.to_model_space(torch.cat([problem.test, problem.validation])[:2000])
    low, high = score.trained_min.item(), score.trained_max.item()

    def denoiser(diffusion: LinearDiffusion) -> BoundScore:
        return BoundScore(diffusion, score)

    return Problem(problem.name, denoiser, train, test, spaces, high, low, torch.float32)


class Candidate(nn.Module):
    """A diffusion with a grid: its steps' shares of the log volume."""

    def __init__(self, diffusion: LinearDiffusion, steps: int) -> None:
        super().__init__()
        self.diffusion = diffusion
        with torch.no_grad():
            kappa = diffusion.log_volume(quadratic_grid(diffusion, steps))
        self.shares = nn.Parameter((-kappa.diff()).log())

    def times(self, diffusion: Any, steps: int) -> Tensor:
        low, high = diffusion.log_volume.ends
        part = self.shares.softmax(0).cumsum(0)[:-1]
        inner = diffusion.log_volume.inverse(high - part * (high - low))
        ends = as_times(diffusion.horizon)[None], diffusion.start_time[None]
        return torch.cat([ends[0], inner, ends[1]])


def generate(problem: Problem, one: Candidate, noise: Tensor, usual: bool = False) -> Tensor:
    """x̂ at ε from noise (n, ≥ K, *event_shape), whose first variable is that of z at T."""
    diffusion, steps = one.diffusion, len(one.shares)
    end = diffusion.marginal(as_times(diffusion.horizon)[None])
    y = apply_matrix(end.scale_tril[0], rotated(end, noise))
    sampler = ExponentialIntegrator(steps)
    times = sampler.times(diffusion) if usual else one.times(diffusion, steps)
    ask = Questions(diffusion, problem.denoiser(diffusion), problem.dtype)
    plan = sampler.planned(ask, times, y)
    for i in range(steps):
        y = sampler.step(plan, i, y, ask, _none)
    return ask.denoise(y, diffusion.start_time)


def _none() -> Tensor:
    raise AssertionError("a deterministic sampler draws nothing")


def energy(x: Tensor, y: Tensor) -> Tensor:
    """2 E|X - Y| - E|X - X'|: the energy distance but for what is of the data alone."""
    return 2 * torch.cdist(x, y).mean() - _within(x)


def _within(x: Tensor) -> Tensor:
    i, j = torch.triu_indices(len(x), len(x), 1)
    return (x[i] - x[j]).norm(dim=1).mean() if x.requires_grad else within(x)


def choose(problem: Problem, one: Candidate, iterations: int, batch: int, seed: int) -> None:
    """Minimize the distance to training data over the diffusion and the grid.

    Of what is found on the way, the best on the training data and noise of its own is kept.
    """
    optimizer = torch.optim.Adam(one.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, 3, *problem.train.shape[1:])
    fixed = torch.Generator().manual_seed(seed + 1)
    some = torch.randn(4 * batch, *shape[1:], generator=fixed, dtype=torch.float64)
    those = problem.train[torch.randperm(len(problem.train), generator=fixed)[: 16 * batch]]
    those, best = those.double().flatten(1), (math.inf, {})

    def judge() -> None:
        nonlocal best
        with torch.no_grad():
            value = float(energy(generate(problem, one, some).flatten(1), those))
        if value < best[0]:
            best = value, {name: v.clone() for name, v in one.state_dict().items()}

    for i in tqdm(range(iterations), leave=False, mininterval=20):
        if i % 10 == 0:
            judge()
        noise = torch.randn(*shape, generator=rng, dtype=torch.float64)
        rows = torch.randint(len(problem.train), (8 * batch,), generator=rng)
        optimizer.zero_grad()
        x = generate(problem, one, noise).flatten(1)
        energy(x, problem.train[rows].double().flatten(1)).backward()
        nn.utils.clip_grad_norm_(one.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    judge()
    one.load_state_dict(best[1])


@torch.no_grad()
def distances(problem: Problem, one: Candidate, n: int, usual: bool) -> dict[str, Tensor]:
    """Of blocks of samples to held-out data, by space."""
    found: dict[str, list[Tensor]] = {name: [] for name in problem.spaces}
    data = {name: space(problem.test) for name, space in problem.spaces.items()}
    known = {name: within(y) for name, y in data.items()}
    for seed in range(BLOCKS):
        rng = torch.Generator().manual_seed(10**6 + seed)
        shape = (n // BLOCKS, 3, *problem.train.shape[1:])
        noise = torch.randn(*shape, generator=rng, dtype=torch.float64)
        x = generate(problem, one, noise, usual)
        for name, space in problem.spaces.items():
            block = space(x)
            between = torch.cdist(block, data[name]).mean()
            found[name].append(2 * between - within(block) - known[name])
    return {name: torch.stack(values) for name, values in found.items()}


def rows_of(
    problem: Problem, steps: int, iterations: int, batch: int, n: int, seed: int, out: Path
) -> None:
    ends = {"max_log_snr": problem.max_log_snr, "min_log_snr": problem.min_log_snr}
    cases: dict[str, tuple[Candidate, bool]] = {
        "VPSDE": (Candidate(VPSDE(**ends), steps), True),
        "K = 1": (Candidate(LearnedDiffusion(1, **ends), steps), False),
        "K = 2": (Candidate(LearnedDiffusion(2, **ends), steps), False),
        "K = 3": (Candidate(LearnedDiffusion(3, **ends), steps), False),
    }
    vpsde: dict[str, Tensor] = {}
    grid: dict[str, Tensor] = {}
    for name, (one, usual) in cases.items():
        start = time.perf_counter()
        before = None if usual else distances(problem, one, n, False)
        if not usual:
            choose(problem, one, iterations, batch, seed)
        found = distances(problem, one, n, usual)
        vpsde = vpsde or found
        grid = found if name == "K = 1" else grid
        for label, values in {f"{name}, unchosen": before, name: found}.items():
            for space, blocks in (values or {}).items():
                against = [vpsde[space], grid.get(space, blocks)]
                compared = [blocks, *(blocks - other for other in against)]
                numbers = [f(v) for v in compared for f in (_mean, _error)]
                with out.open("a", newline="") as f:
                    text = [f"{number:.6g}" for number in numbers]
                    csv.writer(f).writerow([problem.name, steps, label, space, *text])
                print(
                    f"{problem.name}, {steps} calls, {label}, {space}: {numbers[0]:.5f} ± "
                    f"{numbers[1]:.5f}, less VPSDE {numbers[2]:+.5f} ± {numbers[3]:.5f}, "
                    f"less K = 1 {numbers[4]:+.5f} ± {numbers[5]:.5f}",
                    flush=True,
                )
        diffusion = one.diffusion
        with torch.no_grad():
            chosen = {
                "Q": diffusion.Q.tolist(),
                "D": diffusion.D.tolist(),
                "shares": one.shares.softmax(0).tolist(),
                "seconds": time.perf_counter() - start,
            }
        with out.with_suffix(".jsonl").open("a") as f:
            f.write(json.dumps({"data": problem.name, "calls": steps, "of": name, **chosen}) + "\n")


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", help="mixture, or the folder of a run with a denoiser")
    parser.add_argument("--calls", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classifiers", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("runs/choose.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.out.exists():
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(",".join(COLUMNS) + "\n")
    problem = problem_of(options.source, options.classifiers)
    for steps in options.calls:
        rows_of(
            problem,
            steps,
            options.iterations,
            options.batch,
            options.samples,
            options.seed,
            options.out,
        )


if __name__ == "__main__":
    main()
