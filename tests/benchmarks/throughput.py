"""Samples per second and memory of training; run by hand.

    python -m tests.benchmarks.throughput [--network small|paper] [--batch 32] [--repeat 9]
    python -m tests.benchmarks.throughput --network paper --batch 8 --repeat 5

For CIFAR-sized images of random codes, the discrete denoiser and CLD:

* a training step (batch, transform, bound, gradients, clipping, Adam, averaging) against the
  network's forward and backward pass alone,
* the same step under bf16, with channels last and compiled, against float32,
* samples per second of two processes of one thread each, by torchrun and DDP, against one process
  of one thread with half of the batch (efficiency 1: neither process slows the other),
* peak memory during steps (on a CPU the whole process's, libraries included).

Times are taken in turns within one process (or of processes in turns), with medians and quartiles
of the ratios turn by turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from inference.machine.processes import start
from inference.settings.options import Decided
from inference.settings.plan import Programs
from inference.training.trainee import Trainee
from models.base import ImageProblem
from models.official import CIFAR10
from pyro_mdm import CLD, DiffusionGuide

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"precision": "bf16-mixed"},
    "channels last": {"channels_last": True},
    "compiled": {"compile": "inductor"},
}


class Codes(ImageProblem):
    """5,000 random images of CIFAR-10's shape, with its networks."""

    name = "codes"
    event_shape = (3, 32, 32)
    max_log_snr = 13.0
    networks = CIFAR10.networks

    def load(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (5_000, 3, 32, 32), generator=generator, dtype=torch.uint8)


class Job:
    """One way of training, step by step."""

    def __init__(self, network: str, batch: int, fabric: Fabric, **machine: Any) -> None:
        torch.manual_seed(0)
        problem = Codes(network=network)
        diffusion = CLD(max_log_snr=problem.max_log_snr)
        model = problem.build(diffusion)
        rates: dict[str, Any] = {"learning_rate": 2e-4, "warmup": 1, "ema_decay": 0.9999}
        settings = Decided(steps=10**6, batch_size=batch, **rates, **machine)
        programs = Programs(problem, model, DiffusionGuide(diffusion))
        self.trainee = Trainee(fabric, programs, settings)
        self.network, self.fabric, self.batch = model.score_function.network, fabric, batch
        self.number = 0

    def step(self) -> None:
        self.trainee.step(self.number)
        self.number += 1

    def network_alone(self) -> None:
        x = torch.randn(self.batch, 3, 32, 32, device=self.fabric.device)
        lam = torch.linspace(-10, 13, self.batch, device=self.fabric.device)
        self.network(x, lam).square().sum().backward()


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began)


def in_turns(
    works: dict[str, Callable[[], None]], repeat: int, device: torch.device
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeat + 2):
        for name, work in works.items():
            found = timed(work, device)
            if turn >= 2:
                times[name].append(found)
    return times


def show(times: dict[str, list[float]], base: str, batch: int) -> None:
    for name, values in times.items():
        low, middle, high = statistics.quantiles(
            [a / b for a, b in zip(values, times[base], strict=True)], n=4
        )
        median = statistics.median(values)
        print(
            f"  {name:26s} {median:9.1f} ms {1e3 * batch / median:9.1f} images/s   "
            f"{middle:.4f} of {base} ({low:.4f} to {high:.4f})"
        )


def peak_memory(device: torch.device) -> float:
    """MiB: of the accelerator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")  # getrusage would count the parent's memory
    if not status.exists():
        return float("nan")
    return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 2**10


def forget_peak(device: torch.device) -> None:
    """What was needed to build a job does not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def child(options: argparse.Namespace) -> None:
    """Steps of one variant in this process: mean seconds per step, and peak memory."""
    variant = VARIANTS[options.child]
    fabric = start(options.accelerator, variant.get("precision", "32-true"))
    job = Job(options.network, options.batch, fabric, **variant)
    forget_peak(fabric.device)
    job.step()
    began = time.perf_counter()
    for _ in range(options.repeat):
        job.step()
    seconds = (time.perf_counter() - began) / options.repeat
    if fabric.is_global_zero:
        found = {"seconds": seconds, "peak": peak_memory(fabric.device)}
        print(json.dumps(found))


def run_child(
    options: argparse.Namespace, variant: str, *, batch: int, processes: int, threads: int | None
) -> dict[str, float]:
    words = [f"--nproc_per_node={processes}", "--standalone"]
    launcher = ["-m", "torch.distributed.run", *words] if processes > 1 else []
    script = ["-m", "tests.benchmarks.throughput", f"--child={variant}"]
    script += [f"--network={options.network}"]
    script += [f"--batch={batch}", f"--repeat={options.repeat}"]
    script += [f"--accelerator={options.accelerator}"]
    environment = dict(os.environ) | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    done = subprocess.run(
        [sys.executable, *launcher, *script],
        cwd=Path(__file__).parents[2],
        env=environment,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=("small", "paper"), default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--only", help="parts to run, of: step,variants,processes,memory")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options)
        return
    parts = (options.only or "step,variants,processes,memory").split(",")
    fabric = start(options.accelerator)
    device, batch, repeat = fabric.device, options.batch, options.repeat
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if "step" in parts or "variants" in parts:
        job = Job(options.network, batch, fabric)
        size = sum(p.numel() for p in job.network.parameters())
        print(f"{options.network}: {size:,} parameters, batch {batch}")
    if "step" in parts:
        works = {"network alone": job.network_alone, "training step": job.step}
        show(in_turns(works, repeat, device), "network alone", batch)
    if "variants" in parts:
        steps = {"float32": job.step}
        for variant, given in VARIANTS.items():
            if given:
                steps[variant] = Job(options.network, batch, fabric, **given).step
        show(in_turns(steps, repeat, device), "float32", batch)
    if "processes" in parts:
        alone, pair, threads = [], [], []
        for _ in range(3):
            half = batch // 2
            alone.append(run_child(options, "float32", batch=half, processes=1, threads=1))
            pair.append(run_child(options, "float32", batch=batch, processes=2, threads=1))
            threads.append(run_child(options, "float32", batch=batch, processes=1, threads=2))
        for title, found, size in (
            ("1 process, 1 thread", alone, half),
            ("2 processes, 1 thread each", pair, batch),
            ("1 process, 2 threads", threads, batch),
        ):
            speed = [size / f["seconds"] for f in found]
            print(f"  {title:26s} {statistics.median(speed):9.1f} images/s")
        ratio = [a["seconds"] / b["seconds"] for a, b in zip(alone, pair, strict=True)]
        print(
            f"  efficiency of 2 processes: {statistics.median(ratio):.3f} "
            f"({min(ratio):.3f} to {max(ratio):.3f})"
        )
    if "memory" in parts:
        options.repeat = 1
        for variant in VARIANTS:
            found = run_child(options, variant, batch=batch, processes=1, threads=None)
            print(f"  {variant:26s} peak {found['peak']:9.0f} MiB during steps")


if __name__ == "__main__":
    main()
