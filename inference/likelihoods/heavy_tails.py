"""A decoder with heavy tails, for states far from their datum.

python -m inference.train --model toy --likelihood inference.likelihoods.heavy_tails:HeavyTails
"""

from pyro.distributions import StudentT
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_mdm import Diffusion
from pyro_mdm.likelihoods import Likelihood, read_state
from pyro_mdm.likelihoods.base import StateScore


class HeavyTails(Likelihood):
    """Student's t about z, with the standard deviation of its noise as scale."""

    def __init__(self, degrees: float = 4.0) -> None:
        super().__init__()
        self.degrees = degrees

    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> TorchDistributionMixin:
        """p(x | y_ε)."""
        z, log_snr, batch_dim = read_state(diffusion, score, y, event_dim)
        law = StudentT(self.degrees, z.to(y.dtype), (-log_snr / 2).exp().to(y.dtype))
        return law.to_event(z.dim() - batch_dim)
