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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from sklearn.datasets import load_sample_images
from torch import Tensor

from inference.machine.processes import start
from inference.measuring import bounds
from inference.settings.options import Decided
from inference.settings.plan import Programs
from inference.training.trainee import Trainee
from models.base import FINE, SMALL, ImageProblem
from models.digits import Digits
from models.mnist5k import Mnist5k
from models.official import FashionMNIST
from pyro_mdm import VPSDE, DiffusionGuide
from pyro_mdm.evaluation import log_likelihood
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.measured import Measured, student_factor
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


@dataclass(frozen=True)
class Rung:
    """One change of the base."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``inference.train``; those that are factors are relative to the data set's."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Of the data set's network, as ``networks`` has them."""


OFTEN = {"times": "adaptive", "batch_size": 32}
"""Small batches, whose times are drawn where gradients vary."""
MUON = OFTEN | {"optimizer": "muon"}
PIXELS = FINE | {"patch": 1}
THREE = "adaptive times, batches of 32, mixture"
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
    "¾ of the channels": Rung(network={"base": 24}),
    "1½ of the channels": Rung(network={"base": 48}),
    "¾ of the channels, rate × 1⅓": Rung({"rate": 4 / 3}, {"base": 24}),
    "1½ of the channels, rate × ⅔": Rung({"rate": 2 / 3}, {"base": 48}),
    "two blocks a level": Rung(network={"blocks": 2}),
    "attention": Rung(network={"attention": (1,), "heads": 4}),
    "two tilts": Rung(network={"form": "tilt"}),
    "mixture of three tilts": Rung(network={"form": "mixture"}),
    "constant rate": Rung({"decay": "constant"}),
    "averages of 1,000 steps": Rung({"ema_decay": 0.999}),
    "Muon": Rung({"optimizer": "muon"}),
    "adaptive times, batches of 32": Rung(OFTEN),
    THREE: Rung(OFTEN, {"form": "mixture"}),
    f"{THREE}, rate × 2": Rung(OFTEN | {"rate": 2.0}, {"form": "mixture"}),
    f"{THREE}, Muon": Rung(MUON, {"form": "mixture"}),
    f"{THREE}, every pixel": Rung(OFTEN, PIXELS),
    f"{THREE}, every pixel, Muon": Rung(MUON, PIXELS),
}


def trainee_of(model: str, rung: Rung, seed: int, steps: int, fabric: Fabric) -> Trainee:
    """What is trained; all rungs of a seed have one order of the data, noise and first weights."""
    cls = PROBLEMS[model]
    changed = dict(next(iter(cls.networks.values()))) | dict(rung.network)

    class Changed(cls):  # type: ignore[misc, valid-type]
        networks = {"changed": changed}  # noqa: RUF012

    torch.manual_seed(seed_from(seed, "weights"))
    problem = Changed(holdout=True)
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
    with progress_bar(steps, f"{name}, seed {seed}", "steps") as bar:
        for step in range(steps):
            objective.append(trainee.step(step).bits)
            bar.update()
    spent = time.process_time() - began
    problem, model_, guide = trainee.averaged
    x = problem.to_model_space(bounds.some(problem.validation, MOST))
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
        "| | validation bits/dim | row − base | training objective | steps | CPU s |",
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
                by_seed = student_factor(n - 1) ** 2 * gap.mean(1).var() / n
            error = math.sqrt(float(by_image) + float(by_seed))
            low, high = Measured(float(gap.mean()), error).interval
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
