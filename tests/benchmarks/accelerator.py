"""Everything that wants a GPU, by one command; run by hand.

    python -m tests.benchmarks.accelerator --machine "machine F"
    python -m tests.benchmarks.accelerator --recipes cifar10_paper --steps 200 --repeat 20
    python -m tests.benchmarks.accelerator --small --accelerator cpu --out small.csv

For each recipe, over random codes of its data set's shape:

* so many training steps (batch, transform, bound, gradients, clipping, Adam, averaging) in turns
  with the network's forward and backward pass alone, and peak memory of a step,
* the same step under bf16, with channels last and compiled, in turns with float32,
* a call of two samplers, in turns with the network's forward pass alone.

The results are the rows of a file that the documentation shows. A row of this file is replaced by
one of the same recipe. ``--small`` has little networks and images of 8×8 pixels in one row of its
own: whether everything runs is seen on any machine.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from lightning_fabric import Fabric
from torch import Tensor

from inference.commands.decisions import decide, with_canonical_names, with_recipe
from inference.machine.processes import start
from inference.settings.options import Options
from inference.settings.plan import build
from inference.training.trainee import Trainee
from models import MODELS
from models.base import FileImages
from pyro_mdm.samplers import EulerMaruyama, ExponentialIntegrator
from pyro_mdm.samplers.base import Sampler
from pyro_mdm.support.modules import evaluating
from tests.benchmarks.throughput import VARIANTS, forget_peak, in_turns, peak_memory

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "measured" / "data" / "speed-accelerators.csv"
COMMAND = "python -m tests.benchmarks.accelerator"
RECIPES = ("mnist_paper", "cifar10_paper", "imagenet32_paper", "cifar10")
"""Names of files in models/, without ``.yaml``."""
SMALL = "small"
"""The row of ``--small``, which is :data:`RECIPES`' ``cifar10_paper`` in the small."""
SAMPLERS: Mapping[str, Callable[[int], Sampler]] = {
    "exponential": ExponentialIntegrator,
    "euler": EulerMaruyama,
}
CALLS = 25
"""Calls of a run of a sampler, by which its time is divided."""
NOT_MEASURED = "not measured"
RATIOS = ("step", *(name.replace(" ", "_") for name in VARIANTS if name != "float32"), *SAMPLERS)
COLUMNS = (
    *("recipe", "device", "torch", "machine", "date", "batch", "steps", "milliseconds"),
    *("images_a_second", "peak_memory"),
    *(f"{name}_ratio{end}" for name in RATIOS for end in ("", "_q1", "_q3")),
)
HEAD = f"""\
# command: {COMMAND}
# seeds: 0
# note: milliseconds of a training step in float32, median; peak memory in MiB, of a GPU alone
# note: step ratio is to the network's forward and backward pass, those of bf16, channels last and \
compiled to the step in float32, those of a sampler's call to the network's forward pass
# note: medians of turns, quartiles
"""
Row = dict[str, str]


def codes(shape: tuple[int, ...], n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, *shape), generator=generator, dtype=torch.uint8)


@contextlib.contextmanager
def little() -> Iterator[None]:
    """Small networks for images of 8×8 pixels in every data set."""
    with contextlib.ExitStack() as within:
        for kind in MODELS.values():
            if issubclass(kind, FileImages):
                shape = (kind.event_shape[0], 8, 8)
                networks = {
                    name: {"base": 8, "multipliers": (1,), "patch": 1} for name in kind.networks
                }
                within.enter_context(mock.patch.object(kind, "event_shape", shape))
                within.enter_context(mock.patch.object(kind, "networks", networks))
        yield


class Job:
    """A recipe's training with a variant of the machine's settings, step by step."""

    def __init__(self, recipe: str, batch: int | None, fabric: Fabric, **machine: Any) -> None:
        given = yaml.safe_load((ROOT / "models" / f"{recipe}.yaml").read_text(encoding="utf-8"))
        given |= machine | ({} if batch is None else {"batch_size": batch})
        options = Options(**given)
        kind = MODELS[given["model"]]

        def split(problem: FileImages, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
            images = codes(problem.event_shape, 2_000)
            return images[:-200], images[-200:-100] if holdout else images[:0], images[-100:]

        with mock.patch.object(kind, "split", split):
            asked = with_recipe(with_canonical_names(options.training))
            programs = build(asked)
            settings = decide(asked, programs)
        self.trainee, self.device = Trainee(fabric, programs, settings), fabric.device
        self.model, self.batch = programs.model, settings.batch_size
        self.network: Any = self.model.score_function.network
        self.number = 0
        with torch.no_grad():
            self.inputs = self._seen()

    def step(self) -> None:
        self.trainee.step(self.number)
        self.number += 1

    def _seen(self) -> tuple[Any, ...]:
        """The network's inputs in a step, which also leaves all caches filled."""
        seen: list[tuple[Any, ...]] = []
        handle = self.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
        with torch.enable_grad():
            self.step()
        handle.remove()
        return tuple(x.detach() if isinstance(x, Tensor) else x for x in seen[-1])

    def network_alone(self) -> None:
        with torch.autocast(self.device.type, enabled=False):
            self.network(*self.inputs).square().sum().backward()

    @torch.no_grad()
    def network_forward(self) -> None:
        self.network(*self.inputs)

    def sampled(self, sampler: Sampler) -> None:
        with evaluating(self.model), mock.patch.object(self.model, "sampler", sampler):
            self.model(batch_size=len(self.inputs[0]))

    def memory(self) -> str:
        """MiB that a step allocates at most on a GPU; empty on the CPU."""
        if self.device.type != "cuda":
            return ""
        forget_peak(self.device)
        self.step()
        return f"{peak_memory(self.device):.0f}"


def ratio(name: str, times: list[float], base: list[float]) -> Row:
    """Quartiles of the ratios turn by turn, as cells."""
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    ends = {"": middle, "_q1": low, "_q3": high}
    return {f"{name}_ratio{end}": f"{value:.3f}" for end, value in ends.items()}


def measured(recipe: str, options: argparse.Namespace, fabric: Fabric) -> Iterator[Row]:
    """The cells of a row, part by part."""
    device, repeat = fabric.device, options.repeat
    job = Job(recipe, options.batch, fabric)
    yield {"batch": str(job.batch), "steps": str(options.steps), "peak_memory": job.memory()}
    works = {"step": job.step, "alone": job.network_alone}
    times = in_turns(works, options.steps, device)
    step = statistics.median(times["step"])
    yield {"milliseconds": f"{step:.1f}", "images_a_second": f"{1e3 * job.batch / step:.1f}"}
    yield ratio("step", times["step"], times["alone"])
    for name, kind in SAMPLERS.items():
        sampler = kind(CALLS)
        works = {name: lambda s=sampler: job.sampled(s), "forward": job.network_forward}
        times = in_turns(works, repeat, device)
        yield ratio(name, [time / CALLS for time in times[name]], times["forward"])
    for name, machine in VARIANTS.items():
        if machine:
            if options.small and "compile" in machine:
                machine = {"compile": "aot_eager"}  # needs no compiler
            works = {"float32": job.step, name: Job(recipe, options.batch, fabric, **machine).step}
            times = in_turns(works, repeat, device)
            yield ratio(name.replace(" ", "_"), times[name], times["float32"])


def whole_row(recipe: str, options: argparse.Namespace, fabric: Fabric) -> Row:
    """A row of the file; a part that fails leaves the cells of those before it."""
    on_gpu = fabric.device.type == "cuda"
    row = {
        "recipe": SMALL if options.small else recipe,
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {platform.machine()}",
        "torch": torch.__version__,
        "machine": options.machine,
        "date": datetime.date.today().isoformat(),
    }
    try:
        for cells in measured(recipe, options, fabric):
            row |= cells
            print(*(f"{name} {value}" for name, value in cells.items()), sep=", ", flush=True)
    except RuntimeError as error:  # such as too little memory
        print(f"error: {recipe}: {error}", file=sys.stderr)
    return row


def write(path: Path, found: list[Row]) -> None:
    """Put rows into the file, in place of those of the same recipes."""
    rows: dict[str, Row] = {name: {"recipe": name} for name in RECIPES}
    if path.exists():
        text = path.read_text(encoding="utf-8").splitlines()
        body = (line for line in text if not line.startswith("#"))
        rows |= {row["recipe"]: row for row in csv.DictReader(body)}
    rows |= {row["recipe"]: row for row in found}
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(HEAD)
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for row in rows.values():
            table.writerow({name: row.get(name) or _empty(row, name) for name in COLUMNS})


def _empty(row: Row, column: str) -> str:
    """What stands where nothing was measured: nothing beside a number, and for memory on a CPU."""
    errors = column.endswith(("_q1", "_q3"))
    return "" if errors or (column == "peak_memory" and "milliseconds" in row) else NOT_MEASURED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--steps", type=int, default=200, help="training steps in float32")
    parser.add_argument("--repeat", type=int, default=20, help="turns of everything else")
    parser.add_argument("--batch", type=int, help="in place of the recipe's")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--machine", default=NOT_MEASURED, help="its name in the documentation")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    torch.manual_seed(0)
    fabric = start(options.accelerator)
    with little() if options.small else contextlib.nullcontext():
        recipes = ["cifar10_paper"] if options.small else options.recipes
        for recipe in recipes:
            print(recipe, flush=True)
            write(options.out, [whole_row(recipe, options, fabric)])


if __name__ == "__main__":
    main()
