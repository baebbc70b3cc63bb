"""Why scores of the raw state are integrated in log volume: gradients in Q by both coordinates.

    python -m tests.benchmarks.gradients --tables docs/measured/data

The derivative of the diffusion term of a noise prediction in Q's first entry, from batches of 128
data of 16 dimensions at one time each, uniform in log volume or in log SNR, for learned diffusions
of full rank and of rank 1. The network is ε_θ = ½ y; the median and the largest absolute value
over 500 batches, and the standard deviation.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from pyro_mdm import LearnedDiffusion, LinearDiffusion, NoisePrediction, randomness
from pyro_mdm.diffusions.matrices import apply_matrix
from tests.benchmarks.frame import Options, Row, Study, main

BATCH, DIMS = 128, 16


class Half(nn.Module):
    def forward(self, y: Tensor, log_snr: Tensor) -> Tensor:
        return 0.5 * y


def by_log_snr(score: NoisePrediction, diffusion: LinearDiffusion, x: Tensor) -> Tensor:
    """(n,) the diffusion term with λ uniform; its ends are left as they are."""
    low = diffusion.terminal_log_snr.detach()
    width = diffusion.max_log_snr - low
    s = diffusion.time_at_log_snr(low + width * randomness.low_discrepancy(len(x), x.device))
    marginal = diffusion.marginal(s)
    noise = torch.randn(len(x), diffusion.num_variables, DIMS, dtype=x.dtype)
    y = marginal.mean.unsqueeze(-1) * x.unsqueeze(1) + apply_matrix(marginal.scale_tril, noise)
    exact = -apply_matrix(torch.linalg.inv(marginal.scale_tril).mT, noise)
    error = score.score(diffusion, y, s) - exact
    g2 = diffusion.noise_covariance(s)
    square = (error * apply_matrix(g2, error)).flatten(1).sum(1)
    return width * 0.5 * square / diffusion.log_snr_rate(s)


def gradients(job: Row, options: Options) -> list[Row]:
    """The derivatives by both coordinates."""
    torch.manual_seed(job["seed"])
    K, rank = job["K"], job["rank"]
    diffusion, score = LearnedDiffusion(K, rank, max_log_snr=9.0), NoisePrediction(Half())
    rows = []
    for name in ("log volume", "log SNR"):
        found = []
        for _ in range(5 if options.small else 500):
            x = torch.randn(BATCH, DIMS, dtype=torch.float64)
            if name == "log volume":
                values, _ = score.diffusion_term(diffusion, x)
            else:
                values = by_log_snr(score, diffusion, x)
            (gradient,) = torch.autograd.grad(values.mean(), diffusion.lower)
            found.append(float(gradient[0]))
        sizes = pd.Series(found).abs()
        row = {"diffusion": f"K = {K}, rank {rank}", "uniform_in": name}
        row |= {"median_size": sizes.median(), "largest": sizes.max()}
        rows.append(row | {"standard_deviation": pd.Series(found).std()})
    return rows


STUDIES = {
    "log-volume-gradients": Study(
        gradients,
        [{"K": K, "rank": rank} for K, rank in ((2, 1), (3, 1), (2, 2))],
        lambda rows: rows.drop(columns=["seed", "K", "rank"]),
    )
}

if __name__ == "__main__":
    main("gradients", __doc__, STUDIES)
