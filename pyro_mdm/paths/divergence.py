"""Divergences between two distributions of paths, registered as KL divergences."""

from __future__ import annotations

import math
import warnings
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.distributions import register_kl

from pyro_mdm import randomness
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import apply_matrix, of_counted, outer
from pyro_mdm.diffusions.memory import kept
from pyro_mdm.paths.base import NoisingLaw, PathKL, PathLaw, times_text
from pyro_mdm.paths.generative import GenerativeLaw
from pyro_mdm.paths.noising import NoisingPath
from pyro_mdm.support.checks import check_count, check_instance, check_shape
from pyro_mdm.support.doors import checked_arguments

__all__ = [
    "chain_kl",
    "different_diffusions",
    "path_divergence",
    "path_kl",
    "prior_kl",
    "shared_diffusion",
    "warn_of_prior",
]

FAR = 0.05
"""The prior KL from which a prior does not cover the data, in nats per dimension: for VE that of a
σ_max of about three times their root mean square."""


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


@path_divergence.register(NoisingPath)
def _closed_form(noising: NoisingPath, generative: GenerativeLaw, _: object = None) -> PathKL:
    check_instance("generative", generative, GenerativeLaw, "e.g. a GenerativePath")
    return (path_kl if generative.times is None else chain_kl)(noising, generative)


@register_kl(NoisingLaw, GenerativeLaw)
def _kl(noising: NoisingLaw, generative: GenerativeLaw) -> Tensor:
    kl = path_divergence(noising, generative)
    return kl.prior + kl.diffusion


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
    check_shape("x", x, ())
    check_count("event_dim", event_dim, "the number of dimensions of a datum", least=0)
    check_instance("diffusion", diffusion, Kernels, "CLD(), or another with kernels")
    if diffusion.terminal.log_det.dim() or counted is not None:
        return _prior_kl_by_dimension(diffusion, x, event_dim, counted)
    moved = diffusion.displacement(x, diffusion.horizon, event_dim)
    d = math.prod(x.shape[x.dim() - event_dim :])

    def constants() -> tuple[Tensor, Tensor]:
        """The constant of all data, and the factor of ‖x‖² where nothing is displaced."""
        # solve_ex and inv_ex here: Σ_π is positive definite, and a check would wait for the device
        end, prior = diffusion.terminal, diffusion.prior_covariance
        trace = torch.linalg.solve_ex(prior, end.covariance).result.diagonal().sum()
        volume = torch.logdet(prior) - end.log_det
        quadratic = 0.5 * (end.mean @ torch.linalg.solve_ex(prior, end.mean).result)
        of_all = 0.5 * d * (trace - diffusion.num_variables + volume)
        return of_all.to(x.dtype), quadratic.to(x.dtype)

    name = f"prior KL of {d} dimensions in {x.dtype}"
    constant, quadratic = kept(diffusion, name, constants)
    if moved is not None:
        mean = outer(diffusion.terminal.mean, x, event_dim) + moved
        precision = torch.linalg.inv_ex(diffusion.prior_covariance).inverse
        pull = apply_matrix(precision, mean, event_dim)
        half: Tensor = (mean * pull).sum(tuple(range(-event_dim - 1, 0))) * 0.5
        whole: Tensor = constant + half
        return whole
    square = x.square().sum(tuple(range(-event_dim, 0))) if event_dim else x.square()
    return torch.addcmul(constant, quadratic, square)


def _prior_kl_by_dimension(
    diffusion: Kernels, x: Tensor, event_dim: int, counted: Tensor | None
) -> Tensor:
    end, prior = diffusion.terminal, diffusion.prior_covariance
    trace = torch.linalg.solve_ex(prior, end.covariance).result.diagonal(dim1=-2, dim2=-1).sum(-1)
    constant = 0.5 * (trace - diffusion.num_variables + torch.logdet(prior) - end.log_det)
    column = end.mean.unsqueeze(-1)
    quadratic = 0.5 * (column.mT @ torch.linalg.solve_ex(prior, column).result)[..., 0, 0]
    kl = constant.to(x.dtype) + quadratic.to(x.dtype) * x.square()
    return of_counted(kl, counted).sum(tuple(range(-event_dim, 0)))


@torch.no_grad()
def warn_of_prior(diffusion: object, x: Tensor) -> None:
    """Warn where the prior of a diffusion without a stationary distribution does not cover data.

    A stationary prior is reached whatever the data are, and a clock that is too short is no
    mistake.

    Args:
        diffusion: the noising diffusion.
        x: data (n, *event_shape), in model space; NaN where an entry is missing.
    """
    if not isinstance(diffusion, Kernels) or diffusion.at_rest():
        return
    x = diffusion.coordinates(x.detach().double().nan_to_num(0.0)).to(diffusion.start_time.device)
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


@checked_arguments
def path_kl(noising: NoisingPath, generative: GenerativeLaw) -> PathKL:
    r"""The divergence of paths in continuous time. One network call.

    The diffusion term is :meth:`~pyro_mdm.scores.Score.diffusion_term`: over λ = log SNR for a
    denoiser, over log volume for a score of the raw state.

    Args:
        noising: distribution of the noising path.
        generative: distribution of the generative path, seen at ε.

    Returns:
        :class:`PathKL`, (*batch), nats.

    Raises:
        ValueError: paths of different diffusions, whose distributions are mutually singular.
    """
    diffusion = shared_diffusion(noising, generative)
    event_dim = noising.x_dim
    shape, x = noising.batch_shape, noising.x
    prior = prior_kl(diffusion, x, event_dim, generative.score.counts(x))
    if len(shape) == 1:
        return PathKL(prior, *generative.score.diffusion_term(diffusion, x))
    terms = generative.score.diffusion_term(diffusion, x.reshape(-1, *noising.x_shape))
    return PathKL(prior, *(term.reshape(shape) for term in terms))


def chain_kl(noising: NoisingPath, generative: GenerativeLaw) -> PathKL:
    """The divergence of two chains on one grid, prior KL + ``Σ ½ (SNR_i - SNR_{i+1}) E‖x - x̂‖²``.

    Noise is drawn once for each time; the sum over the grid is complete. ``log_snr`` is λ(T).

    Args:
        noising: distribution of the noising chain.
        generative: distribution of the generative chain.

    Raises:
        ValueError: chains of different diffusions or grids.
    """
    diffusion = shared_diffusion(noising, generative)
    if noising.times is None or not torch.equal(noising.times, generative.times):
        raise ValueError(
            f"the guide's path is seen at {times_text(noising.times)}, the model's at "
            f"{times_text(generative.times)}; expected one grid, give both the same times"
        )
    x = noising.x.reshape(-1, *noising.x_shape)
    marginal = diffusion.marginal(generative.times[1:])
    n, N = len(x), len(generative.times) - 1
    snr = diffusion.log_snr_map_at(generative.times).exp()
    shape = (n, *noising.event_shape[1:])
    terms = []
    score, counted = generative.score.given(x), generative.score.counts(x)
    for i in range(N):
        noise, law = randomness.normal(shape, x.dtype, x.device), marginal.at(i)
        y = outer(law.mean, x, noising.x_dim)
        y = y + apply_matrix(law.scale_tril, noise, noising.x_dim)
        s = generative.times[i + 1].expand(n)
        error = of_counted((x - score.denoise(diffusion, y, s)).square(), counted)
        weight = (snr[i] - snr[i + 1]).to(x.dtype)
        if weight.dim():  # by data dimension
            terms.append(0.5 * (weight * error).flatten(1).sum(1))
        else:
            terms.append(0.5 * weight * error.flatten(1).sum(1))
    return PathKL(
        prior_kl(diffusion, noising.x, noising.x_dim, generative.score.counts(noising.x)),
        torch.stack(terms).sum(0).reshape(noising.batch_shape),
        diffusion.terminal_log_snr.detach().expand(noising.batch_shape),
    )


@checked_arguments
def different_diffusions(guide: object, model: object) -> str:
    """A message on programs over two diffusions, with the settings that differ."""
    one, other = _described(guide), _described(model)
    if one == other:
        for name in ("Q", "D", "prior_covariance", "initial_covariance", "horizon", "beta"):
            ours, theirs = (_in_short(_held(d, name)) for d in (guide, model))
            if ours != theirs:
                one, other = f"{one} with {name} {ours}", f"{other} with {name} {theirs}"
                break
    if one == other:
        what = f"the guide and the model each have a {one} of their own, expected one that both use"
    else:
        what = f"the guide runs {one} and the model reverses {other}; their path distributions are "
        what += "mutually singular"
    return f"{what}. Build both over one diffusion object: DiffusionGuide(model.diffusion)"


def _described(diffusion: object) -> str:
    extra = diffusion.extra_repr() if isinstance(diffusion, torch.nn.Module) else ""
    return f"{type(diffusion).__name__}({extra})"


def _held(diffusion: object, name: str) -> object:
    try:
        return getattr(diffusion, name, None)
    except TypeError:  # it varies in time, or there is none
        return None


def _in_short(value: object) -> str:
    if isinstance(value, Tensor):
        return str([[round(float(e), 4) for e in row] for row in value.reshape(-1, len(value))])
    return str(value)


def shared_diffusion(noising: PathLaw, generative: GenerativeLaw) -> Any:
    """The diffusion that two distributions of a path share.

    Raises:
        ValueError: two diffusions, or paths of different shapes or times.
    """
    one, other = noising.diffusion, generative.diffusion
    if one is not other and one.origin is not other.origin:
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
