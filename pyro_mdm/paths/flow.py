r"""The density of a generative path without noise: the probability-flow ODE.

    dy/ds = v(y, s) = f - ½ (g² s_θ + ∇·g²),    log p_ode(y_ε) = log π(y_T) + ∫_ε^T ∇·v(y_s, s) ds

It is a model of its own: its distribution is that of the SDE only where s_θ is the exact score of
noised data. For a denoiser the ODE is a flow of z, the only part of the state that it depends on;
the rest of y_ε has its distribution given z. The divergence is exact, by d derivatives of a
denoiser and K·d of other scores, or estimated by Hutchinson probes, which stay the same along a
path, so that there is one ODE.

Sources: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
ICLR 2021; Grathwohl et al., "FFJORD", ICLR 2019 (probes); torchdiffeq solves it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import (
    Cap,
    Diffusion,
    apply_vector,
    from_coordinates,
    full_precision,
    require,
    separate_node,
)
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import apply_matrix, apply_to_rows, as_rows, check_dispersion
from pyro_mdm.paths.adams import Divergences, walk
from pyro_mdm.paths.base import BoundScore, NoisingPath
from pyro_mdm.paths.density import check_counts_all
from pyro_mdm.support.checks import check_count, check_finite, check_number

if TYPE_CHECKING:
    from pyro_mdm.scores.base import Score

__all__ = ["FlowDensity", "ProbeLaw", "Probes", "Solver", "Trace", "divergence", "flow_log_prob"]

FIXED = ("euler", "midpoint", "heun3", "rk4")
ADAMS = "adams"
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


@dataclass(frozen=True)
class Solver:
    """Settings of the solver of the probability-flow ODE, in float64.

    Args:
        method: name of an adaptive method of torchdiffeq such as ``"dopri5"``, of one with fixed
            steps such as ``"rk4"``, or ``"adams"``: Adams–Bashforth steps of fourth order, each
            with one call of the network, and for denoisers with all divergences in one pass
            (:mod:`pyro_mdm.paths.adams`).
        rtol: relative tolerance of an adaptive method for every step, at least 1e-13.
        atol: absolute tolerance of an adaptive method for every step, at least 1e-13.
        steps: number of steps of a fixed method.
        probes: number of Hutchinson probes; 0 for the exact divergence, by d derivatives a call of
            a denoiser, K·d of other scores.

    Raises:
        ValueError: an unknown method, tolerances that float64 cannot hold, numbers below 1.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 128
    probes: int = 0

    def __post_init__(self) -> None:
        methods = (*ADAPTIVE, *FIXED, ADAMS)
        if self.method not in methods:
            raise ValueError(f"method is {self.method!r}, expected one of {', '.join(methods)}")
        for name in ("rtol", "atol"):
            value = check_number(name, getattr(self, name), "a positive tolerance, e.g. 1e-5")
            if not value >= 1e-13:
                raise ValueError(
                    f"{name} is {value:g}, finer than float64 can hold, expected at least 1e-13"
                )
        fewest = 3 if self.method == ADAMS else 1
        check_count("steps", self.steps, "the number of steps from ε to T", fewest)
        check_count("probes", self.probes, "that of Hutchinson's estimator, 0 for exact", 0)


class FlowDensity(NamedTuple):
    """log p_ode of states, and the number of network calls."""

    log_prob: Tensor  # (n,) nats
    calls: int  # of the network, for each state


def flow_log_prob(
    diffusion: Diffusion, score: Score, y: Tensor, solver: Solver | None = None
) -> FlowDensity:
    """log p_ode(y_ε) of states, differentiable in the states and in the network.

    With probes it is unbiased for the log density, but its exponential is not for the density.

    Args:
        diffusion: the noising diffusion.
        score: the score; its network is called in its own precision.
        y: states at ε, (n, K, *event_shape).
        solver: solver of the ODE; None: an adaptive one with exact divergences.

    Raises:
        UnsupportedDiffusionError: a diffusion that depends on contexts or on the data.
        ValueError: a score with observed or left-out dimensions.
    """
    fix = "use the bound: elbo_terms, bound, MDM_ELBO, or method='elbo'"
    needed = (Cap.NO_CONTEXT, Cap.OWN_DRIFT)
    require(diffusion, *needed, who="log p_ode(y_ε), of one flow for all data,", fix=fix)
    check_counts_all(score, y, "log p_ode(y_ε)")
    solver = Solver() if solver is None else solver
    # 52 bits, which float64 holds exactly
    seed = int(randomness.uniform((1,), torch.float64, y.device) * 2**52) if solver.probes else 0
    # divergences are derivatives, which inference mode would make 0
    if y.is_inference() or torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return flow_log_prob(diffusion, score, y.clone(), solver)
    y = y.double()
    by_z = score.denoises and Cap.READOUT in diffusion.caps
    if solver.method == ADAMS and not by_z:
        raise ValueError(
            f"method is {ADAMS!r}, which is of the flow of a denoiser, and the score is "
            f"{type(score).__name__} over {type(diffusion).__name__}; use 'rk4' or 'dopri5'"
        )
    flow = (_DenoiserFlow if by_z else _StateFlow)(cast(Kernels, diffusion), score, solver, seed)
    start, correction = flow.start(y)
    if solver.method == ADAMS:
        assert isinstance(flow, _DenoiserFlow)
        u = torch.linspace(0, 1, solver.steps + 1, dtype=torch.float64, device=y.device)
        end, gained = walk(_DenoiserField(flow, u, start), start, solver.steps)
    else:
        end, gained = _solved(flow, start, solver)
    return FlowDensity(correction + gained + flow.prior_log_prob(end), flow.calls)


def _solved(flow: _Flow, start: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
    """The end of the flow, like its start, and the integral of its divergence, (n,)."""
    import torchdiffeq  # loads scipy

    options: dict[str, object] = {"method": solver.method, "rtol": solver.rtol, "atol": solver.atol}
    if solver.method in FIXED:
        options["options"] = {"step_size": 1 / solver.steps}
    ends = torch.arange(2, dtype=torch.float64, device=start.device)  # 0 and 1
    both = (start, start.new_zeros(len(start)))
    states, gained = torchdiffeq.odeint(flow, both, ends, **options)
    return states[-1], gained[-1]


class _Flow(ABC):
    """A velocity and its divergence per unit of u in [0, 1], the fraction of the way."""

    def __init__(self, diffusion: Diffusion, score: Score, solver: Solver, seed: int) -> None:
        self.diffusion = diffusion
        self.seed, self.score = seed, BoundScore(diffusion, score)
        self.probes: Probes = solver.probes or "exact"
        self.calls = 0
        parameters = *diffusion.parameters(), *score.parameters()
        self.learned = any(parameter.requires_grad for parameter in parameters)

    def __call__(self, u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        y = state[0]
        graph = torch.is_grad_enabled() and (y.requires_grad or self.learned)
        u = u.clamp(0, 1)  # an adaptive step may look past the end
        with torch.enable_grad(), full_precision(y), randomness.held(self.seed):
            v, change = self.velocity(u, separate_node(y), graph)
        return (v, change) if graph else (v.detach(), change.detach())

    @abstractmethod
    def start(self, y: Tensor) -> tuple[Tensor, Tensor | float]:
        """The start of the flow of states y_ε, and the terms of log p that do not need the ODE."""

    @abstractmethod
    def velocity(self, u: Tensor, y: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        """The velocity, like y, and its divergence, (n,)."""

    @abstractmethod
    def prior_log_prob(self, y: Tensor) -> Tensor:
        """The prior's log density where the flow ends, (n,)."""


class _StateFlow(_Flow):
    """The flow of the whole state, for scores that depend on all of it.

    u is the fraction of the diffusion's way.
    """

    def start(self, y: Tensor) -> tuple[Tensor, Tensor | float]:
        return y, 0.0

    def prior_log_prob(self, y: Tensor) -> Tensor:
        return self.diffusion.prior.log_prob(y)

    def velocity(self, u: Tensor, y: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        self.calls += 1
        way = self.diffusion.way
        s = way.time_at(u)
        speed = way.speed(s)
        if isinstance(self.diffusion, Kernels):
            v, change = self._linear(y, s.expand(len(y)), graph)
        else:
            v = self.diffusion.paths.velocity(y, s, 0.0, self.score)
            change = divergence(v, y, None, self.probes, create_graph=graph).value
        return speed * v, speed * change

    def _linear(self, y: Tensor, s: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        """A y - ½ g² s_θ, like y, and its divergence, (n,), at times s (n,)."""
        diffusion = cast(Kernels, self.diffusion)
        theta, of_score = with_divergence(self.score, y, s, self.probes, create_graph=graph)
        A = diffusion.drift_matrix(s)
        v = apply_matrix(A, y) - 0.5 * apply_matrix(diffusion.noise_covariance(s), theta)
        trace = A.diagonal(dim1=-2, dim2=-1).sum(-1)
        of_drift = y[0, 0].numel() * (trace.flatten(1).mean(1) if trace.dim() > s.dim() else trace)
        return v, of_drift.to(of_score) - 0.5 * of_score


def with_divergence(
    score: BoundScore, y: Tensor, s: Tensor, probes: Probes, *, create_graph: bool = True
) -> tuple[Tensor, Tensor]:
    """s_θ, like y (batch, K, *event_shape), and ∇·(g² s_θ), (batch,), of closed-form kernels.

    The part that is large near the data, ``-Σ^{-1} y``, is differentiated in closed form, so that
    probes estimate the network's part alone. States require gradients; times are (batch,). With
    ``create_graph`` both results have derivatives themselves.
    """
    diffusion, dtype, y = score.diffusion, y.dtype, y.to(score.dtype)
    at = score.parameterization.coefficients(diffusion, y, s)
    theta = score.parameterization.score_at(diffusion, y, at)
    with full_precision(y):
        W = at.whitener
        added = theta.double() + apply_matrix(W.mT @ W, y.double())
        G = check_dispersion(diffusion, diffusion.dispersion(None, s), y).to(y.device)
        of_added = divergence(added, y, G, probes, create_graph=create_graph).value
    of_score = of_added - y[0, 0].numel() * diffusion.log_volume.rate(s).to(of_added)
    return theta.to(dtype), of_score.to(dtype)


class _DenoiserFlow(_Flow):
    r"""The flow of z, the only part of the state that a denoiser depends on: the same for every K.

    With ``v = e^{-λ}``, and data of mean μ and variance σ² per dimension, the flow

        dz/dλ = -½ (z - x̂(z, λ))      is      dw/dλ = ½ (x̂ - x̂_0) / √(σ² + v)

    for w = (z - μ)/√(σ² + v), where x̂_0 = μ + σ²/(σ² + v) (z - μ) is exact for N(μ, σ²). So w is
    constant where the network agrees with a Gaussian fit, and nowhere stiff: few steps are enough.
    It ends in the distribution of z_T under the prior, N(0, kᵀ Σ_π k). The rest of y_ε has its
    distribution given z, whatever the data.

    u is counted in arsinh((λ + log σ²)/4), or in the diffusion's own way where log SNRs differ
    between dimensions.
    """

    # steps are even in λ where noise and data are of one size, and longer far from there
    WIDTH = 4.0
    diffusion: Kernels

    def __init__(self, diffusion: Kernels, score: Score, solver: Solver, seed: int) -> None:
        super().__init__(diffusion, score, solver, seed)
        denoiser: Any = score
        self.x_hat: Callable[..., Tensor] = denoiser.x_hat
        self.mean: Tensor = denoiser.data_mean.double()
        self.variance: Tensor = denoiser.data_variance.double()
        self.middle = -self.variance.log().mean().detach().cpu()

    def level(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """λ at the fractions u (m,) of the way, (m,) or maps (m, *event_shape), and dλ/du."""
        diffusion = self.diffusion
        if diffusion.maps:
            log_snr, rate = diffusion.level(u)
            return log_snr.to(u.device), -rate.to(u.device)
        ends = torch.stack([diffusion.start_log_snr, diffusion.terminal_log_snr])
        start, end = ((ends - self.middle) / self.WIDTH).asinh().to(u.device)
        at = start + u * (end - start)
        log_snr = self.middle.to(u.device) + self.WIDTH * at.sinh()
        return log_snr, self.WIDTH * at.cosh() * (end - start)

    def start(self, y: Tensor) -> tuple[Tensor, Tensor | float]:
        log_snr = self.level(y.new_zeros(1))[0][0]
        z = apply_vector(self.diffusion.start.readout, y)
        noising = NoisingPath(self.diffusion, from_coordinates(self.diffusion, z))
        scale = (self.variance + (-log_snr).exp()).sqrt().expand_as(z[0])
        of_z = -0.5 * (math.log(2 * math.pi) - log_snr).expand_as(z[0]).sum()  # log q(z | x = z)
        rest = noising.log_prob(y.unsqueeze(1)) - of_z
        return (z - self.mean) / scale, rest - scale.log().sum()

    def velocity(self, u: Tensor, y: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        state = y.unsqueeze(1)  # as if K were 1
        v = _DenoiserField(self, u.reshape(1), y).velocity(0, state.squeeze(1))
        return v, divergence(v.unsqueeze(1), state, None, self.probes, create_graph=graph).value

    def prior_log_prob(self, y: Tensor) -> Tensor:
        log_snr = self.level(y.new_ones(1))[0][0]
        scale = (self.variance + (-log_snr).exp()).sqrt()
        k = self.diffusion.terminal.readout
        variance = (k.unsqueeze(-2) @ self.diffusion.prior_covariance @ k.unsqueeze(-1))[..., 0, 0]
        z, variance = self.mean + scale * y, variance.to(y)
        terms = z.square() / variance + (2 * math.pi * variance).log()
        return -0.5 * terms.flatten(1).sum(1) + scale.expand_as(z[0]).log().sum()


class _DenoiserField:
    """The velocity of a denoiser's flow at nodes u (S + 1,) of the way, for states like w.

    It is a factor times (x̂ - x̂_0)/√(σ² + v).
    """

    def __init__(self, flow: _DenoiserFlow, u: Tensor, w: Tensor) -> None:
        self.flow = flow
        self.has_jacobian = flow.probes == "exact"
        self.dtype, self.event_dim = flow.score.dtype, w.dim() - 1
        self.level, speed = flow.level(u)
        # broadcast with states (S + 1, n, *event_shape)
        shape = (len(u), 1, *self.level.shape[1:], *[1] * (w.dim() - self.level.dim()))
        v, factor = (-self.level).exp().reshape(shape), 0.5 * speed.reshape(shape)
        self.scale, self.pull = (flow.variance + v).sqrt(), flow.variance / (flow.variance + v)
        self.factor = factor.expand(len(u), 1, *w.shape[1:])
        numbers = (self.level, self.scale, self.pull, self.factor)
        self.at: tuple[tuple[Tensor, ...], ...] = tuple(
            zip(*(torch.unbind(t) for t in numbers), strict=True)
        )

    def velocity(self, node: int, w: Tensor) -> Tensor:
        log_snr, scale, pull, factor = self.at[node]
        if log_snr.dim():
            log_snr = log_snr.expand_as(w)
        return factor * self._departure(w, log_snr, scale, pull)

    def _departure(self, w: Tensor, log_snr: Tensor, scale: Tensor, pull: Tensor) -> Tensor:
        """(x̂ - x̂_0)/√(σ² + v), like w (*batch, *event_shape)."""
        self.flow.calls += 1
        z = (self.flow.mean + scale * w).to(self.dtype)
        if (lead := w.dim() - self.event_dim) > 1:  # nodes and rows are one batch for a score
            log_snr = log_snr.expand(w.shape[: max(lead, log_snr.dim())]).flatten(0, lead - 1)
            z = z.flatten(0, lead - 1)
        x: Tensor = self.flow.x_hat(z, log_snr).reshape(w.shape)
        return (x.double() - self.flow.mean) / scale - pull * w

    def divergences(self, w: Tensor, *, slopes: bool) -> Divergences:
        check_finite("z", w)
        n, d = w.shape[1], w[0, 0].numel()
        # probes are the same for all nodes, so these are taken one by one
        many = max(1, AT_ONCE // (n * d * d)) if self.has_jacobian else 1
        nodes = [slice(i, i + many) for i in range(0, len(w), many)]
        parts = [self._divergences(w[some], some, slopes) for some in nodes]
        return Divergences(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _divergences(self, w: Tensor, nodes: slice, slopes: bool) -> tuple[Tensor, ...]:
        """The trace at some of the nodes, with ``slopes`` the Jacobian and the slope too."""
        lead, recorded = w.shape[:2], torch.is_grad_enabled() and not slopes
        log_snr, factor = self.level[nodes].unsqueeze(1), self.factor[nodes].expand_as(w)
        log_snr = log_snr.expand(lead if log_snr.dim() == 2 else w.shape)
        with torch.enable_grad(), full_precision(w), randomness.held(self.flow.seed):
            y = separate_node((w if recorded else w.detach()).flatten(0, 1).unsqueeze(1))
            at = log_snr, self.scale[nodes], self.pull[nodes]
            field = (factor * self._departure(y.reshape(w.shape), *at)).reshape(y.shape)
            if not self.has_jacobian:
                probes = self.flow.probes
                values = [divergence(field, y, None, probes, create_graph=recorded).value]
            else:
                J = jacobian(field, y, create_graph=recorded or slopes)
                trace = J.diagonal(dim1=1, dim2=2).sum(1)
                values = [trace]
            if slopes:
                slope = torch.zeros_like(y)
                if trace.requires_grad:
                    (slope,) = torch.autograd.grad(trace.sum(), y)
                values += [J, slope.flatten(1)]
        return tuple((v if recorded else v.detach()).unflatten(0, lead) for v in values)


# -- divergences -----------------------------------------------------------------------------------

Probes = int | Literal["exact"] | None
"""The number of random probes of a divergence, or ``exact``; None: exact for few derivatives."""
ProbeLaw = Literal["rademacher", "gaussian"]
"""The distribution of random probes."""
EXACT = 8
"""The most derivatives for which a divergence is exact by default."""
AT_ONCE = 2**16
"""The most numbers in a batch of derivatives, of all data together."""


class Trace(NamedTuple):
    """An estimate of a divergence for each of n data."""

    value: Tensor  # (n,)
    variance: Tensor  # (n,) of the value, by its probes; 0 if exact, NaN for a single probe


def divergence(
    field: Tensor,
    y: Tensor,
    G: Tensor | None,
    probes: Probes,
    *,
    law: ProbeLaw = "rademacher",
    create_graph: bool = True,
) -> Trace:
    r"""The trace tr(Gᵀ J G) of a field's Jacobian J at y; tr J for G = None.

    Args:
        field: (n, K, *event_shape), computed from y, which requires gradients.
        G: (n, d or 1, K, K), held fixed.
        probes: number of Hutchinson probes, or ``exact``; None: exact for up to 8 derivatives and
            otherwise 1.
        law: distribution of the probes.
        create_graph: whether the divergence has derivatives itself.
    """
    n, K = y.shape[:2]
    d = y[0, 0].numel()
    rows = as_rows(field)
    if not field.requires_grad:
        return Trace(y.new_zeros(n), y.new_zeros(n))
    # The graph is needed if anything else carries gradients; the caller detaches if not.
    along = rows if G is None else apply_to_rows(G.mT, rows)
    used = list(range(K))
    if G is not None:
        used = G.detach().abs().amax((0, 1, 2)).nonzero().squeeze(1).tolist()
    if probes is None:
        probes = "exact" if d * len(used) <= EXACT else 1
    if probes == "exact" and G is None and d * K > EXACT:
        return Trace(_batched(rows, y, create_graph), y.new_zeros(n))
    if probes == "exact":
        total = y.new_zeros(n)
        for j in range(d):
            for k in used:
                grad = _gradient(along[:, j, k].sum(), y, create_graph)[:, j]
                total = total + (grad[:, k] if G is None else (grad * _column(G, j, k)).sum(-1))
        return Trace(total, y.new_zeros(n))
    estimates = []
    for _ in range(probes):
        xi = _probe((n, d, K), law, y)
        grad = _gradient((along * xi).sum(), y, create_graph)
        moved = xi if G is None else apply_to_rows(G.to(xi.dtype), xi)
        estimates.append((grad * moved).flatten(1).sum(1))
    values = torch.stack(estimates)
    variance = values.detach().var(0) / probes if probes > 1 else values[0].detach() * math.nan
    return Trace(values.mean(0), variance)


def _batched(rows: Tensor, y: Tensor, create_graph: bool) -> Tensor:
    """tr J, (n,), of a field (n, d, K) at y, by batches of derivatives."""
    total = rows.new_zeros(len(rows))
    for chunk, grad in _derivatives(rows, y, create_graph):
        total = total + grad[torch.arange(len(chunk)), :, chunk].sum(0)
    return total


def jacobian(field: Tensor, y: Tensor, *, create_graph: bool = True) -> Tensor:
    """The Jacobian of each datum, (n, K·d, K·d), by batches of derivatives.

    Args:
        field: values (n, K, *event_shape), computed from y, which requires gradients.
        y: states, (n, K, *event_shape).
        create_graph: whether the Jacobian has derivatives itself.
    """
    batches = [grad for _, grad in _derivatives(as_rows(field), y, create_graph)]
    return torch.cat(batches).movedim(0, 1)


def _derivatives(rows: Tensor, y: Tensor, create_graph: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (m,) of the numbers of a field (n, d, K), and their derivatives, (m, n, d·K).

    Where a batch fails, its derivatives are taken one by one, and an error in these is raised. A
    batch that exhausts the memory fails at once.
    """
    n, d, K = rows.shape
    unit = torch.eye(d * K, dtype=rows.dtype, device=rows.device)
    options: dict[str, Any] = {"create_graph": create_graph, "retain_graph": True}
    for chunk in torch.arange(d * K, device=rows.device).split(max(1, AT_ONCE // (n * d * K))):
        if not rows.requires_grad:  # it does not depend on y
            yield chunk, rows.new_zeros(len(chunk), n, d * K)
            continue
        along = unit[chunk].reshape(-1, 1, d, K).expand(-1, n, d, K)
        try:
            (grad,) = torch.autograd.grad(rows, y, along, is_grads_batched=True, **options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a network whose derivative takes no batch
            grad = torch.stack([torch.autograd.grad(rows, y, one, **options)[0] for one in along])
        yield chunk, grad.flatten(3).mT.reshape(len(chunk), n, d * K)  # (…, K, d) -> (…, d, K)


def _column(G: Tensor, j: int, k: int) -> Tensor:
    return G[:, j if G.shape[1] > 1 else 0, :, k]


def _gradient(value: Tensor, y: Tensor, create_graph: bool) -> Tensor:
    (grad,) = torch.autograd.grad(
        value, y, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return as_rows(torch.zeros_like(y) if grad is None else grad)


def _probe(shape: tuple[int, ...], law: str, like: Tensor) -> Tensor:
    if law == "gaussian":
        return randomness.normal(shape, like.dtype, like.device)
    return 2.0 * (randomness.uniform(shape, like.dtype, like.device) < 0.5).to(like.dtype) - 1.0
