"""Points of the plane from eight Gaussians on a circle: a density known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from models.base import Problem
from pyro_mdm.networks import MLP


class Toy(Problem):
    """Points x ~ Σ_c w_c N(μ_c, 0.1² I), c = 1 … 8, with unequal weights to break symmetries.

    ``density.log_prob(x)`` is the exact log p(x), nats, which no bound exceeds on average. 10,000
    points in random order; every 10th is test.
    """

    name = "toy"
    split_seed = None  # their order is random as it is
    event_shape = (2,)
    max_log_snr = 11.0
    batch_size = 512
    learning_rate = 2e-3
    times = "log_volume"
    contexts = ("labels",)

    def __init__(self, *, holdout: bool = False) -> None:
        angle = 2.0 * math.pi / 8 * torch.arange(8)
        means = math.sqrt(2.0) * torch.stack([angle.cos(), angle.sin()], dim=-1)
        weights = torch.arange(1.0, 9.0)
        spread = Independent(Normal(means, 0.1 * torch.ones_like(means)), 1)
        self.density = MixtureSameFamily(Categorical(weights), spread)
        super().__init__(holdout=holdout)

    def load(self) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.density.sample((10_000,))

    def network(self, inputs: int, outputs: int) -> nn.Module:
        return MLP(inputs, hidden=128, depth=3, out_features=outputs)

    def load_context(self, name: str) -> Tensor:
        """The index of the nearest Gaussian to each point, almost surely its own."""
        means = self.density.component_distribution.mean
        return torch.cdist(self.load(), means).argmin(1)
