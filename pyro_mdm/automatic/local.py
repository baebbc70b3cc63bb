r"""The chain of a row's latents: amortized, given the globals and the row's own gradient.

All rows share it. What tells them apart is the gradient and the curvature of the log density
ℓ(z) = log p(z, data_i | x) of the row i itself, so that no data are declared:

1. From a point that rows share, Newton steps lead towards the mode of ℓ, where the curvature gives
   a Gaussian (Laplace). Where -∇²ℓ is not positive, its diagonal stands in.
2. A network of the globals and of what was found there moves and scales this Gaussian.
3. From it a chain is annealed to the row's posterior (:class:`~pyro_mdm.automatic.chain.Chain`),
   whose network sees the same.

So log w = ℓ(z) - log q(path) / r(path | z) has E w = p(data_i | x) for any parameters and any x.

Sources: Marino, Yue & Mandt, "Iterative Amortized Inference", 2018; Geffner & Domke, "Variational
Inference with Locally Enhanced Bounds for Hierarchical Models", 2022; Jankowiak & Phan, "Surrogate
Likelihoods for Variational Annealed Importance Sampling", 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_mdm.automatic.chain import LIMIT, SEEN, Chain, bounded
from pyro_mdm.automatic.maps import solved
from pyro_mdm.automatic.ratio import Ratio
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.evaluation.weights import effective_samples, pareto_k
from pyro_mdm.paths.likelihood import log_mean_weight

__all__ = ["RowChain", "RowWeights"]

Density = Callable[[Tensor], Tensor]

NEWTON = 3
"""Newton steps towards the mode of a row's latents."""
LEAST_PRECISION = 1e-4
"""The least curvature along a latent that counts as such: a deviation of 100, unconstrained."""


@dataclass(frozen=True)
class RowWeights:
    """Weights of the paths of each row, given one draw of the globals.

    Args:
        log_weights: log weights of S paths of each row, (S, N), nats, whose mean weight is unbiased
            for p(data_i | globals).
    """

    log_weights: Tensor

    @property
    def log_evidence(self) -> Tensor:
        """log p(data_i | globals) of each row, (N,), nats."""
        return log_mean_weight(self.log_weights)

    @property
    def effective(self) -> Tensor:
        """The effective number of paths of each row, (N,)."""
        return effective_samples(self.log_weights)

    @property
    def pareto_k(self) -> Tensor:
        """k̂ of each row, (N,); NaN for fewer than 25 weights, or equal ones."""
        return pareto_k(self.log_weights)


class RowRatio(Ratio):
    """log h of rows, each with a Gaussian of its own.

    Args:
        log_density: function of z (m, d) that returns ℓ, (m,).
        loc: location of the coordinates u, (m, d).
        root: Cholesky factor C of a precision, (m, d, d): z = loc + C⁻ᵀ (shift + scale u).
        shift: shift of the coordinates, (m, d).
        log_scale: log of their scale, (m, d).
        seen: inputs of the chain's network beside its state and the gradient, (m, …).
    """

    def __init__(
        self,
        log_density: Density,
        loc: Tensor,
        root: Tensor,
        shift: Tensor,
        log_scale: Tensor,
        seen: Tensor,
    ) -> None:
        self.log_density, self.loc, self.root = log_density, loc, root
        self.shift, self.log_scale, self.beside = shift, log_scale, (seen,)

    def placed(self, u: Tensor) -> tuple[Tensor, Tensor]:
        z = self.loc + _unwhitened(self.root, self.shift + self.log_scale.exp() * u)
        return z, torch.zeros_like(u[..., 0])

    def log_unit(self, u: Tensor) -> Tensor:
        standard = torch.distributions.Normal(0.0, 1.0).log_prob(u).sum(-1)
        return standard + self.root.diagonal(0, -2, -1).log().sum(-1) - self.log_scale.sum(-1)


class RowChain(Chain):
    """A chain from a Gaussian near the mode of each row's latents to their posterior.

    Args:
        start: a value of a row's latents, (d,).
        globals_dim: number of globals.
        diffusion, steps, width: as of :class:`~pyro_mdm.automatic.chain.Chain`.
    """

    def __init__(
        self,
        start: Tensor,
        globals_dim: int,
        diffusion: LinearDiffusion,
        steps: int,
        width: int = 64,
    ) -> None:
        seen = globals_dim + 3 * len(start)
        super().__init__(len(start), diffusion, steps, width, beside=seen)
        self.loc = nn.Parameter(start.clone())
        last = nn.Linear(width, 2 * self.dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.begin = nn.Sequential(nn.Linear(seen, width), nn.SiLU(), last)

    def draw(self, log_density: Density, of_globals: Tensor) -> tuple[Tensor, Tensor]:
        """Latents z (m, d) of rows, and log q(path) / r(path | z), (m,) nats.

        Args:
            log_density: function of z (m, d) that returns ℓ of each row, (m,).
            of_globals: what the networks see of each row's globals, (m, globals_dim).
        """
        ratio = self.ratio(log_density, of_globals)
        path = self.paths(ratio, len(of_globals))
        return ratio.place(path.u), path.cost + ratio.log_unit(path.u)

    def ratio(self, log_density: Density, of_globals: Tensor) -> RowRatio:
        """log h by the Gaussian from which the chain starts, with what the networks see."""
        z = self.loc.expand(len(of_globals), self.dim)
        for _ in range(NEWTON):
            slope, root = _newton(log_density, z)
            z = z + _unwhitened(root, bounded(slope, LIMIT))
        slope, root = _newton(log_density, z)
        moved = (root.mT @ (z - self.loc)[..., None])[..., 0]
        precision = root.diagonal(0, -2, -1).log()
        local = [bounded(tensor, SEEN) for tensor in (slope, moved, precision)]
        seen = torch.cat([bounded(of_globals, SEEN), *local], 1)
        shift, log_scale = self.begin(seen).chunk(2, 1)
        return RowRatio(log_density, z, root, shift, log_scale, seen)


def _newton(log_density: Density, z: Tensor) -> tuple[Tensor, Tensor]:
    """C⁻¹ ∇ℓ (m, d), and the Cholesky factor C of -∇²ℓ (m, d, d), or of its diagonal.

    Gradients pass through both where they are enabled.
    """
    through = torch.is_grad_enabled()
    with torch.enable_grad():
        z = z if through and z.requires_grad else z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(log_density(z).sum(), z, create_graph=True)
        columns = [torch.zeros_like(z)] * z.shape[1]  # of a slope that does not depend on z
        if slope.requires_grad:
            columns = [
                torch.autograd.grad(
                    entry, z, create_graph=through, retain_graph=True, materialize_grads=True
                )[0]
                for entry in slope.sum(0)
            ]
        slope, curvature = slope.nan_to_num(), torch.stack(columns, 1).nan_to_num()
    precision = -(curvature + curvature.mT) / 2
    if not through:
        slope, precision = slope.detach(), precision.detach()
    diagonal = torch.diag_embed(precision.diagonal(0, -2, -1).abs().clamp_min(LEAST_PRECISION))
    with torch.no_grad():
        root, wrong = torch.linalg.cholesky_ex(precision)
        flat = root.diagonal(0, -2, -1).amin(-1).square() < LEAST_PRECISION
        usable = ((wrong == 0) & ~flat)[:, None, None]
    root = torch.linalg.cholesky_ex(torch.where(usable, precision, diagonal)).L
    return solved(root, slope[..., None])[..., 0], root


def _unwhitened(root: Tensor, w: Tensor) -> Tensor:
    """C⁻ᵀ w (m, d)."""
    return torch.linalg.solve_triangular(root.mT, w[..., None], upper=True)[..., 0]
