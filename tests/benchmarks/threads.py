"""What waiting threads cost training, alone and beside other work; run by hand.

    python -m tests.benchmarks.threads [--steps 60] [--rounds 5] [--beside 0 2]

Times training steps of the digits in processes of their own: with OpenMP as it comes, whose threads
spin while they wait for each other; with fewer spins; with OMP_WAIT_POLICY=PASSIVE, whose threads
sleep; and with one thread. Beside each of them run as many busy processes as ``--beside`` says,
which this program starts and ends; for 0 the machine should have nothing else to do. The settings
take turns, round by round. Printed are medians and quartiles of seconds, and of the ratio to
OpenMP as it comes in the same round.
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
}
WARM_UP = 5
BUSY = "while True: pass"


def train(steps: int) -> float:
    """Seconds that ``steps`` steps of training take after a few others."""
    import torch

    from models.digits import Digits
    from pyro_mdm import CLD, MDM_ELBO, DiffusionGuide

    torch.manual_seed(0)
    problem = Digits()
    diffusion = CLD(max_log_snr=problem.max_log_snr)
    model, guide = problem.build(diffusion), DiffusionGuide(diffusion)
    loss_of = MDM_ELBO()(model, guide)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    began = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            began = time.perf_counter()
        chosen = torch.randint(len(problem.train), (problem.batch_size,))
        optimizer.zero_grad()
        loss_of(problem.to_model_space(problem.train[chosen])).backward()
        optimizer.step()
    return time.perf_counter() - began


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


def run_child(steps: int, setting: dict[str, str]) -> float:
    known = {name for names in SETTINGS.values() for name in names}
    inherited = {name: value for name, value in os.environ.items() if name not in known}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.threads", f"--child={steps}"],
        cwd=Path(__file__).parents[2],
        env=inherited | setting,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


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
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(train(options.child))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} before; {options.steps} steps of the digits, {options.rounds} "
        "rounds; seconds, and the ratio to the first"
    )
    for number in options.beside:
        times: dict[str, list[float]] = {name: [] for name in SETTINGS}
        with busy(number):
            for _ in range(options.rounds):
                for name, setting in SETTINGS.items():
                    times[name].append(run_child(options.steps, setting))
        first = times[next(iter(SETTINGS))]
        for name, values in times.items():
            ratios = [value / one for value, one in zip(values, first, strict=True)]
            print(
                f"beside {number} others, {name:14} {quartiles(values):26} {quartiles(ratios)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
