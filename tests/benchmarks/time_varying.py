"""The cost and the errors of a diffusion that varies in time; run by hand.

    python -m tests.benchmarks.time_varying --variables 2 --cells 256

It prints, as medians over repetitions, milliseconds of wall-clock and of processor time of

    moments         the grid of cells with its prefix products, read at T, with gradients, that of
                    the clock's end among them
    anew            the same with the clock's end found anew, as in every step of a training
    grid            the grid of cells, its prefix products and the law at both ends
    with gradients  the same, and their gradients in Q, D
    step            all that a training step asks of the diffusion: both ends, found anew by
                    Newton's method, and the law at 64 times, with gradients
    constant step   the same of a learned diffusion of constant Q and D

with λ(T) left to the clock and with it fixed, and the errors of the mean and of log SNR at three
times on 64, 128, 256 and 512 cells, as differences to 2,048.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pyro_mdm import LearnedDiffusion, LinearDiffusion, TimeVaryingLearnedDiffusion
from pyro_mdm.diffusions.ends import unscaled_end

TIMES = torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64)


def moved(variables: int, cells: int, **options: float) -> TimeVaryingLearnedDiffusion:
    """One that is some way into its training."""
    found = TimeVaryingLearnedDiffusion(variables, cells=cells, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (found.lower, found.B):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
    return found


def step(diffusion: LinearDiffusion) -> None:
    s = torch.linspace(0.02, 0.98, 64, dtype=torch.float64)
    solved = diffusion.solved()
    value = solved.marginal(s).log_snr.sum()
    value = value + solved.start.log_det + solved.terminal.log_det
    value.backward()


def grid(diffusion: TimeVaryingLearnedDiffusion, gradients: bool) -> None:
    end = diffusion.clock(diffusion.horizon).detach()
    scale = end / unscaled_end(diffusion)
    with torch.set_grad_enabled(gradients):
        move = diffusion.matrices.propagator_at(scale)
        tau = torch.stack([end / 1000, end])
        _, Sigma, factor = move.factorized(tau, diffusion.initial_covariance)
        if gradients:
            (Sigma.sum() + factor.log_snr.sum()).backward()


def moments(diffusion: TimeVaryingLearnedDiffusion) -> None:
    solved = diffusion.solved()
    M, P = solved.propagator.moments(None, solved.clock(solved.horizon)[None])
    (M.sum() + P.sum()).backward()


def change(diffusion: LinearDiffusion) -> None:
    """As an optimizer does: what was found for other matrices is forgotten."""
    with torch.no_grad():
        for parameter in diffusion.parameters():
            parameter.mul_(1 + 1e-9)


def measured(
    call: Callable[[], None], repetitions: int, before: Callable[[], None] = lambda: None
) -> str:
    call()
    wall, processor = [], []
    for _ in range(repetitions):
        before()
        start = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return " ".join(f"{1000 * statistics.median(times):10.1f}" for times in (wall, processor))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variables", type=int, default=2)
    parser.add_argument("--cells", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=30)
    given = parser.parse_args()
    K, n = given.variables, given.repetitions
    print(f"{'ms':42} {'wall':>10} {'processor':>10}")
    for name, options in (("own clock", {}), ("λ(T) = -10", {"min_log_snr": -10.0})):
        varying, constant = moved(K, given.cells, **options), LearnedDiffusion(K, **options)

        def changed(d: LinearDiffusion = varying) -> None:
            change(d)

        rows: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
            ("moments with gradients", lambda d=varying: moments(d), lambda: None),
            ("moments with gradients, anew", lambda d=varying: moments(d), changed),
            ("grid", lambda d=varying: grid(d, False), lambda: None),
            ("grid with gradients", lambda d=varying: grid(d, True), lambda: None),
            ("step", lambda d=varying: step(d), changed),
            ("constant step", lambda d=constant: step(d), lambda d=constant: change(d)),
        ]
        for what, call, before in rows:
            print(f"{f'{what}, {name}':42} {measured(call, n, before)}")
    with torch.no_grad():
        exact = moved(K, 2048).marginal(TIMES)
        for cells in (64, 128, 256, 512):
            found = moved(K, cells).marginal(TIMES)
            mean = (found.mean - exact.mean).abs().max().item()
            log_snr = (found.log_snr - exact.log_snr).abs().max().item()
            print(f"{cells} cells: mean {mean:.1e}, log SNR {log_snr:.1e}")


if __name__ == "__main__":
    main()
