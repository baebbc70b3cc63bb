"""Distributions of paths, noising and generative, and the divergence of one from the other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import (
    Cap,
    Diffusion,
    Marginal,
    Transition,
    coordinates,
    kept,
    require,
)
from pyro_mdm.diffusions.closed import Kernels, noised_state, prior_constants
from pyro_mdm.diffusions.linear import at_rest
from pyro_mdm.diffusions.matrices import apply_matrix, of_counted, outer
from pyro_mdm.paths.density import density_bound, gaussian_log_prob
from pyro_mdm.scores.base import Coefficients, Score
from pyro_mdm.support.checks import (
    check_count,
    check_data,
    check_instance,
    check_real,
    check_shape,
    check_values,
    checked_arguments,
    describe,
    real_tensor,
)
from pyro_mdm.support.inference import Inference, inference_in_use

__all__ = [
    "BoundScore",
    "GenerativeLaw",
    "GenerativePath",
    "NoisingLaw",
    "NoisingPath",
    "PathKL",
    "PathLaw",
    "checked_times",
    "different_diffusions",
    "noising_law",
    "path_divergence",
    "path_kl",
    "prior_kl",
    "shared_diffusion",
    "times_text",
    "warn_of_prior",
]

P = TypeVar("P", bound="PathLaw")
Sampler = Callable[..., Tensor]
FAR = 0.05
"""The prior KL from which a prior does not cover the data, in nats per dimension: for VE that of a
σ_max of about three times their root mean square."""


class PathLaw(TorchDistribution):
    """The base class of distributions of paths, with event shape (N, K, *event_shape of x).

    Args:
        diffusion: the diffusion of the path.
        batch_shape: batch shape.
        x_shape: shape of a datum.
        num_times: number N of times at which the path is seen.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    diffusion: Any  # a Diffusion of the kind that the distribution is for
    x_dim: int  # the number of dimensions of a datum
    times: Tensor | None  # (N,), at which a path is seen; None for ε alone

    def __init__(
        self,
        diffusion: Diffusion,
        batch_shape: torch.Size,
        x_shape: torch.Size,
        num_times: int,
        validate_args: bool | None = None,
    ) -> None:
        self.diffusion = diffusion
        self.x_shape, self.x_dim = x_shape, len(x_shape)
        event_shape = torch.Size((num_times, diffusion.num_variables, *x_shape))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def num_dims(self) -> int:
        """The number d of data dimensions."""
        return math.prod(self.x_shape)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self: P, batch_shape: Sequence[int], _instance: object = None) -> P:
        """The distribution of paths of another batch shape."""
        if tuple(batch_shape) == self.batch_shape and _instance is None:
            return self
        new: P = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        if "x" in self.__dict__:  # the data of a noising path
            new.__dict__["x"] = self.__dict__["x"].expand(*batch_shape, *self.x_shape)
        super(PathLaw, new).__init__(torch.Size(batch_shape), self.event_shape)
        return new

    def _validate_sample(self, value: Tensor) -> None:
        """The check of torch, which for a value of the whole shape does not wait for the device."""
        report = partial(super()._validate_sample, value)
        if value.shape == self.batch_shape + self.event_shape:
            check_values(self.support.check(value).all(), report)
        else:
            report()

    def states(self, path: Tensor) -> tuple[Tensor, ...]:
        """The states at each time, each (*lead, K, *event)."""
        return path.unbind(path.dim() - len(self.event_shape))


class NoisingLaw(PathLaw):
    """The distribution of a path that starts at data, seen at some times.

    Its attribute ``x`` holds the data in the coordinates of states. Its divergence from a
    generative path is :func:`~pyro_mdm.paths.path_divergence`.

    Args:
        diffusion: the noising diffusion.
        x: data in model space, (*batch, *event_shape).
        times: increasing times, (N,); None: the start time ε alone.
        event_dim: number of dimensions of a datum; by default all of x's but the first.
    """

    has_rsample = True
    seen_at_times: ClassVar[tuple[Cap, ...]] = ()
    """The capabilities of a diffusion that paths seen at several times need."""

    def __init__(
        self,
        diffusion: Diffusion,
        x: Tensor,
        times: Tensor | None = None,
        *,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_instance("diffusion", diffusion, Diffusion, "CLD(), or another diffusion")
        check_data("x", x)
        if type(event_dim) not in (int, type(None)):
            check_count("event_dim", event_dim, "the number of dimensions of a datum", least=0)
        cut = 1 if event_dim is None else x.dim() - event_dim
        if not 0 <= cut <= x.dim():
            raise ValueError(
                f"event_dim is {event_dim} and x has shape {tuple(x.shape)}, expected the number "
                "of dimensions of a datum, the last ones of x"
            )
        diffusion.check(x.shape[cut:])
        self.x = x if diffusion.transform is None else coordinates(diffusion, x)
        self.times, num_times = None, 1
        if times is not None:
            who = "a path seen at several times"
            require(diffusion, *self.seen_at_times, who=who, fix="leave out times")
            self.times, num_times = checked_times(diffusion, times), len(times)
        super().__init__(diffusion, x.shape[:cut], x.shape[cut:], num_times, validate_args)

    def by_term(self, kl: PathKL, path: Tensor) -> PathKL:
        """A divergence by the terms of the bound that are reported, prior KL and diffusion, with
        the path that it was estimated with."""
        return kl


class NoisingPath(NoisingLaw):
    """The distribution ``q(y_{s_1}, …, y_{s_N} | x)`` of a linear diffusion: a Gaussian chain.

    Values are (*batch, N, K, *event_shape) in x's dtype; ``rsample`` has gradients in Q, D and the
    clock, and ``log_prob`` is exact.

    Args:
        diffusion: the noising diffusion, with closed-form kernels.
        x: data in model space, (*batch, *event_shape).
        times: increasing times in (0, T], (N,); by default the start time ε alone.
        event_dim: number of dimensions of a datum; by default all of x's but the first.

    Raises:
        ValueError: x with no batch dimension or with entries that are not finite.

    Example:
        >>> from pyro_mdm import CLD
        >>> path = NoisingPath(CLD(), torch.randn(5, 2), torch.tensor([0.1, 0.5, 1.0]))
        >>> path.rsample().shape  # 5 data at 3 times, K = 2 variables of 2 dimensions
        torch.Size([5, 3, 2, 2])
    """

    seen_at_times = (Cap.OWN_DRIFT, Cap.NO_CONTEXT)

    def _kernels(self) -> tuple[Marginal, Transition | None]:
        """The distribution of the first state, and those of the steps after it; None for one."""
        if self.times is None:
            return self.diffusion.start, None
        first = self.diffusion.marginal(self.times[0])
        if len(self.times) == 1:
            return first, None
        return first, self.diffusion.transition(self.times[1:], self.times[:-1])

    def _displaced(self, state: Tensor) -> Tensor:
        """The first state or its mean, (*lead, K, *event_shape), with what data displace it by."""
        s = self.diffusion.start_time if self.times is None else self.times[0]
        moved = self.diffusion.paths.displacement(self.x, s, self.x_dim)
        return state if moved is None else state + moved

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        first, steps = (self.diffusion.start, None) if self.times is None else self._kernels()
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        noise = randomness.normal(shape, self.x.dtype, self.x.device)
        at = noise.dim() - len(self.event_shape)
        e, *others = noise.unbind(at)
        state = noised_state(first, self.x, e, self.x_dim)
        if self.diffusion.paths.starts_at_data or self.diffusion.paths.drifts_by_data:
            state = self._displaced(state)
        states = [state]
        for i, e in enumerate(others):
            assert steps is not None
            step = steps.at(i)
            y = apply_matrix(step.matrix, states[-1], self.x_dim)
            states.append(y + apply_matrix(step.scale_tril, e, self.x_dim))
        return torch.stack(states, at) if others else states[0].unsqueeze(at)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(path | x), (*batch), nats."""
        check_shape("value", value, self.event_shape)
        if self._validate_args:
            self._validate_sample(value)
        first, steps = self._kernels()
        y, *rest = self.states(value)
        residual = y - self._displaced(outer(first.mean, self.x, self.x_dim))
        total = gaussian_log_prob(residual, first.scale_tril, first.log_det, self.x_dim)
        for i, after in enumerate(rest):
            assert steps is not None
            step = steps.at(i)
            residual = after - apply_matrix(step.matrix, y, self.x_dim)
            total = total + gaussian_log_prob(residual, step.scale_tril, step.log_det, self.x_dim)
            y = after
        return total


@singledispatch
def noising_law(
    diffusion: Diffusion,
    x: Tensor,
    times: Tensor | None = None,
    *,
    event_dim: int | None = None,
    **options: object,
) -> NoisingLaw:
    """The distribution q(path | x): in closed form where there is one, else simulated.

    Dispatched on the kind of diffusion. Register a function for a kind of your own that is neither
    :class:`~pyro_mdm.diffusions.Kernels` nor simulated.

    Args:
        diffusion: the noising diffusion, on whose kind the function is dispatched.
        x: data, (batch, *event_shape).
        times: times at which the path is seen, (N,); None: ε alone.
        event_dim: number of dimensions of a datum; by default all of x's but the first.
        options: options of the kind, such as the simulation of a :class:`~pyro_mdm.SimulatedPath`.
    """
    raise NotImplementedError(
        f"no distribution of noising paths is registered for {type(diffusion).__name__}; see "
        "noising_law"
    )


noising_law.register(Kernels, NoisingPath)


class GenerativeLaw(PathLaw):
    """The base class of distributions of generative paths, which have a score and no x."""

    has_rsample = False
    score: Score
    times: Tensor | None = None
    """The grid of a chain, (N,); None for a path in continuous time, seen at ε alone."""

    def divergence(self, noising: NoisingPath) -> PathKL:
        """The divergence of a noising chain from a generative one, on one grid."""
        raise NotImplementedError(f"{type(self).__name__} is no chain with a divergence")


class GenerativePath(GenerativeLaw):
    """The distribution of the reverse SDE run from the prior π at T to ε, seen at ε.

    ``sample`` simulates the SDE. ``log_prob`` is a *stochastic lower bound* on log p(y_ε),
    :func:`~pyro_mdm.paths.density_bound`. Its exponential estimates no density: importance weights
    need :class:`GenerativeChain`, and Pyro's inference that takes them is refused.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: the score, a :class:`~pyro_mdm.scores.Score`.
        event_shape: shape of a datum.
        sampler: integrator of the SDE (:mod:`pyro_mdm.samplers`); None: no samples.
        batch_shape: batch shape of the distribution.

    Example:
        >>> from pyro_mdm import CLD, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> from pyro_mdm.samplers import ExponentialIntegrator
        >>> score = Denoiser.fit(MLP(2), torch.randn(100, 2))
        >>> path = GenerativePath(CLD(), score, (2,), sampler=ExponentialIntegrator(10))
        >>> path.sample((3,)).shape  # 3 states at ε, K = 2 variables of 2 dimensions
        torch.Size([3, 1, 2, 2])
    """

    def __init__(
        self,
        diffusion: Diffusion,
        score: Score,
        event_shape: Sequence[int],
        *,
        sampler: Sampler | None = None,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        check_instance("diffusion", diffusion, Diffusion, "CLD(), or another diffusion")
        check_instance("score", score, Score, "e.g. Denoiser.fit(network, train_x)")
        if sampler is not None and not callable(sampler):
            raise TypeError(f"sampler is {describe(sampler)}, expected one of pyro_mdm.samplers")
        self.score = score
        self.sampler = sampler
        try:
            shapes = torch.Size(batch_shape), torch.Size(event_shape)
            right = bool not in map(type, (*event_shape, *batch_shape))
        except TypeError:
            right = False
        if not right:
            what = f"event_shape is {describe(event_shape)} and batch_shape {describe(batch_shape)}"
            raise TypeError(f"{what}, expected sizes, e.g. (2,) or (1, 28, 28)")
        super().__init__(diffusion, *shapes, 1, validate_args)

    @checked_arguments
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        if self.sampler is None:
            raise ValueError("this GenerativePath has no sampler; pass sampler=EulerMaruyama(500)")
        lead = (*sample_shape, *self.batch_shape)
        shape = (math.prod(lead), *self.event_shape[1:])
        with torch.no_grad():
            y: object = self.sampler(self.diffusion, BoundScore(self.diffusion, self.score), shape)
        if not isinstance(y, Tensor) or y.shape != shape:
            what = f"of shape {tuple(y.shape)}" if isinstance(y, Tensor) else describe(y)
            raise TypeError(
                f"the sampler {describe(self.sampler)} returned {what}, expected y_ε of shape "
                f"{shape}, (n, K, *event_shape)"
            )
        return y.reshape(*lead, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """A stochastic lower bound on log p_θ(y_ε), (*batch), nats.

        Args:
            value: states at ε, (*batch, 1, K, *event_shape).

        Raises:
            ValueError: Pyro's inference would exponentiate the bound, or walk on it.
        """
        if (use := inference_in_use()) is not None:
            self.check_density(use)
        if self._validate_args:
            self._validate_sample(value)
        (state,) = self.states(value)
        lead = state.shape[: state.dim() - self.x_dim - 1]
        y0 = state.reshape(-1, *self.event_shape[1:])
        return density_bound(self.diffusion, self.score, y0).reshape(lead)

    def check_density(self, use: Inference) -> None:
        """Raises ValueError for an inference that takes exponentials of a density."""
        if use.weighs:
            raise ValueError(
                "log_prob of a path in continuous time is a lower bound, with other noise at every "
                f"call, and {use.name} takes it for a log density; give both programs a grid, as "
                "its paths have one, DiffusionModel(…, times=65) and DiffusionGuide(diffusion, "
                "times=65), or use SVI with MDM_ELBO or Trace_ELBO"
            )

    def score_at(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y (*batch, K, *event_shape), for s (*batch)."""
        return self.score.score(self.diffusion, y, s)


class BoundScore:
    """A score and its diffusion as the callable ``score(y, s)``, with ``denoise(y, s)``.

    States may have any dtype (samplers hold them in float64): the network receives its own, and the
    result is cast back.

    Args:
        diffusion: the noising diffusion.
        score: the score.
    """

    def __init__(self, diffusion: Diffusion, score: Score) -> None:
        self.diffusion: Any = diffusion
        self.parameterization = score
        self.dtype = score.dtype or torch.get_default_dtype()

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y."""
        return self.parameterization.score(self.diffusion, y.to(self.dtype), s).to(y.dtype)

    score = __call__

    def denoise(self, y: Tensor, s: Tensor, noise: float = 1.0) -> Tensor:
        """x̂, (*batch, *event_shape), in y's dtype, for the backward process with noise η g².

        It is the same for every η, unless the drift of noising paths sees the data.
        """
        y, dtype = y.to(self.dtype), y.dtype
        return self.parameterization.denoise(self.diffusion, y, s, noise).to(dtype)

    # -- at times whose coefficients are ready -----------------------------------------------------

    def score_at(self, y: Tensor, at: Coefficients) -> Tensor:
        """s_θ, like y, for the diffusion at the times of the states."""
        return self.parameterization.score_at(self.diffusion, y.to(self.dtype), at).to(y.dtype)

    def denoise_at(self, y: Tensor, at: Coefficients, noise: float = 1.0) -> Tensor:
        """x̂ as by :meth:`denoise`, for the diffusion at the times of the states."""
        y, dtype = y.to(self.dtype), y.dtype
        return self.parameterization.denoise_at(self.diffusion, y, at, noise).to(dtype)

    def start_hat_at(self, y: Tensor, at: Coefficients) -> Tensor:
        """ŵ = (x̂, m̂), like y, of a score that estimates the mean of v_0 too."""
        estimate: Any = self.parameterization
        start_hat: Tensor = estimate.start_hat_at(self.diffusion, y.to(self.dtype), at)
        return start_hat.to(y.dtype)


# -- the divergence --------------------------------------------------------------------------------


class PathKL(NamedTuple):
    """The divergence of a noising path from a generative one, by term, each (*batch)."""

    prior: Tensor  # the term without the score, nats: KL(q(y_T|x) ‖ π) in closed form
    diffusion: Tensor  # one unbiased estimate of the integral, nats
    log_snr: Tensor  # the λ at which it was estimated


@singledispatch
def path_divergence(noising: object, generative: object, path: Tensor | None = None) -> PathKL:
    """The divergence of a noising path from a generative one, by term, for each datum.

    Dispatched on the noising distribution. Register the divergence of a kind of your own by
    ``@path_divergence.register(Kind)`` over a function of (noising, generative, path).

    Args:
        noising: distribution of the noising path, a :class:`NoisingLaw`.
        generative: distribution of the generative path over the same diffusion.
        path: path at whose end a decoder is evaluated, (*batch, N, K, *event_shape); simulated
            paths continue it. None to draw it.

    Returns:
        :class:`PathKL`, (*batch), nats.

    Raises:
        NotImplementedError: no divergence is registered for the distributions.
        ValueError: paths of different diffusions, or seen at different times.
    """
    raise NotImplementedError(
        f"no divergence is registered for {type(noising).__name__}; see path_divergence"
    )


@register_kl(NoisingLaw, GenerativeLaw)
def _whole(noising: NoisingLaw, generative: GenerativeLaw) -> Tensor:
    kl = path_divergence(noising, generative)
    return kl.prior + kl.diffusion


@path_divergence.register(NoisingPath)
def path_kl(noising: NoisingPath, generative: GenerativeLaw, path: object = None) -> PathKL:
    r"""The divergence of paths in closed form, by one network call, or of two chains on a grid.

    The diffusion term is :meth:`~pyro_mdm.scores.Score.diffusion_term`: over λ = log SNR for a
    denoiser, over log volume for a score of the raw state.

    Args:
        noising: distribution of the noising path.
        generative: distribution of the generative path.
        path: not used: the divergence is that of distributions.

    Returns:
        :class:`PathKL`, (*batch), nats.

    Raises:
        ValueError: paths of different diffusions, whose distributions are mutually singular.
    """
    check_instance("noising", noising, NoisingPath, "e.g. NoisingPath(diffusion, x)")
    check_instance("generative", generative, GenerativeLaw, "e.g. a GenerativePath")
    if generative.times is not None:
        return generative.divergence(noising)
    diffusion, x = shared_diffusion(noising, generative), noising.x
    prior = prior_kl(diffusion, x, noising.x_dim, generative.score.counts(x))
    if x.dim() == 1 + noising.x_dim:
        return PathKL(prior, *generative.score.diffusion_term(diffusion, x))
    terms = generative.score.diffusion_term(diffusion, x.reshape(-1, *noising.x_shape))
    return PathKL(prior, *(term.reshape(noising.batch_shape) for term in terms))


def prior_kl(
    diffusion: Kernels, x: Tensor, event_dim: int, counted: Tensor | None = None
) -> Tensor:
    """KL(q(y_T | x) ‖ N(0, Σ_π)) in closed form, (*batch), nats.

    Args:
        diffusion: diffusion with closed-form kernels.
        x: data in the coordinates of states, (*batch, *event_shape).
        event_dim: number of dimensions of a datum.
        counted: mask of the dimensions that count, bool, broadcastable to x; None: all.
    """
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        check_shape("x", x, ())
    if type(event_dim) is not int:
        check_count("event_dim", event_dim, "the number of dimensions of a datum", least=0)
    check_instance("diffusion", diffusion, Kernels, "CLD(), or another with kernels")
    compute = partial(prior_constants, diffusion)
    constant, quadratic = kept(diffusion, "prior KL", compute)
    event = tuple(range(-event_dim, 0))
    if constant.dim() or counted is not None:
        kl = constant.to(x) + quadratic.to(x) * x.square()
        return of_counted(kl, counted).sum(event)
    constant = math.prod(x.shape[x.dim() - event_dim :]) * constant
    moved = None
    if diffusion.paths.starts_at_data or diffusion.paths.drifts_by_data:
        moved = diffusion.paths.displacement(x, diffusion.horizon, event_dim)
    if moved is not None:
        mean = outer(diffusion.terminal.mean, x, event_dim) + moved
        precision = torch.linalg.inv_ex(diffusion.prior_covariance).inverse
        pull = apply_matrix(precision, mean, event_dim)
        return constant + 0.5 * (mean * pull).sum((-event_dim - 1, *event))
    square = x.square().sum(event) if event_dim else x.square()
    return constant.to(x) + quadratic.to(x) * square


@torch.no_grad()
def warn_of_prior(diffusion: object, x: Tensor) -> None:
    """Warn where the prior of a diffusion without a stationary distribution does not cover data.

    A stationary prior is reached whatever the data are, and a clock that is too short is no
    mistake.

    Args:
        diffusion: the noising diffusion.
        x: data (n, *event_shape), in model space; NaN where an entry is missing.
    """
    if not isinstance(diffusion, Kernels) or at_rest(diffusion):
        return
    x = coordinates(diffusion, x.detach().double().nan_to_num(0.0))
    nats = (prior_kl(diffusion, x, x.dim() - 1).mean() / x[0].numel()).item()
    if nats > FAR:
        size = x.square().mean().sqrt().item()
        warnings.warn(
            f"the prior KL of {type(diffusion).__name__} is {nats:.3g} nats per dimension, "
            f"expected at most {FAR:g}: the prior does not cover the data, whose root mean square "
            f"is {size:.3g}, at log SNR {diffusion.terminal_log_snr.item():.3g} at T; let log SNR "
            "end lower, by more noise (sigma_max of VE) or a lower min_log_snr, or give a "
            "prior_variance near that of y at T",
            stacklevel=3,
        )


def shared_diffusion(noising: PathLaw, generative: GenerativeLaw) -> Any:
    """The diffusion that two distributions of a path share.

    Raises:
        ValueError: two diffusions, or paths of different shapes or times.
    """
    one, other = noising.diffusion, generative.diffusion
    if (one.made_from or one) is not (other.made_from or other):
        raise ValueError(different_diffusions(noising.diffusion, generative.diffusion))
    if noising.x_shape != generative.x_shape:
        raise ValueError(
            f"the guide's data have shape {tuple(noising.x_shape)}, expected "
            f"{tuple(generative.x_shape)}"
        )
    if generative.times is None and noising.times is not None:
        raise ValueError(
            f"the guide's path is seen at {times_text(noising.times)}, the model's at ε alone; "
            "give both the same times, or none"
        )
    return noising.diffusion


@checked_arguments
def different_diffusions(guide: object, model: object) -> str:
    """A message on programs over two diffusions, with the settings that differ."""
    texts = []
    for diffusion in (guide, model):
        extra = diffusion.extra_repr() if isinstance(diffusion, torch.nn.Module) else ""
        texts.append(f"{type(diffusion).__name__}({extra})")
    one, other = texts
    for name in ("Q", "D", "prior_covariance", "initial_covariance", "horizon", "beta"):
        ours, theirs = _in_short(guide, name), _in_short(model, name)
        if one == other and ours != theirs:
            one, other = f"{one} with {name} {ours}", f"{other} with {name} {theirs}"
    if one == other:
        what = f"the guide and the model each have a {one} of their own, expected one that both use"
    else:
        what = f"the guide runs {one} and the model reverses {other}; their path distributions are "
        what += "mutually singular"
    return f"{what}. Build both over one diffusion object: DiffusionGuide(model.diffusion)"


def _in_short(diffusion: object, name: str) -> str:
    try:
        value = getattr(diffusion, name, None)
    except TypeError:  # it varies in time, or there is none
        return "None"
    if isinstance(value, Tensor):
        return str([[round(float(e), 4) for e in row] for row in value.reshape(-1, len(value))])
    return str(value)


def checked_times(diffusion: Diffusion, times: Tensor, whole: bool = False) -> Tensor:
    """Times (N,), checked to be increasing, and to run from ε to T if ``whole``."""
    if not isinstance(times, Tensor):  # those of a learned diffusion have gradients
        times = real_tensor("times", times, "an increasing vector (N,)")
    check_real("times", times)
    s = times.to(torch.float64)
    if s.dim() != 1 or not len(s) or not bool((s.diff() > 0).all()):
        raise ValueError(f"times are {times_text(s)}, expected an increasing vector (N,)")
    if whole:
        start, end = diffusion.start_time.detach(), diffusion.horizon
        first, last = s[0].detach(), s[-1].detach()
        # 1e-9: the ends of a grid that was computed in another way are rounded otherwise
        if len(s) < 2 or (first - start).abs() > 1e-9 * start or abs(last - end) > 1e-9 * end:
            raise ValueError(
                f"times run from {first:.6g} to {last:.6g}, expected a grid from the start time "
                f"{start:.6g} (max_log_snr) to T = {end:g}; see log_snr_times"
            )
    return s


def times_text(times: Tensor | None) -> str:
    """Times in words, for messages."""
    if times is None:
        return "ε alone"
    return f"{times.numel()} times" if times.numel() > 4 else str(times.tolist())
