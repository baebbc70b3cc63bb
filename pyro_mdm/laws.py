r"""Laws of paths, as Pyro distributions: the noising path (guide) and the generative path (model).

A value is the state at N times, (*batch, N, K, *event_shape). By default N = 1, the start time ε
alone: the evidence lower bound needs no more of the path, because Girsanov's theorem gives the
divergence of the two continuous-time laws,

    KL(Q ‖ P) = KL(q(y_T|x) ‖ π) + ½ ∫_ε^T E ‖s_θ(y_s, s) - ∇ log q(y_s|x)‖²_{g²(s)} ds.

On a grid ε = s_1 < … < s_N = T both laws are Markov chains with exact densities.

Source of the bound: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1; in the form above its
closed-form parts are integrated out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl

from pyro_mdm import draws, path_integral
from pyro_mdm.diffusions import Diffusion, LinearDiffusion, apply_matrix, full_precision
from pyro_mdm.kernels import KernelPrecisionError
from pyro_mdm.posterior import posterior

if TYPE_CHECKING:
    from pyro_mdm.scores import Score

__all__ = [
    "GenerativeChain",
    "GenerativePath",
    "NoisingPath",
    "PathKL",
    "different_diffusions",
    "path_kl",
    "prior_kl",
]

Sampler = Callable[..., Tensor]
Self = TypeVar("Self", bound="_PathLaw")


class PathKL(NamedTuple):
    """The path divergence of each datum and what it is made of, (*batch), nats."""

    prior: Tensor  # KL(q(y_T|x) ‖ π), closed form
    diffusion: Tensor  # one unbiased estimate of the integral
    log_snr: Tensor  # the λ at which it was estimated


def _apply(matrix: Tensor, y: Tensor, event_dim: int) -> Tensor:
    """(K, K) on the variables of y (*lead, K, *event), in y's dtype."""
    flat = y.reshape(*y.shape[: y.dim() - event_dim], -1)
    with full_precision(y):
        return (matrix.to(y.dtype) @ flat).reshape(y.shape)


def _solve(scale_tril: Tensor, y: Tensor, event_dim: int) -> Tensor:
    flat = y.reshape(*y.shape[: y.dim() - event_dim], -1)
    return torch.linalg.solve_triangular(scale_tril.to(y.dtype), flat, upper=False).reshape(y.shape)


def _outer(a: Tensor, x: Tensor, event_dim: int) -> Tensor:
    """(K,) times x (*lead, *event): (*lead, K, *event)."""
    x = x.unsqueeze(x.dim() - event_dim)
    return a.to(x.dtype).reshape(-1, *(1,) * event_dim) * x


def _white_log_prob(white: Tensor, log_det: Tensor, event_dim: int) -> Tensor:
    """log N(r; 0, V) from the whitened residual and log det V per dimension, (*lead)."""
    dims = tuple(range(-event_dim - 1, 0))
    sizes = white.shape[white.dim() - event_dim - 1 :]
    d, K = math.prod(sizes[1:]), sizes[0]
    constant = d * (log_det + K * math.log(2 * math.pi)).to(white.dtype)
    return -0.5 * (white.square().sum(dims) + constant)


def _gaussian_log_prob(
    residual: Tensor, scale_tril: Tensor, log_det: Tensor, event_dim: int
) -> Tensor:
    """log N(residual; 0, L Lᵀ) summed over K and the event, (*lead)."""
    return _white_log_prob(_solve(scale_tril, residual, event_dim), log_det, event_dim)


class _PathLaw(TorchDistribution):
    """Shapes shared by the laws: batch_shape, and event_shape (N, K, *event_shape of x)."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    diffusion: Any  # a Diffusion; of the kind that the law is for

    def __init__(
        self,
        diffusion: Diffusion,
        batch_shape: torch.Size,
        x_shape: torch.Size,
        num_times: int,
        validate_args: bool | None = None,
    ) -> None:
        self.diffusion = diffusion
        self.x_shape = x_shape
        event_shape = torch.Size((num_times, diffusion.num_variables, *x_shape))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def x_dim(self) -> int:
        """Number of dimensions of a datum."""
        return len(self.x_shape)

    @property
    def num_dims(self) -> int:
        """d, the number of data dimensions."""
        return math.prod(self.x_shape)

    @constraints.dependent_property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def _expanded(self: Self, batch_shape: Any, _instance: Any) -> Self:
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def _states(self, path: Tensor) -> tuple[Tensor, ...]:
        """The states at each time, each (*lead, K, *event)."""
        return path.unbind(path.dim() - len(self.event_shape))


class NoisingPath(_PathLaw):
    """The law q(y_{s_1}, …, y_{s_N} | x) of a linear diffusion started at x: a Gaussian chain.

    Args:
        diffusion: the noising diffusion.
        x: data, (*batch, *event_shape).
        times: (N,) increasing times in (0, T]; the start time ε alone by default.
        event_dim: number of dimensions of a datum; all of x's but the first by default.

    Values are (*batch, N, K, *event_shape) in x's dtype; ``rsample`` carries gradients to Q, D and
    the clock, ``log_prob`` is exact.

    Raises:
        ValueError: x with no batch dimension or with entries that are not finite.
    """

    has_rsample = True

    def __init__(
        self,
        diffusion: LinearDiffusion,
        x: Tensor,
        times: Tensor | None = None,
        *,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        cut = _batch_dim(x, event_dim)
        self.x = x
        self.times = None if times is None else _grid(diffusion, times)
        num_times = 1 if times is None else len(times)
        super().__init__(diffusion, x.shape[:cut], x.shape[cut:], num_times, validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NoisingPath:
        new = self._expanded(batch_shape, _instance)
        new.x = self.x.expand(*batch_shape, *self.x_shape)
        return new

    def _kernels(self) -> tuple[Any, Any]:
        if self.times is None:
            return self.diffusion.start, None
        first = self.diffusion.marginal(self.times[0])
        if len(self.times) == 1:
            return first, None
        return first, self.diffusion.transition(self.times[1:], self.times[:-1])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        first, steps = self._kernels()
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        noise = draws.normal(shape, self.x.dtype, self.x.device)
        states: list[Tensor] = []
        for i, e in enumerate(self._states(noise)):
            if i == 0:
                y = _outer(first.mean, self.x, self.x_dim) + _apply(first.scale_tril, e, self.x_dim)
            else:
                y = _apply(steps.matrix[i - 1], states[-1], self.x_dim)
                y = y + _apply(steps.scale_tril[i - 1], e, self.x_dim)
            states.append(y)
        return torch.stack(states, noise.dim() - len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(path | x), (*batch), nats."""
        if self._validate_args:
            self._validate_sample(value)
        first, steps = self._kernels()
        y, *rest = self._states(value)
        residual = y - _outer(first.mean, self.x, self.x_dim)
        total = _gaussian_log_prob(residual, first.scale_tril, first.log_det, self.x_dim)
        for i, after in enumerate(rest):
            residual = after - _apply(steps.matrix[i], y, self.x_dim)
            total = total + _gaussian_log_prob(
                residual, steps.scale_tril[i], steps.log_det[i], self.x_dim
            )
            y = after
        return total


def _batch_dim(x: Tensor, event_dim: int | None) -> int:
    """The number of batch dimensions of data, checked."""
    event_dim = x.dim() - 1 if event_dim is None else event_dim
    if not 0 <= event_dim <= x.dim():
        raise ValueError(f"x has shape {tuple(x.shape)}, expected at least {event_dim} dims")
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, expected floating-point data in model space")
    if not bool(x.isfinite().all()):
        raise ValueError(
            f"x has {int((~x.isfinite()).sum())} entries that are NaN or infinite, expected "
            "finite data; check the transform that made it"
        )
    return x.dim() - event_dim


class _GenerativeLaw(_PathLaw):
    """What both generative laws share: a score, and no dependence on x."""

    has_rsample = False
    score: Score

    def expand(self: Self, batch_shape: Any, _instance: Any = None) -> Self:
        return self._expanded(batch_shape, _instance)


class GenerativePath(_GenerativeLaw):
    """The law of the reverse SDE run from the prior π at T to ε, seen at ε.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: a :class:`~pyro_mdm.scores.Score`.
        event_shape: shape of a datum.
        sampler: what simulates it (:mod:`pyro_mdm.samplers`).

    ``sample`` simulates the SDE. ``log_prob`` is a *stochastic lower bound* on log p(y_ε), unbiased
    for the denoising score matching bound in log space (one random time per datum, noise in ±
    pairs; two network evaluations), or, where the noising diffusion is simulated, for the bound of
    :mod:`pyro_mdm.path_integral`. Its exponential estimates nothing: importance weights need
    :class:`GenerativeChain`.
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
        self.score = score
        self.sampler = sampler
        super().__init__(
            diffusion, torch.Size(batch_shape), torch.Size(event_shape), 1, validate_args
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if self.sampler is None:
            raise ValueError("this GenerativePath has no sampler; pass sampler=EulerMaruyama(500)")
        lead = (*sample_shape, *self.batch_shape)
        shape = (math.prod(lead), *self.event_shape[1:])
        with torch.no_grad():
            y = self.sampler(self.diffusion, BoundScore(self.diffusion, self.score), shape)
        return y.reshape(*lead, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """A stochastic lower bound on log p_θ(y_ε), (*batch), nats."""
        if self._validate_args:
            self._validate_sample(value)
        diffusion, d = self.diffusion, self.num_dims
        (state,) = self._states(value)
        lead = state.shape[: state.dim() - self.x_dim - 1]
        y0 = state.reshape(-1, *self.event_shape[1:])
        if not isinstance(diffusion, LinearDiffusion):
            settings = diffusion.simulation
            gain = path_integral.path_integral(diffusion, self._score_at, y0, settings)
            return (diffusion.prior.log_prob(y0) - gain.value).reshape(lead)
        start = diffusion.start_time
        # s - ε with density ∝ (s - ε)^{-1/2}: ∇ log q grows like that at the lower end
        u = draws.low_discrepancy(len(y0), y0.device).clamp_min(1e-4)
        s = start + (diffusion.horizon - start) * u.square()
        weight = 2 * (diffusion.horizon - start) * u
        M, F, F_inverse, m = diffusion.noise_last_root(s, start)
        # pairs differ in the noise that G adds last, given the rest of y_s: of s_θ · g² ∇ log q
        # only its dependence on that noise counts, and all else cancels
        noise = draws.normal(y0.shape, y0.dtype, y0.device)
        flipped = torch.cat([noise[:, :-m], -noise[:, -m:]], 1)
        both = apply_matrix(M, y0).repeat(2, *(1,) * (y0.dim() - 1))
        both = both + torch.cat([apply_matrix(F, noise), apply_matrix(F, flipped)])
        theta = self.score.score(diffusion, both, torch.cat([s, s]))
        target = -torch.cat([apply_matrix(F_inverse.mT, n) for n in (noise, flipped)])
        g2 = diffusion.noise_covariance(s)
        g2_both = torch.cat([g2, g2])
        inner = theta * apply_matrix(g2_both, target - 0.5 * theta)
        # control variate: the stationary score, whose own expectation is known
        at_rest = apply_matrix(-torch.linalg.inv(diffusion.stationary_covariance), both)
        inner = inner - at_rest * apply_matrix(g2_both, target - 0.5 * at_rest)
        integrand = inner.flatten(1).sum(1).reshape(2, -1).mean(0)
        integrand = integrand + _stationary_expectation(diffusion, g2, apply_matrix(M, y0), F)
        to_end = diffusion.transition(diffusion.horizon, start)
        end = apply_matrix(to_end.matrix, y0)
        prior = _expected_prior_log_prob(diffusion, end, to_end.covariance)
        divergence = (
            d
            * torch.einsum("ii", diffusion.unit_drift)
            * (diffusion.clock(diffusion.horizon) - diffusion.clock(start))
        )
        bound = prior + weight.to(y0.dtype) * integrand + divergence.to(y0.dtype)
        return bound.reshape(lead)

    def _score_at(self, y: Tensor, s: Tensor) -> Tensor:
        return self.score.score(self.diffusion, y, s)


class GenerativeChain(_GenerativeLaw):
    """The generative law on a grid ε = s_1 < … < s_N = T: a Markov chain with an exact density.

    y_T ~ N(0, Σ_π), and each step is the exact Gaussian posterior q(y_{s_i} | y_{s_{i+1}}, x̂) of
    the noising process with the denoised estimate in place of x.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: a :class:`~pyro_mdm.scores.Score`.
        event_shape: shape of a datum.
        times: (N,) from ε to T.
    """

    def __init__(
        self,
        diffusion: LinearDiffusion,
        score: Score,
        event_shape: Sequence[int],
        times: Tensor,
        *,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.score = score
        self.times = _grid(diffusion, times, whole=True)
        super().__init__(
            diffusion, torch.Size(batch_shape), torch.Size(event_shape), len(times), validate_args
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        lead = (*sample_shape, *self.batch_shape)
        shape = (math.prod(lead), *self.event_shape[1:])
        device = self.times.device
        score = BoundScore(self.diffusion, self.score)
        with torch.no_grad():
            steps = posterior(self.diffusion, self.times[1:], self.times[:-1])
            root = torch.linalg.cholesky(self.diffusion.prior_covariance)
            y = _apply(root, torch.randn(shape, dtype=torch.float64, device=device), self.x_dim)
            states = [y]
            for i in range(len(self.times) - 2, -1, -1):
                x_hat = score.denoise(y, self.times[i + 1].expand(len(y)))
                mean = _apply(steps.gain[i], y, self.x_dim)
                mean = mean + _outer(steps.mean_coefficient[i], x_hat, self.x_dim)
                y = mean + _apply(steps.scale_tril[i], torch.randn_like(y), self.x_dim)
                states.append(y)
        path = torch.stack(states[::-1], 1).to(score.dtype)
        return path.reshape(*lead, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p_θ(path), exact, (*batch), nats. One network call for all steps together."""
        if self._validate_args:
            self._validate_sample(value)
        steps = posterior(self.diffusion, self.times[1:], self.times[:-1])
        self._check_resolution(steps.resolution, value.dtype)
        states = self._states(value)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        later = torch.stack(states[1:])  # (N-1, *lead, K, *event)
        s = self.times[1:].reshape(-1, *(1,) * len(lead)).expand(-1, *lead)
        x_hat = self.score.denoise(
            self.diffusion, later.reshape(-1, *self.event_shape[1:]), s.reshape(-1)
        ).reshape(len(s), *lead, *self.x_shape)
        # K×K algebra and residuals in float64: they are small differences of the states
        total = _gaussian_log_prob(
            states[-1].double(),
            torch.linalg.cholesky(self.diffusion.prior_covariance),
            torch.logdet(self.diffusion.prior_covariance),
            self.x_dim,
        )
        for i in range(len(states) - 1):
            mean = _apply(steps.gain[i], states[i + 1].double(), self.x_dim)
            mean = mean + _outer(steps.mean_coefficient[i], x_hat[i].double(), self.x_dim)
            white = _apply(steps.whitener[i], states[i].double() - mean, self.x_dim)
            total = total + _white_log_prob(white, steps.log_det[i], self.x_dim)
        return total.to(value.dtype)

    def _check_resolution(self, resolution: Tensor, dtype: torch.dtype) -> None:
        """Refuse a density at states whose own rounding decides it."""
        ratio = torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
        worst = ratio * resolution.detach().max().item()
        if not worst <= 0.1:
            raise KernelPrecisionError(
                f"rounding states to {dtype} moves them by {worst:.1e} standard deviations of a "
                f"step of this {len(self.times)}-time grid, expected at most 0.1; use float64 "
                "states, fewer times, or a diffusion whose noise does not reach x so late"
            )


class BoundScore:
    """A score and its diffusion as the callable ``score(y, s)``, with ``denoise(y, s)``.

    States may be of any precision (samplers hold them in float64): the network sees its own, and
    the result is cast back.
    """

    def __init__(self, diffusion: Diffusion, score: Score) -> None:
        self.diffusion: Any = diffusion
        self.parameterization = score
        dtypes = [p.dtype for p in score.parameters() if p.is_floating_point()]
        self.dtype = dtypes[0] if dtypes else torch.get_default_dtype()

    def __call__(self, y: Tensor, s: Tensor) -> Tensor:
        """s_θ(y, s), like y."""
        return self.parameterization.score(self.diffusion, y.to(self.dtype), s).to(y.dtype)

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        """x̂, (*batch, *event_shape), in y's dtype."""
        return self.parameterization.denoise(self.diffusion, y.to(self.dtype), s).to(y.dtype)


# -- divergences -----------------------------------------------------------------------------------


def prior_kl(diffusion: LinearDiffusion, x: Tensor, event_dim: int) -> Tensor:
    """KL(q(y_T | x) ‖ N(0, Σ_π)), closed form, shape of x less its last ``event_dim``, nats."""
    end, prior = diffusion.terminal, diffusion.prior_covariance
    K = diffusion.num_variables
    d = math.prod(x.shape[x.dim() - event_dim :])
    trace = torch.linalg.solve(prior, end.covariance).diagonal().sum()
    constant = 0.5 * d * (trace - K + torch.logdet(prior) - end.log_det)
    quadratic = 0.5 * (end.mean @ torch.linalg.solve(prior, end.mean))
    square = x.square().sum(tuple(range(-event_dim, 0))) if event_dim else x.square()
    return constant.to(x.dtype) + quadratic.to(x.dtype) * square


def _expected_prior_log_prob(diffusion: LinearDiffusion, mean: Tensor, P: Tensor) -> Tensor:
    """E log N(y; 0, Σ_π) for y ~ N(mean, P) per dimension; mean (n, K, *event), result (n,)."""
    prior = diffusion.prior_covariance
    K, d = diffusion.num_variables, mean[0, 0].numel()
    trace = torch.linalg.solve(prior, P).diagonal().sum()
    constant = -0.5 * d * (trace + torch.logdet(prior) + K * math.log(2 * math.pi))
    quadratic = mean * apply_matrix(torch.linalg.inv(prior), mean)
    return constant.to(mean.dtype) - 0.5 * quadratic.flatten(1).sum(1)


def _stationary_expectation(
    diffusion: LinearDiffusion, g2: Tensor, mean: Tensor, F: Tensor
) -> Tensor:
    """E[ s · g² (∇ log q - ½ s) ] for s = -Σ_∞^{-1} y and y ~ q = N(mean, F Fᵀ); result (n,).

    By parts, E[s · g² ∇ log q] = -∇·(g² s) = tr(g² Σ_∞^{-1}) per dimension.
    """
    inverse = torch.linalg.inv(diffusion.stationary_covariance)
    W = inverse @ g2 @ inverse
    d = mean[0, 0].numel()
    traces = (g2 @ inverse - 0.5 * W @ F @ F.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (d * traces).to(mean.dtype) - 0.5 * (mean * apply_matrix(W, mean)).flatten(1).sum(1)


def path_kl(noising: NoisingPath, generative: GenerativePath) -> PathKL:
    r"""The divergence of the continuous-time path laws, one network call.

    The diffusion term is :meth:`~pyro_mdm.scores.Score.diffusion_term`: over λ = log SNR for a
    denoiser, over log volume for a score of the raw state.

    Returns:
        :class:`PathKL`, (*batch), nats.

    Raises:
        ValueError: the laws are of different diffusions (then they are mutually singular).
    """
    diffusion = _shared_diffusion(noising, generative)
    event_dim = noising.x_dim
    x = noising.x.reshape(-1, *noising.x_shape)
    values, log_snr = generative.score.diffusion_term(diffusion, x)
    shape = noising.batch_shape
    return PathKL(
        prior_kl(diffusion, noising.x, event_dim), values.reshape(shape), log_snr.reshape(shape)
    )


def chain_kl(noising: NoisingPath, generative: GenerativeChain) -> PathKL:
    """The divergence of the chains on one grid: prior KL + Σ ½ (SNR_i - SNR_{i+1}) E‖x - x̂‖².

    One noise draw per time; the sum over the grid is complete. ``log_snr`` is λ(T).
    """
    diffusion = _shared_diffusion(noising, generative)
    if noising.times is None or not torch.equal(noising.times, generative.times):
        raise ValueError(
            f"the guide's path is seen at {_times_text(noising.times)}, the model's at "
            f"{_times_text(generative.times)}; expected one grid, give both the same times"
        )
    x = noising.x.reshape(-1, *noising.x_shape)
    marginal = diffusion.marginal(generative.times[1:])
    n, N = len(x), len(generative.times) - 1
    snr = diffusion.log_snr(generative.times).exp()
    shape = (n, *noising.event_shape[1:])
    terms = []
    for i in range(N):
        noise = draws.normal(shape, x.dtype, x.device)
        y = _outer(marginal.mean[i], x, noising.x_dim)
        y = y + _apply(marginal.scale_tril[i], noise, noising.x_dim)
        s = generative.times[i + 1].expand(n)
        error = (x - generative.score.denoise(diffusion, y, s)).square().flatten(1).sum(1)
        terms.append(0.5 * (snr[i] - snr[i + 1]).to(x.dtype) * error)
    return PathKL(
        prior_kl(diffusion, noising.x, noising.x_dim),
        torch.stack(terms).sum(0).reshape(noising.batch_shape),
        diffusion.terminal_log_snr.detach().expand(noising.batch_shape),
    )


@register_kl(NoisingPath, GenerativePath)
def _kl_path(noising: NoisingPath, generative: GenerativePath) -> Tensor:
    kl = path_kl(noising, generative)
    return kl.prior + kl.diffusion


@register_kl(NoisingPath, GenerativeChain)
def _kl_chain(noising: NoisingPath, generative: GenerativeChain) -> Tensor:
    kl = chain_kl(noising, generative)
    return kl.prior + kl.diffusion


def different_diffusions(guide: Any, model: Any) -> str:
    """What is wrong with two programs over these two diffusions, and what tells the two apart."""
    one, other = _described(guide), _described(model)
    if one == other:
        for name in ("Q", "D", "stationary_covariance", "initial_covariance", "horizon", "beta"):
            ours, theirs = (_in_short(getattr(d, name, None)) for d in (guide, model))
            if ours != theirs:
                one, other = f"{one} with {name} {ours}", f"{other} with {name} {theirs}"
                break
    if one == other:
        what = f"the guide and the model each have a {one} of their own, expected one that both use"
    else:
        what = f"the guide runs {one} and the model reverses {other}; their path laws are mutually "
        what += "singular"
    return f"{what}. Build both over one diffusion object: DiffusionGuide(model.diffusion)"


def _described(diffusion: Any) -> str:
    extra = diffusion.extra_repr() if isinstance(diffusion, torch.nn.Module) else ""
    return f"{type(diffusion).__name__}({extra})"


def _in_short(value: Any) -> str:
    if isinstance(value, Tensor):
        return str([[round(float(e), 4) for e in row] for row in value.reshape(-1, len(value))])
    return str(value)


def _shared_diffusion(noising: Any, generative: _GenerativeLaw) -> Any:
    if noising.diffusion is not generative.diffusion:
        raise ValueError(different_diffusions(noising.diffusion, generative.diffusion))
    if noising.x_shape != generative.x_shape:
        raise ValueError(
            f"the guide's data have shape {tuple(noising.x_shape)}, the model expects "
            f"{tuple(generative.x_shape)}"
        )
    if isinstance(generative, GenerativePath) and noising.times is not None:
        raise ValueError(
            f"the guide's path is seen at {_times_text(noising.times)}, the model's at ε alone; "
            "give both the same times, or none"
        )
    return noising.diffusion


def _grid(diffusion: Diffusion, times: Tensor, whole: bool = False) -> Tensor:
    """Times checked at the door: (N,), increasing, and from ε to T if ``whole``."""
    s = torch.as_tensor(times, dtype=torch.float64)
    if s.dim() != 1 or not len(s) or not bool((s.diff() > 0).all()):
        raise ValueError(f"times are {_times_text(s)}, expected an increasing vector (N,)")
    if whole:
        start, end = diffusion.start_time.detach(), diffusion.horizon
        first, last = s[0].detach(), s[-1].detach()
        if len(s) < 2 or (first - start).abs() > 1e-9 * start or abs(last - end) > 1e-9 * end:
            raise ValueError(
                f"times run from {first:.6g} to {last:.6g}, expected a grid from the start time "
                f"{start:.6g} (max_log_snr) to T = {end:g}; see LinearDiffusion.log_snr_grid"
            )
    return s


def _times_text(times: Tensor | None) -> str:
    if times is None:
        return "ε alone"
    return f"{times.numel()} times" if times.numel() > 4 else str(times.tolist())
