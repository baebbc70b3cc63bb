r"""λ and κ of a linear diffusion over its clock time, by the route that keeps digits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.host_search import HostNumbers
from pyro_mdm.diffusions.propagator import ConstantPropagator, Propagator

__all__ = ["Curve", "decay", "times", "volume_rate"]

TRAVELLED = 20.0  # beyond, M^{-1} has no correct digit
FEW = 16  # times: for so few, computing both routes costs less than choosing


class Curve(NamedTuple):
    """The laws of a state given x over clock time, from which log SNR and log volume follow."""

    move: Propagator
    initial: Tensor  # Σ_0, (K, K)

    def log_volume(self, log_det: Tensor, tau: Tensor) -> Tensor:
        """κ at clock times τ, from log det Σ there."""
        return log_det - 2 * self.move.trace(None, tau)

    def factorized(
        self, tau: Tensor, host: HostNumbers | None = None
    ) -> tuple[Tensor, Tensor, Tensor, kernels.Factor]:
        """M, a, Σ and its factor at clock times τ.

        Σ is factored itself or pulled back to time 0, by whichever route keeps more digits.

        Args:
            host: what Python knows of a constant propagator and of τ; else this waits for the
                device.
        """
        move, Sigma0, shape = self.move, self.initial, tau.shape
        near = move.travelled(tau) < TRAVELLED
        back: Any = None
        early = [] if host is None else host.near(TRAVELLED)
        if host is not None and early and isinstance(move, ConstantPropagator):
            back = None if len(early) == len(host.clocks) else torch.where(near, tau, min(early))
            (M, P), back = move.both_moments(tau, back, host.reach)
        elif tau.numel() > 0 and bool(near.all()):
            (M, P), back = move.both_moments(tau)
        elif isinstance(move, ConstantPropagator) and tau.numel() <= FEW and bool(near.any()):
            (M, P), back = move.both_moments(tau, torch.where(near, tau, tau[near].detach().min()))
        else:
            M, P = move.moments(None, tau)
        a, Sigma = M[..., 0], P + M @ Sigma0 @ M.mT
        if back is not None:
            W, of_start = back
            direct, pulled = kernels.both_factors(Sigma, M, W, of_start, Sigma0)
            pulled = pulled._replace(log_det=pulled.log_det + 2 * move.trace(None, tau))
            better = near & (pulled.amplification < direct.amplification)
            if host is None and bool(better.all()):  # no gradient then passes the other route
                return M, a, Sigma, pulled
            fields = []
            for d, p in zip(direct, pulled, strict=True):
                here = better.reshape(shape + (1,) * (d.dim() - len(shape)))
                fields.append(torch.where(here, p, d))
            return M, a, Sigma, kernels.Factor(*fields)
        direct = kernels.direct_factor(Sigma, a)
        if not bool(near.any()):
            return M, a, Sigma, direct
        index = near.flatten().nonzero()[:, 0]
        near_tau = tau.flatten()[index]
        pulled = kernels.pulled_back_factor(
            M.reshape(-1, *M.shape[-2:])[index], *move.pulled_back_at(near_tau, tau, index), Sigma0
        )
        log_det = pulled.log_det + 2 * move.trace(None, near_tau)
        pulled = pulled._replace(log_det=log_det)
        better = pulled.amplification < direct.amplification.flatten()[index]
        index = index[better]
        fields = []
        for d, p in zip(direct, pulled, strict=True):
            flat = d.reshape(-1, *d.shape[len(shape) :])
            fields.append(flat.index_put((index,), p[better]).reshape(d.shape))
        return M, a, Sigma, kernels.Factor(*fields)


def decay(factor: kernels.Factor, unit_noise: Tensor) -> Tensor:
    """-dλ/dτ = SNR kᵀ g² k."""
    root = (factor.log_snr / 2).exp()[..., None] * factor.readout
    if root.shape[-1] == 1:  # the square first, for the same last bits as before
        return root[..., 0].square() * unit_noise[..., 0, 0]
    return (times(unit_noise, root) * root).sum(-1)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products of (…, K, K) and (…, K), (…, K)."""
    if matrix.dim() == 2:
        return vector @ matrix.mT
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def volume_rate(factor: kernels.Factor, unit_noise: Tensor) -> Tensor:
    """dκ/dτ = tr(Σ^{-1} g²)."""
    W = factor.whitener
    return ((W @ unit_noise) * W).sum((-2, -1))
