"""The cost of threads in training, alone and beside other work; run by hand.

    python -m tests.benchmarks.threads [--steps 60] [--rounds 5] [--beside 0 2]
    python -m tests.benchmarks.threads --settings "10,000 spins" chosen --beside 0 3

Times training steps of the digits in processes of their own: with OpenMP as it comes, whose threads
spin while they wait for each other; with fewer spins; with OMP_WAIT_POLICY=PASSIVE, whose threads
sleep; with one thread; and as ``inference.train`` does it, with fewer spins and as many threads as
the load when it begins leaves cores. Beside each of them run as many busy processes as ``--beside``
says, which this program starts and ends; for 0 the machine should have nothing else to do. The
settings take turns, round by round. Printed are medians and quartiles of seconds, of the ratio to
the first setting in the same round, and of seconds of the processor; at the end, for each setting,
those beside others over those beside as many as the first ``--beside`` says.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SETTINGS = {
    "as it comes": {},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "chosen": {"GOMP_SPINCOUNT": "10000"},
}
WARM_UP = 5
BUSY = "while True: pass"


def train(steps: int, choose: bool) -> tuple[float, float]:
    """Seconds, and those of the processor, that so many steps take after a few others."""
    import torch

    from inference.machine.environment import choose_threads
    from models.digits import Digits
    from pyro_mdm import CLD, MDM_ELBO, DiffusionGuide

    if choose:
        choose_threads()
    torch.manual_seed(0)
    problem = Digits()
    diffusion = CLD(max_log_snr=problem.max_log_snr)
    model, guide = problem.build(diffusion), DiffusionGuide(diffusion)
    loss_of = MDM_ELBO()(model, guide)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    began = spent = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            began, spent = time.perf_counter(), time.process_time()
        chosen = torch.randint(len(problem.train), (problem.batch_size,))
        optimizer.zero_grad()
        loss_of(problem.to_model_space(problem.train[chosen])).backward()
        optimizer.step()
    return time.perf_counter() - began, time.process_time() - spent


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run_child(steps: int, name: str) -> tuple[float, float]:
    known = {variable for setting in SETTINGS.values() for variable in setting}
    inherited = {key: value for key, value in os.environ.items() if key not in known}
    chosen = ["--choose"] if name == "chosen" else []
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.threads", f"--child={steps}", *chosen],
        cwd=Path(__file__).parents[2],
        env=inherited | SETTINGS[name],
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, processor = map(float, done.stdout.split()[-2:])
    return seconds, processor


def quartiles(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:6.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:6.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=int, nargs="+", default=[0, os.cpu_count() or 1])
    parser.add_argument("--settings", choices=SETTINGS, nargs="+", default=[*SETTINGS])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--choose", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(*train(options.child, options.choose))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} before; {options.steps} steps of the digits, {options.rounds} "
        "rounds; seconds, the ratio to the first, seconds of the processor"
    )
    processor: dict[tuple[int, str], list[float]] = {}
    for number in options.beside:
        times: dict[str, list[float]] = {name: [] for name in options.settings}
        processor |= {(number, name): [] for name in options.settings}
        with busy(number):
            for _ in range(options.rounds):
                for name in options.settings:
                    seconds, spent = run_child(options.steps, name)
                    times[name].append(seconds)
                    processor[number, name].append(spent)
        first = times[options.settings[0]]
        for name, values in times.items():
            ratios = [value / one for value, one in zip(values, first, strict=True)]
            print(
                f"beside {number} others, {name:14} {quartiles(values):26} {quartiles(ratios):26} "
                f"{quartiles(processor[number, name])}",
                flush=True,
            )
    fewest, *more = options.beside
    for number in more:
        for name in options.settings:
            pairs = zip(processor[number, name], processor[fewest, name], strict=True)
            ratios = [beside / alone for beside, alone in pairs]
            print(f"processor beside {number} over {fewest}, {name:14} {quartiles(ratios)}")


if __name__ == "__main__":
    main()
