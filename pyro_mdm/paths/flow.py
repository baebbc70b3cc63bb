r"""The density of a generative path that has no noise: the probability-flow ODE.

    dy/ds = v(y, s) = f - ½ (g² s_θ + ∇·g²),    log p_ode(y_ε) = log π(y_T) + ∫_ε^T ∇·v(y_s, s) ds

It is a model of its own: where s_θ is the score of what the diffusion makes of the data its law is
that of the SDE, and elsewhere not. The divergence is exact, by d derivatives of a denoiser and K·d
of other scores, or estimated by Hutchinson's probes, which are the same along a path, so that the
ODE stays one.

Sources: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
ICLR 2021; Grathwohl et al., "FFJORD", ICLR 2019 (probes); torchdiffeq solves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm import randomness
from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.divergence import divergence, own_node
from pyro_mdm.diffusions.matrices import (
    apply_matrix,
    apply_to_rows,
    as_rows,
    full_precision,
)
from pyro_mdm.diffusions.simulation import Simulation, noise_root
from pyro_mdm.paths.base import check_counts_all, driven_error
from pyro_mdm.paths.generative import BoundScore
from pyro_mdm.support.checks import check_count, check_number

if TYPE_CHECKING:
    from pyro_mdm.scores.base import Score

__all__ = ["FlowDensity", "Solver", "flow_log_prob"]

FIXED = ("euler", "midpoint", "heun3", "rk4")
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


@dataclass(frozen=True)
class Solver:
    """How the probability-flow ODE is solved, by torchdiffeq, in float64.

    Args:
        method: adaptive, ``"dopri5"`` and its kin, or of fixed steps, ``"rk4"`` and its kin.
        rtol, atol: tolerances of an adaptive one, relative and absolute, for every step.
        steps: of a fixed one.
        probes: of Hutchinson's estimator; 0 for the exact divergence, d derivatives a call of a
            denoiser, K·d of other scores.

    Raises:
        ValueError: a method that there is not, tolerances that float64 cannot hold, numbers below
            1.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 128
    probes: int = 0

    def __post_init__(self) -> None:
        if self.method not in (*FIXED, *ADAPTIVE):
            raise ValueError(
                f"method is {self.method!r}, expected one of {', '.join((*ADAPTIVE, *FIXED))}"
            )
        for name in ("rtol", "atol"):
            value = check_number(name, getattr(self, name), "a positive tolerance, e.g. 1e-5")
            if not value >= 1e-13:
                raise ValueError(
                    f"{name} is {value:g}, finer than float64 can hold, expected at least 1e-13"
                )
        check_count("steps", self.steps, "the number of steps from ε to T")
        check_count("probes", self.probes, "that of Hutchinson's estimator, 0 for exact", 0)


class FlowDensity(NamedTuple):
    """log p_ode of states, and what it took."""

    log_prob: Tensor  # (n,) nats
    calls: int  # of the network, for each state


def flow_log_prob(
    diffusion: Diffusion, score: Score, y: Tensor, solver: Solver | None = None
) -> FlowDensity:
    """log p_ode(y_ε) of states y (n, K, *event_shape), differentiable in y and in the network.

    With probes it is unbiased for the log density, and its exponential for nothing.

    Args:
        score: a :class:`~pyro_mdm.scores.Score`; its network is asked in its own precision.

    Raises:
        TypeError: a diffusion led by contexts.
        ValueError: one whose paths are driven by the data; a score of which some dimensions are
            observed or left out.
    """
    import torchdiffeq  # loads scipy

    if diffusion.context is not None or diffusion.rows is not None:
        raise TypeError(
            "the probability flow is one ODE for all data, and paths of "
            f"{type(diffusion).__name__} are led by a context of each; use the "
            "bound, method='elbo'"
        )
    if diffusion.drifts_by_data:
        raise driven_error(diffusion, "log p_ode(y_ε)")
    check_counts_all(score, y, "log p_ode(y_ε)")
    solver = Solver() if solver is None else solver
    seed = int(randomness.uniform((1,), torch.float64, y.device) * 2**52) if solver.probes else 0
    flow = _Flow(diffusion, BoundScore(diffusion, score), solver, seed)
    y = y.double()
    options: dict[str, Any] = {"method": solver.method, "rtol": solver.rtol, "atol": solver.atol}
    if solver.method in FIXED:
        options["options"] = {"step_size": 1 / solver.steps}
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=y.device)
    states, gained = torchdiffeq.odeint(flow, (y, y.new_zeros(len(y))), ends, **options)
    return FlowDensity(diffusion.prior.log_prob(states[-1]) + gained[-1], flow.calls)


class _Flow:
    """v and its divergence per unit of u in [0, 1], the part of the way from ε to T that is done.

    It is counted in log volume where there is a closed form, as log SNR may pause, and else in
    noise level.
    """

    def __init__(self, diffusion: Any, score: BoundScore, solver: Solver, seed: int) -> None:
        self.diffusion, self.score, self.seed = diffusion, score, seed
        self.trace = Simulation(probes=solver.probes or "exact")
        self.calls = 0

    def __call__(self, u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        y, graph = state[0], torch.is_grad_enabled()
        s, speed = self._time(u.clamp(0, 1))  # an adaptive step may look past the end
        with torch.enable_grad(), full_precision(y), randomness.piece(0, 1, self.seed):
            y = own_node(y)
            v, change = self._velocity(y, s.expand(len(y)), graph)
        if not graph:
            v, change = v.detach(), change.detach()
        return speed * v, speed * change

    @torch.no_grad()
    def _time(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """s at the part u of the way, and ds/du."""
        diffusion = self.diffusion
        if diffusion.closed_form:
            start, end = diffusion.log_volume_ends
            s = diffusion.time_at_log_volume(start + u * (end - start))
            return s, (end - start) / diffusion.log_volume_rate(s)
        start, end = diffusion.max_log_snr, diffusion.terminal_log_snr
        s = diffusion.time_at_log_snr(start + u * (end - start))
        return s, (start - end) / diffusion.log_snr_rate(s)

    def _velocity(self, y: Tensor, s: Tensor, graph: bool = True) -> tuple[Tensor, Tensor]:
        diffusion = self.diffusion
        if diffusion.closed_form:
            theta, of_score = self.score.with_divergence(y, s, self.trace, create_graph=graph)
            A = diffusion.drift_matrix(s)
            v = apply_matrix(A, y) - 0.5 * apply_matrix(diffusion.noise_covariance(s), theta)
            trace = A.diagonal(dim1=-2, dim2=-1).sum(-1)
            own = y[0, 0].numel() * (trace.flatten(1).mean(1) if diffusion.maps else trace)
            return v, own - 0.5 * of_score
        theta = self.score(y, s)
        G = noise_root(diffusion, y, s)
        pulled = apply_to_rows(G, apply_to_rows(G.mT, as_rows(theta))).mT.reshape(y.shape)
        v = diffusion.drift(y, s) - 0.5 * (pulled + diffusion.noise_divergence(y, s))
        return v, divergence(v, y, None, self.trace, create_graph=graph).value
