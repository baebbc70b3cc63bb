"""The test bound of a trained run.

    python -m inference.evaluate runs/digits-learned-0-0

The last line has the form ``bits/dim 1.234 ± 0.005 (reconstruction …, prior KL …, diffusion …)``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.cli import command_line
from inference.loading import Programs, load_trained
from pyro_mdm import bits_per_dim
from pyro_mdm.evaluation import log_likelihood

__all__ = ["Bound", "evaluate", "measure"]


@dataclass(frozen=True)
class Bound:
    """The bound on a part of the data by term, each (value, standard error) in bits/dim.

    The value of ``bits_per_dim`` is the sum of the other three. Dequantized data count the
    log-determinant and the levels with the reconstruction.
    """

    bits_per_dim: tuple[float, float]
    reconstruction: tuple[float, float]
    prior_kl: tuple[float, float]
    diffusion: tuple[float, float]
    num_data: int
    monte_carlo_error: float  # of bits_per_dim: what other noise would change
    log_snr_edges: list[float]
    diffusion_by_log_snr: list[float]  # the part of ``diffusion`` in each interval
    diffusion_by_log_snr_error: list[float]

    @property
    def terms(self) -> dict[str, tuple[float, float]]:
        """(value, standard error) by name."""
        names = ("bits_per_dim", "reconstruction", "prior_kl", "diffusion")
        return {name: getattr(self, name) for name in names}

    @property
    def by_log_snr(self) -> tuple[list[float], list[float], list[float]]:
        """The diffusion term by interval of log SNR: edges, values, standard errors."""
        return self.log_snr_edges, self.diffusion_by_log_snr, self.diffusion_by_log_snr_error

    @property
    def columns(self) -> dict[str, float]:
        """The same as the columns of metrics.csv."""
        values = {name: value for name, (value, _) in self.terms.items()}
        errors = {f"{name}_standard_error": error for name, (_, error) in self.terms.items()}
        return values | errors

    def as_json(self) -> dict[str, Any]:
        """For results.json."""
        named = {k: {"value": v, "standard_error": e} for k, (v, e) in self.terms.items()}
        return asdict(self) | named

    def __str__(self) -> str:
        return (
            f"bits/dim {self.bits_per_dim[0]:.3f} ± {self.bits_per_dim[1]:.3f} "
            f"(reconstruction {self.reconstruction[0]:.3f}, prior KL {self.prior_kl[0]:.3f}, "
            f"diffusion {self.diffusion[0]:.3f})"
        )


def measure(
    programs: Programs,
    data: Tensor,
    *,
    draws: int,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Bound:
    """The bound on stored ``data`` (n, *event_shape), averaged, in bits/dim."""
    problem, model, guide = programs
    device = model.diffusion.start_time.device
    x, log_det = problem.transform(data, torch.Generator().manual_seed(seed))
    x = x.to(device)
    options: dict[str, Any] = {"draws": draws, "batch_size": batch_size, "seed": seed}
    estimate = log_likelihood(model, guide, x, progress=progress, **options)
    d, levels = estimate.num_dims, problem.dequantized_levels
    bits = bits_per_dim(estimate.per_datum, d, log_det=log_det, num_levels=levels)
    unit = d * math.log(2)
    value, error = float(bits.mean()), float(bits.std() / math.sqrt(len(bits)))
    prior_kl, diffusion = ((t / unit, e / unit) for t, e in (estimate.prior_kl, estimate.diffusion))
    # the log-determinant varies with the datum: its error is in the whole, not known for this part
    part_error = math.nan if levels else estimate.reconstruction[1] / unit
    width = estimate.log_snr_edges.diff() / unit
    return Bound(
        bits_per_dim=(value, error),
        reconstruction=(value - prior_kl[0] - diffusion[0], part_error),
        prior_kl=prior_kl,
        diffusion=diffusion,
        num_data=len(x),
        monte_carlo_error=estimate.monte_carlo_error / unit,
        log_snr_edges=estimate.log_snr_edges.tolist(),
        diffusion_by_log_snr=(estimate.density * width).tolist(),
        diffusion_by_log_snr_error=(estimate.density_error * width).tolist(),
    )


def evaluate(run: Path, draws: int = 32, batch_size: int = 256, seed: int = 0) -> None:
    """Print the test bound of a run, with its averaged weights.

    Args:
        run: the run folder; nothing in it is changed.
        draws: network evaluations per test datum, at log SNRs of low discrepancy.
        batch_size: data per network call.
        seed: of the noise; the one and only source of difference between two evaluations.
    """
    _, programs, checkpoint = load_trained(run)
    data = programs.problem.test
    print(f"{run}: step {checkpoint.step}, {len(data)} test data, {draws} draws of noise for each")
    bound = measure(programs, data, draws=draws, batch_size=batch_size, seed=seed, progress=True)
    print(f"Monte Carlo error {bound.monte_carlo_error:.4f} bits/dim (part of the ± below)")
    print(bound)


if __name__ == "__main__":
    command_line(evaluate)
