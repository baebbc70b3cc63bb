"""Other models of images beside a diffusion, trained for equal time on the same data; run by hand.

    python -m tests.benchmarks.peers --seconds 120 --seeds 0 1 2 --out runs/peers

    diffusion   the README's first command: a learned diffusion, the discrete denoiser
    pixelcnn    a gated PixelCNN, one probability for each level (beyond 32: mixtures of logistics)
    flow        zuko's neural spline flow of uniformly dequantized images
    vae         a variational autoencoder in Pyro with a decoder of discretized logistic laws
    vdm         noise prediction, Fourier features and the Gaussian decoder of Kingma et al. 2021
    mixture     scikit-learn's Gaussian mixture of uniformly dequantized images
    histogram   independent pixels

Each is trained on the training part for ``--seconds`` of processor time of one thread, which other
work on the machine does not shorten; measuring on the validation part is not counted. All have
Adam, a cosine and averaged weights. The diffusions' are those of the last step, as the program has
them, its steps set by the time that some take first; others keep the averages that were best of 20
on the validation part. Mixtures of more and more components are tried while there is time.

Bits/dim are of the first 500 test images, where there are as many, and choices are made by as many
of the validation part; ± is a standard error, over images and over seeds, added as squares.
Brackets behind a difference are its 95% interval for other images and other seeds: the normal one
over images, paired, and Student's t over seeds, added as squares. What each model and seed has is
written to ``--out`` when it is found, and not trained again. There are then table.csv, as pages of
docs/measured read it, and samples.png, of all that is there.
"""

from __future__ import annotations

import argparse
import copy
import csv
import datetime
import io
import json
import math
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, also for workers

import numpy as np
import torch
from torch import Tensor

from inference.commands.decisions import decide, with_recipe
from inference.folders.output import png
from inference.machine.processes import start
from inference.settings import options
from inference.settings.options import Options
from inference.settings.plan import build
from inference.settings.problems import build_problem
from inference.training import recipe
from inference.training.trainee import Trainee
from models.base import ImageProblem
from pyro_mdm import bound
from pyro_mdm.plots.pictures import image_grid, pictures_figure
from pyro_mdm.support.files import replacing
from pyro_mdm.support.measured import Measured, student_factor
from pyro_mdm.support.progress import progress_bar
from pyro_mdm.training import MovingAverage, indices
from tests.benchmarks.peer_models import (
    VAE,
    Flow,
    Histogram,
    Mixture,
    Peer,
    PixelCNN,
    log_histogram,
    zuko_flows,
)

OURS = "diffusion"
MEASUREMENTS = 20  # on the validation part
AT_ONCE = 256  # images
MOST = 500  # images of the validation part, and of the test part, that are looked at
SMALL = 256  # pixels of images that the settings were chosen for, at most
LESS = ("less_ours", "less_ours_low", "less_ours_high")
COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Task:
    """What is to be trained, and drawn."""

    name: str
    seed: int
    model: str
    seconds: float
    samples: int
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}-{self.seed}.json"


@dataclass
class Data:
    """Codes of each part, int64 (n, C, H, W), at most 500 of the validation and the test part."""

    problem: ImageProblem
    train: Tensor
    validation: Tensor
    test: Tensor

    @classmethod
    def of(cls, model: str) -> Data:
        problem = build_problem(options.DataOptions(model=model))
        if not isinstance(problem, ImageProblem) or "discrete" not in problem.scores:
            raise ValueError(f"--model is {model}, expected images of discrete levels, as digits")
        kept = (problem.train, problem.validation[:MOST], problem.test[:MOST])
        return cls(problem, *(part.long() for part in kept))

    @property
    def small(self) -> bool:
        return self.train[0].numel() <= SMALL


@dataclass
class Trained:
    """What is kept of a model: log-probabilities or bounds of the test images in nats, samples."""

    log_prob: Tensor  # (n,)
    samples: Tensor
    about: dict[str, Any]  # what it tells, and numbers of the training


# -- training --------------------------------------------------------------------------------------


def by_gradients(make: Callable[[Data], Peer]) -> Callable[[Task, Data], Trained]:
    """Trains a peer that has a loss."""

    def train(task: Task, data: Data) -> Trained:
        peer = make(data)
        trained, about = fit(peer, data, task)
        return finished(trained, data, task, about)

    return train


def fit(peer: Peer, data: Data, task: Task) -> tuple[Peer, dict[str, Any]]:
    """The averages that were best on the validation part, and what training was like."""
    keep = copy.deepcopy(peer)
    average = MovingAverage(peer, 0.995, forgetting=10, copy=keep)
    optimizer = torch.optim.AdamW(
        peer.parameters(), peer.learning_rate, weight_decay=peer.weight_decay
    )
    spent, step, measured = 0.0, 0, 0
    best: dict[str, Any] = {"validation": math.inf}
    weights = keep.state_dict()
    with bar_of(task) as bar:
        while spent < task.seconds:
            began = time.process_time()
            part, before = spent / task.seconds, spent
            for group in optimizer.param_groups:
                group["lr"] = peer.learning_rate * min(1, (part + 1e-3) / 0.03)
                group["lr"] *= 0.5 * (1 + math.cos(math.pi * part))
            chosen = indices(step, peer.batch_size, len(data.train), task.seed)
            loss = peer.train().loss(data.train[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            average.update()
            step, spent = step + 1, before + time.process_time() - began
            bar.update(int(spent) - int(before))
            if spent >= task.seconds * (measured + 1) / MEASUREMENTS:
                measured = int(spent / task.seconds * MEASUREMENTS)
                found = bits(log_prob(keep, data.validation, min(8, peer.draws)), data).mean()
                if found < best["validation"]:
                    best = {"validation": found, "best_at": spent, "best_step": step}
                    weights = {name: t.clone() for name, t in keep.state_dict().items()}
                bar.set_postfix_str(f"validation {found:.4f}, best {best['validation']:.4f}")
    keep.load_state_dict(weights)
    return keep, best | {"steps": step, "seconds": spent}


def bar_of(task: Task) -> Any:
    name = f"{task.name} {task.seed}"
    return progress_bar(int(task.seconds), name, "processor seconds", leave=True)


def bits(log_prob: Tensor, data: Data) -> Any:
    """Bits/dim of each image, NumPy float64."""
    return (-log_prob / (data.train[0].numel() * math.log(2))).double().numpy()


@torch.no_grad()
def log_prob(peer: Peer, codes: Tensor, draws: int, seed: int = 0) -> Tensor:
    """Of each image, (n,), nats, at the same draws every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.cat([peer.eval().log_prob(part, draws) for part in codes.split(AT_ONCE)])


@torch.no_grad()
def finished(peer: Peer, data: Data, task: Task, about: dict[str, Any]) -> Trained:
    torch.manual_seed(task.seed)
    tested = log_prob(peer, data.test, peer.draws, 1 + task.seed)
    began = time.process_time()
    samples = peer.eval().sample(task.samples)
    about["seconds_a_sample"] = (time.process_time() - began) / task.samples
    numbers = sum(p.numel() for p in peer.parameters())
    numbers = getattr(peer, "num_parameters", numbers)
    return Trained(tested, samples, {"tells": peer.tells, "parameters": numbers} | about)


def pixelcnn(data: Data) -> Peer:
    prior = log_histogram(data.train, data.problem.num_levels)
    return PixelCNN(prior) if data.small else PixelCNN(prior, kernel=5)


def flow(data: Data) -> Peer:
    return Flow(data.problem.event_shape, data.problem.num_levels)


def vae(data: Data) -> Peer:
    return VAE(data.problem.event_shape, data.problem.num_levels)


def mixture(task: Task, data: Data) -> Trained:
    """The best on the validation part of those that there is time for."""
    began, best, found = time.process_time(), math.inf, None
    about: dict[str, Any] = {}
    with bar_of(task) as bar:
        for components in COMPONENTS:
            for covariance in ("full", "diag", "tied"):
                before = time.process_time() - began
                if before >= task.seconds:
                    break
                peer = Mixture(
                    *(data.train, data.problem.num_levels, components, covariance, task.seed)
                )
                validation = bits(log_prob(peer, data.validation, 8), data).mean()
                if validation < best:
                    best, found = validation, peer
                    about = {"components": components, "covariance": covariance}
                now = time.process_time() - began
                bar.update(int(min(now, task.seconds)) - int(before))
                bar.set_postfix_str(f"{components} {covariance} {validation:.4f}, best {best:.4f}")
    assert found is not None
    about |= {"validation": best, "seconds": time.process_time() - began}
    return finished(found, data, task, about)


def histogram(task: Task, data: Data) -> Trained:
    began = time.process_time()
    peer = Histogram(data.train, data.problem.num_levels)
    return finished(peer, data, task, {"seconds": time.process_time() - began})


def vdm(task: Task, data: Data) -> Trained:
    """Ends of log SNR that were best on the validation part of the digits, by the levels' gap."""
    end = 7.5 + 2 * math.log((data.problem.num_levels - 1) / 16)
    score = "tests.benchmarks.peer_models:variational_diffusion"
    return diffusion(task, data, guide="vpsde", score=score, max_log_snr=end, min_log_snr=-5.0)


def diffusion(task: Task, data: Data, **options: Any) -> Trained:
    """As ``inference.train`` with these options does it, in as many steps as there is time for."""
    given = Options(model=task.model, seed=task.seed, accelerator="cpu", **options)
    asked = with_recipe(given.training)  # the data of Data.of

    def trainee(steps: int | None = None) -> Trainee:
        programs = build(asked)
        settings = decide(asked, programs)
        settings = settings if steps is None else replace(settings, steps=steps)
        return Trainee(start("cpu", settings.precision), programs, settings)

    steps = max(1, round(task.seconds / seconds_of_a_step(trainee(), task.seconds / 20)))
    spent, own = 0.0, trainee(steps)
    with bar_of(task) as bar:
        for step in range(steps):
            began, before = time.process_time(), spent
            own.step(step)
            spent += time.process_time() - began
            bar.update(int(spent) - int(before))
    problem, model, guide = own.averaged
    recipe.close_range(model)
    model.eval()
    tested = bound(model, guide, problem.to_model_space(data.test), draws=32).per_datum
    kept = bound(model, guide, problem.to_model_space(data.validation), draws=32).per_datum
    torch.manual_seed(task.seed)
    began = time.process_time()
    with torch.no_grad():
        x = model(batch_size=task.samples)
    sampling = (time.process_time() - began) / task.samples
    samples = ((x + 1) / 2 * (data.problem.num_levels - 1)).round().long()
    about = {
        "tells": "bound, 32 noise levels",
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": bits(kept, data).mean(),
        "steps": steps,
        "seconds": spent,
        "seconds_a_sample": sampling,
    }
    return Trained(tested, samples, about)


def seconds_of_a_step(trainee: Trainee, seconds: float) -> float:
    """Median processor seconds, of as many as take ``seconds``, three at least."""
    found: list[float] = []
    while sum(found) < seconds or len(found) < 4:
        began = time.process_time()
        trainee.step(len(found))
        found.append(time.process_time() - began)
    return statistics.median(found[1:])


PEERS: dict[str, tuple[str, Callable[[Task, Data], Trained]]] = {
    OURS: ("diffusion (ours)", diffusion),
    "pixelcnn": ("PixelCNN", by_gradients(pixelcnn)),
    "flow": ("flow (zuko)", by_gradients(flow)),
    "vae": ("VAE (Pyro)", by_gradients(vae)),
    "vdm": ("VDM's parameterization", vdm),
    "mixture": ("Gaussian mixture", mixture),
    "histogram": ("histogram", histogram),
}


# -- what is there ---------------------------------------------------------------------------------


def run(task: Task) -> Path:
    """Trains, and writes NAME-SEED.npy, samples, and NAME-SEED.json, which comes last."""
    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    data = Data.of(task.model)
    trained = PEERS[task.name][1](task, data)
    content = {"model": task.model, "asked_seconds": task.seconds} | trained.about
    content["bits_per_dim"] = bits(trained.log_prob, data).tolist()
    buffer = io.BytesIO()
    np.save(buffer, trained.samples.to(torch.uint8).numpy())
    with replacing() as write:
        write(task.path.with_suffix(".npy"), [buffer.getvalue()])
        write(task.path, [json.dumps(content, indent=1).encode()])
    return task.path


def is_done(task: Task) -> bool:
    """Whether it is there, and is what is asked for."""
    if not task.path.exists():
        return False
    found = json.loads(task.path.read_text())
    there, asked = (found["model"], found["asked_seconds"]), (task.model, task.seconds)
    if there != asked:
        raise ValueError(
            f"{task.path} is of {there[0]} and {there[1]:g} seconds, expected {asked[0]} and "
            f"{asked[1]:g}; give another --out, or remove it"
        )
    return True


def run_all(tasks: Sequence[Task], workers: int) -> None:
    """Those that are not there yet."""
    left = [task for task in tasks if not is_done(task)]
    for number, path in enumerate(_in_turn(left, workers), 1):
        found = json.loads(path.read_text())
        mean = statistics.fmean(found["bits_per_dim"])
        print(f"{path}: {mean:.4f} bits/dim ({number} of {len(left)})", flush=True)


def _in_turn(tasks: Sequence[Task], workers: int) -> Iterator[Path]:
    if workers == 1:
        yield from map(run, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(run, task) for task in tasks]):
            yield future.result()


def read(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """What is there, by name and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in PEERS:
        paths = {int(p.stem.rpartition("-")[2]): p for p in folder.glob(f"{name}-*.json")}
        if paths:
            found[name] = {seed: json.loads(paths[seed].read_text()) for seed in sorted(paths)}
    return found


def mean_and_error(x: Any) -> tuple[float, float]:
    """Mean and standard error of x (seeds, images): over both, added as squares."""
    return float(x.mean()), math.hypot(_over_images(x), _over_seeds(x))


def mean_and_interval(x: Any) -> tuple[float, float, float]:
    """Mean and 95% interval of x (seeds, images), for other images and other seeds."""
    over_seeds = float(student_factor(len(x) - 1)) * _over_seeds(x) if len(x) > 1 else 0.0
    found = Measured(float(x.mean()), math.hypot(_over_images(x), over_seeds))
    return found.mean, *found.interval


def _over_images(x: Any) -> float:
    return float(x.mean(0).std(ddof=1)) / math.sqrt(x.shape[1])


def _over_seeds(x: Any) -> float:
    """0 of a single seed, which says nothing of others."""
    return float(x.mean(1).std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else 0.0


def results(found: dict[str, dict[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each model; errors and intervals have the names that docs/measured gives them."""
    rows: list[dict[str, Any]] = []
    ours = found.get(OURS, {})
    for name, by_seed in found.items():
        mean, error = mean_and_error(np.array([r["bits_per_dim"] for r in by_seed.values()]))
        row: dict[str, Any] = {"model": PEERS[name][0], "test": mean, "test_se": error}
        row |= dict.fromkeys(LESS)
        shared = [seed for seed in by_seed if seed in ours and name != OURS]
        if shared:
            pairs = (np.array([of[s]["bits_per_dim"] for s in shared]) for of in (by_seed, ours))
            row |= zip(LESS, mean_and_interval(np.subtract(*pairs)), strict=True)
        first = next(iter(by_seed.values()))
        row |= {"seeds": len(by_seed), "kind": first["tells"], "parameters": first["parameters"]}
        for column, key in (("training_s", "seconds"), ("sample_s", "seconds_a_sample")):
            row[column] = statistics.fmean(r[key] for r in by_seed.values())
        rows.append(row)
    return rows


def as_csv(rows: Sequence[dict[str, Any]], facts: dict[str, str]) -> str:
    """As docs/measured has it."""
    file = io.StringIO()
    file.writelines(f"# {fact}: {said}\n" for fact, said in facts.items())
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    forms = dict.fromkeys(("test", "test_se", *LESS), ".4f")
    forms |= {"training_s": ".0f", "sample_s": ".2g"}
    for row in rows:
        writer.writerow(
            {k: format(v, forms.get(k, "")) if v is not None else "" for k, v in row.items()}
        )
    return file.getvalue()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| | test bits/dim | row − ours | seeds | | parameters | training, s | a sample, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        value, low, high = (row[column] for column in LESS)
        less = "" if value is None else f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
        less = f"**{less}**" if less and (low > 0 or high < 0) else less
        cells = [row["model"], f"{row['test']:.3f} ± {row['test_se']:.3f}", less]
        cells += [f"{row['seeds']}", row["kind"], f"{row['parameters']:,}"]
        cells += [f"{row['training_s']:.0f}", f"{row['sample_s']:.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(found: dict[str, dict[int, dict[str, Any]]], folder: Path, data: Data) -> bytes:
    """Samples of the first seed of each, and test images, as a PNG."""
    codes = {"test images": data.test}
    for name, by_seed in found.items():
        samples = np.load(folder / f"{name}-{next(iter(by_seed))}.npy")
        codes[PEERS[name][0]] = torch.from_numpy(samples)
    fewest = min(map(len, codes.values()))
    highest = data.problem.num_levels - 1
    panels = {
        title: image_grid((some[:fewest] * (255 / highest)).round().to(torch.uint8))
        for title, some in codes.items()
    }
    return png(pictures_figure(panels, columns=4))


def command(arguments: Sequence[str]) -> str:
    """The line that was asked."""
    return shlex.join(["python", "-m", "tests.benchmarks.peers", *arguments])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="digits", help="images of discrete levels")
    parser.add_argument("--only", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="to train each, of a processor"
    )
    parser.add_argument("--samples", type=int, default=36, help="to draw of each")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    options = parser.parse_args(arguments)
    if "flow" in options.only:
        zuko_flows()  # before anything is trained
    options.out.mkdir(parents=True, exist_ok=True)
    own = (options.model, options.seconds, options.samples, options.out)
    run_all([Task(name, s, *own) for s in options.seeds for name in options.only], options.workers)
    found = read(options.out)
    rows = results(found)
    facts = {"command": command(sys.argv[1:] if arguments is None else arguments)}
    facts |= {"date": f"{datetime.date.today()}", "unit": "bits/dim"}
    with replacing() as write:
        write(options.out / "table.csv", [as_csv(rows, facts).encode()])
        write(options.out / "samples.png", [picture(found, options.out, Data.of(options.model))])
    print(table(rows))


if __name__ == "__main__":
    main()
