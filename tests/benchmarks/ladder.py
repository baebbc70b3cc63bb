"""Which change of the recipe gives a better bound for the same time; run by hand.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.ladder --seconds 120 --seeds 0 1 2

Every rung is one change of the base: VPSDE from the data set's log SNR to -10, a discrete denoiser,
and the options of ``inference.train`` as they were before this ladder (uniform log SNRs, Adam with
a cosine, batches of 128). A rung has the base's time, not its steps: seconds of the processor for a
step are taken in turns with the base's, and it has as many steps as the ratio of the medians says.
Bounds are of the validation part, with the averaged weights; the test part is not looked at.
Differences are paired by seed and image; their 95% intervals are for other seeds and other images,
of one seed for other images alone.
A (rung, seed) that is finished is kept in ``--out``, so the program can be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy import optimize, stats
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from inference import evaluate, loading
from inference.loading import Programs
from inference.options import Decided
from inference.processes import start
from inference.train import Trainee
from models.base import FINE, SMALL, ImageProblem
from models.digits import Digits
from models.fashion_mnist import FashionMNIST
from models.mnist5k import Mnist5k
from pyro_mdm import VPSDE, DiffusionGuide, randomness
from pyro_mdm.evaluation import log_likelihood
from pyro_mdm.evaluation.estimates import Z95
from pyro_mdm.networks import UNet
from pyro_mdm.support.progress import progress_bar


class Photographs(ImageProblem):
    """Squares of 32×32 pixels in colour, cut out of scikit-learn's two photographs.

    Of the left seven tenths of each every 8th pixel begins one to train on; of the right quarter
    every 16th one to validate or, in turn, to test on. No pixel trained on is in the others.
    """

    name = "photographs"
    event_shape = (3, 32, 32)
    networks: ClassVar = {"small": SMALL}

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        whole = torch.tensor(np.stack(load_sample_images().images))
        whole = whole.movedim(-1, 1)  # (2, 3, 427, 640)
        train, kept = squares(whole[..., :448], 8), squares(whole[..., 480:], 16)
        return train, kept[::2], kept[1::2]


def squares(images: Tensor, every: int) -> Tensor:
    """Those of 32×32 pixels of images (n, 3, H, W) that begin at every so many, (m, 3, 32, 32)."""
    cut = images.unfold(2, 32, every).unfold(3, 32, every)  # (n, 3, rows, columns, 32, 32)
    return cut.movedim(1, 3).reshape(-1, 3, 32, 32)


PROBLEMS: dict[str, type[ImageProblem]] = {
    "digits": Digits,
    "mnist5k": Mnist5k,
    "fashion_mnist": FashionMNIST,
    "photographs": Photographs,
}
MOST = 1_000  # validation images measured


# -- changes that are no options of inference.train ------------------------------------------------


class Fourier(nn.Module):
    """A network that also sees sin and cos of z with periods of two levels and of one (VDM)."""

    def __init__(self, inputs: int, outputs: int, problem: ImageProblem, **options: Any) -> None:
        super().__init__()
        self.network = UNet(5 * inputs, outputs, **options)
        gap = 2 / (problem.num_levels - 1)
        self.rates = [math.pi / gap, 2 * math.pi / gap]
        x = problem.fit_x().double()
        mean, variance = x.mean(0), x.var(0)
        self.register_buffer("mean", mean.float())
        self.register_buffer("variance", variance.clamp_min(0.5 * variance.mean()).float())

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        v = torch.exp(-log_snr).reshape(-1, *[1] * (x.dim() - 1))
        z = self.mean + x * (self.variance + v).sqrt()
        waves = [wave(rate * z) for rate in self.rates for wave in (torch.sin, torch.cos)]
        out: Tensor = self.network(torch.cat([x, *waves], 1), log_snr)
        return out


class SelfConditioned(nn.Module):
    """A network that sees what it has said itself, of the same z; in training half of the time.

    It stays a function of z and log SNR, so that the bound stays one, of two calls.
    """

    def __init__(self, inputs: int, outputs: int, problem: ImageProblem, **options: Any) -> None:
        super().__init__()
        self.network = UNet(inputs + outputs, outputs, **options)
        self.outputs = outputs

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        said = x.new_zeros(len(x), self.outputs, *x.shape[2:])
        if not self.training or torch.rand(()) < 0.5:
            with torch.no_grad():
                said = self.network(torch.cat([x, said], 1), log_snr).tanh()
        out: Tensor = self.network(torch.cat([x, said], 1), log_snr)
        return out


class Shifts:
    """Half of each batch is moved by a pixel; in place of :class:`Augmentation`."""

    def __init__(self, seed: int, own: Tensor) -> None:
        self.seed, self.own = seed, own

    def __call__(self, images: Tensor, step: int, piece: int, pieces: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(loading.seed_from(self.seed, step))
        by = torch.randint(-1, 2, (len(images), 2), generator=generator)
        by[torch.rand(len(images), generator=generator) < 0.5] = 0
        padded = nn.functional.pad(images, (1, 1, 1, 1))
        places = nn.functional.pad(self.own, (1, 1, 1, 1), value=1.5)
        H, W = images.shape[2:]
        windows = [
            (slice(None), slice(1 - dy, 1 - dy + H), slice(1 - dx, 1 - dx + W))
            for dy, dx in by.tolist()
        ]
        moved = torch.stack([x[w] for x, w in zip(padded, windows, strict=True)])
        return moved, torch.stack([places[window] for window in windows])


def shifting(trainee: Trainee) -> AbstractContextManager[Any]:
    shifts = Shifts(trainee.settings.seed, trainee.located[0].own)
    return mock.patch.object(trainee, "augmentation", shifts)


@contextmanager
def antithetic(trainee: Trainee) -> Iterator[None]:
    """The second half of a batch has the noise of the first with the other sign."""
    normal = randomness.normal

    def mirrored(shape: Any, dtype: torch.dtype, device: Any) -> Tensor:
        drawn = normal(shape, dtype, device)
        half = len(drawn) // 2
        return torch.cat([drawn[:half], -drawn[:half], drawn[2 * half :]])

    with mock.patch.object(randomness, "normal", mirrored):
        yield


@contextmanager
def clipping(trainee: Trainee) -> Iterator[None]:
    """Gradients are clipped to the median of their last 200 norms (after Seetharaman 2020)."""
    norms: list[float] = []
    clip = trainee.fabric.clip_gradients

    def by_median(*arguments: Any, max_norm: float, **options: Any) -> Any:
        bound = statistics.median(norms[-200:]) if norms else max_norm
        norm = clip(*arguments, max_norm=bound, **options)
        norms.append(float(norm))
        return norm

    with mock.patch.object(trainee.fabric, "clip_gradients", by_median):
        yield


def power(width: float) -> float:
    """γ of the average with weights t^γ whose standard deviation is a part of all steps."""

    def excess(gamma: float) -> float:
        return float((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) - width**2)

    return float(optimize.brentq(excess, 0.0, 1e6))


def averaged_by_power(width: float) -> Callable[[Trainee], AbstractContextManager[Any]]:
    """Averages over a part of all steps, whatever their number (Karras et al. 2024).

    They are what post-hoc averaging finds of its snapshots for this width.
    """
    gamma = power(width)

    def average(averages: list[Tensor], values: list[Tensor], number: Tensor) -> None:
        keep = (1 - 1 / (int(number) + 1)) ** (gamma + 1)
        get_ema_multi_avg_fn(keep)(averages, values, number)

    def during(trainee: Trainee) -> AbstractContextManager[Any]:
        return mock.patch.object(trainee.ema, "multi_avg_fn", average)

    return during


# -- rungs -----------------------------------------------------------------------------------------


def _untouched(trainee: Trainee) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Rung:
    """One change of the base."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``inference.train``; those that are factors are relative to the data set's."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Of the data set's network, as ``networks`` has them."""
    around: Callable[..., nn.Module] | None = None
    """A network in place of it."""
    during: Callable[[Trainee], AbstractContextManager[None]] = _untouched


OFTEN = {"times": "adaptive", "batch_size": 32}
"""Small batches, whose times are drawn where gradients vary."""

THREE = "adaptive times, batches of 32, mixture"

MUON = OFTEN | {"optimizer": "muon"}

PIXELS = FINE | {"patch": 1}

RUNGS: dict[str, Rung] = {
    "base": Rung(),
    "adaptive times": Rung({"times": "adaptive"}),
    "batches of 64": Rung({"batch_size": 64}),
    "batches of 32": Rung({"batch_size": 32}),
    "batches of 256": Rung({"batch_size": 256}),
    "rate × ½": Rung({"rate": 0.5}),
    "rate × 2": Rung({"rate": 2.0}),
    "dropout 0.1": Rung(network={"dropout": 0.1}),
    "dropout 0.3": Rung(network={"dropout": 0.3}),
    "dropout 0.6 but at full resolution": Rung(network={"dropout": (0.0, 0.6, 0.6)}),
    "weight decay 0.1": Rung({"weight_decay": 0.1}),
    "weight decay 1": Rung({"weight_decay": 1.0}),
    "¾ of the channels": Rung(network={"base": 24}),
    "1½ of the channels": Rung(network={"base": 48}),
    "¾ of the channels, rate × 1⅓": Rung({"rate": 4 / 3}, {"base": 24}),
    "1½ of the channels, rate × ⅔": Rung({"rate": 2 / 3}, {"base": 48}),
    "two blocks a level": Rung(network={"blocks": 2}),
    "attention": Rung(network={"attention": (1,), "heads": 4}),
    "shifts, told": Rung({"augment": 0.5}, during=shifting),
    "turned and moved, told": Rung({"augment": 0.7}),
    "Fourier features": Rung(around=Fourier),
    "self-conditioning": Rung(around=SelfConditioned),
    "two tilts": Rung(network={"form": "tilt"}),
    "mixture of three tilts": Rung(network={"form": "mixture"}),
    "antithetic noise": Rung(during=antithetic),
    "constant rate": Rung({"decay": "constant"}),
    "averages of 1,000 steps": Rung({"ema_decay": 0.999}),
    "averages of a twentieth of all": Rung(during=averaged_by_power(0.05)),
    "averages of a tenth of all": Rung(during=averaged_by_power(0.1)),
    "constant rate, averages of a tenth": Rung(
        {"decay": "constant"}, during=averaged_by_power(0.1)
    ),
    "clip at the median": Rung(during=clipping),
    "Muon": Rung({"optimizer": "muon"}),
    "two members": Rung({"members": 2}),
    "adaptive times, batches of 32": Rung(OFTEN),
    THREE: Rung(OFTEN, {"form": "mixture"}),
    f"{THREE}, rate × 2": Rung(OFTEN | {"rate": 2.0}, {"form": "mixture"}),
    f"{THREE}, Muon": Rung(MUON, {"form": "mixture"}),
    f"{THREE}, every pixel": Rung(OFTEN, PIXELS),
    f"{THREE}, every pixel, Muon": Rung(MUON, PIXELS),
    "adaptive times, dropout, two members": Rung(
        {"times": "adaptive", "members": 2}, {"dropout": (0.0, 0.3, 0.3)}
    ),
}


def trainee_of(model: str, rung: Rung, seed: int, steps: int, fabric: Fabric) -> Trainee:
    """What is trained; all rungs of a seed have one order of the data, noise and first weights."""
    cls = PROBLEMS[model]
    changed = dict(next(iter(cls.networks.values()))) | dict(rung.network)
    around = rung.around

    class Changed(cls):  # type: ignore[misc, valid-type]
        networks = {"changed": changed}  # noqa: RUF012
        if around is not None:

            def network(self, inputs: int, outputs: int) -> nn.Module:
                return around(inputs, outputs, self, **changed)

    torch.manual_seed(loading.seed_from(seed, "weights"))
    problem = Changed(holdout=True)
    problem.members = rung.settings.get("members", 1)
    problem.located = "augment" in rung.settings
    diffusion = VPSDE(max_log_snr=problem.max_log_snr, min_log_snr=-10.0)
    programs = Programs(problem, problem.build(diffusion), DiffusionGuide(diffusion))
    settings = {"times": "log_volume", "batch_size": 128, "rate": 1.0} | dict(rung.settings)
    programs.model.score_function.times = settings["times"]
    settings["learning_rate"] = settings.pop("rate") * cls.learning_rate
    return Trainee(fabric, programs, Decided(steps=steps, seed=seed, sampler_steps=1, **settings))


def ratios(model: str, names: list[str], fabric: Fabric, turns: int) -> dict[str, float]:
    """Processor seconds of a step of each rung over the base's, medians of turns."""
    found: dict[str, float] = {}
    for name in names:
        pair = [trainee_of(model, RUNGS[key], 0, 10**6, fabric) for key in ("base", name)]
        spent: list[list[float]] = [[], []]
        with RUNGS[name].during(pair[1]):
            for turn in range(turns):
                for times, trainee in zip(spent, pair, strict=True):
                    began = time.process_time()
                    for step in range(3 * turn, 3 * turn + 3):
                        trainee.step(step)
                    times.append(time.process_time() - began)
        base, own = (statistics.median(times[1:]) for times in spent)
        found[name] = own / base
    return found


def run(model: str, name: str, seed: int, steps: int, draws: int, fabric: Fabric) -> dict[str, Any]:
    trainee = trainee_of(model, RUNGS[name], seed, steps, fabric)
    objective, began = [], time.process_time()
    bar = progress_bar(steps, f"{name}, seed {seed}", "steps")
    with bar, RUNGS[name].during(trainee):
        for step in range(steps):
            objective.append(trainee.step(step).bits)
            bar.update()
    spent = time.process_time() - began
    problem, model_, guide = trainee.averaged
    x = problem.to_model_space(evaluate.some(problem.validation, MOST))
    found = log_likelihood(model_, guide, x, draws=draws, batch_size=250)
    bits = -found.per_datum / (found.num_dims * math.log(2))
    last = objective[-max(1, steps // 10) :]
    return {
        "steps": steps,
        "seconds": spent,
        "objective": statistics.mean(last),
        "parameters": sum(p.numel() for p in model_.score_function.network.parameters()),
        "bits": bits.tolist(),
    }


def table(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Means over seeds with standard errors, and paired differences from the base."""
    lines = [
        "| | validation bits/dim | less base | training objective | steps | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    base = found["base"]
    for name, seeds in found.items():
        bits = torch.tensor([r["bits"] for r in seeds.values()], dtype=torch.float64)
        text, less = f"{bits.mean():.3f}", "0"
        if len(bits) > 1:
            text += f" ± {bits.mean(1).std() / len(bits) ** 0.5:.3f}"
        both = [seed for seed in seeds if seed in base]
        if name != "base" and both:
            pairs = [(seeds[s]["bits"], base[s]["bits"]) for s in both]
            gap = torch.tensor(pairs, dtype=torch.float64).diff(dim=1).squeeze(1).neg()
            n, m = gap.shape
            by_image, by_seed = gap.mean(0).var() / m, torch.zeros(())
            if n > 1:
                t = float(stats.t.ppf(0.975, n - 1))
                by_seed = (t / Z95) ** 2 * gap.mean(1).var() / n
            half = Z95 * math.sqrt(float(by_image) + float(by_seed))
            low, high = float(gap.mean()) - half, float(gap.mean()) + half
            less = f"{gap.mean():+.3f} ({low:+.3f} to {high:+.3f})"
            less = f"**{less}**" if n > 1 and low * high > 0 else less
        objective, steps, spent = (
            statistics.mean(result[key] for result in seeds.values())
            for key in ("objective", "steps", "seconds")
        )
        lines.append(f"| {name} | {text} | {less} | {objective:.3f} | {steps:.0f} | {spent:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PROBLEMS, default="digits")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the base, processor time")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS))
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7, help="in which seconds are taken")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--table", action="store_true", help="of what is finished, and no more")
    options = parser.parse_args()
    folder = options.out / options.model
    folder.mkdir(parents=True, exist_ok=True)
    fabric = start("cpu", "32-true")
    costs = folder / "costs.json"
    known = json.loads(costs.read_text()) if costs.exists() else {}
    asked = {"seconds": options.seconds, "draws": options.draws}
    if known.setdefault("asked", asked) != asked:
        parser.error(f"{folder} was begun with {known['asked']}, not {asked}; give another --out")
    if options.table and not any(folder.glob("base-*.json")):
        parser.error(f"{folder} has no base, which the others are compared with")
    names = ["base", *(name for name in options.rungs if name != "base")]
    if not options.table:
        if "base" not in known:
            trainee = trainee_of(options.model, RUNGS["base"], 0, 10**6, fabric)
            each = []
            for step in range(12):
                began = time.process_time()
                trainee.step(step)
                each.append(time.process_time() - began)
            known["base"] = max(1, round(options.seconds / statistics.median(each[2:])))
        missing = [name for name in names if name not in known]
        for name, ratio in ratios(options.model, missing, fabric, options.turns).items():
            known[name] = ratio
        costs.write_text(json.dumps(known, indent=1))
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in options.seeds:
        for name in names:
            path = folder / f"{name.replace(' ', '_')}-{seed}.json"
            if not path.exists():
                if options.table:
                    continue
                ratio = 1.0 if name == "base" else known[name]
                steps = max(1, round(known["base"] / ratio))
                done = run(options.model, name, seed, steps, options.draws, fabric)
                path.write_text(json.dumps(done))
            result = json.loads(path.read_text())
            found.setdefault(name, {})[seed] = result
            if not options.table:
                bits = statistics.mean(result["bits"])
                print(f"{name}, seed {seed}: {bits:.4f} ({result['seconds']:.0f} s)", flush=True)
    written = table(found)
    (folder / "table.md").write_text(written + "\n")
    print(written)


if __name__ == "__main__":
    main()
