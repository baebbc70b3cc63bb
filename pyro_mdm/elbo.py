r"""The evidence lower bound of a diffusion program, as a Pyro objective.

    log p(x) ≥ E log p(x | y_ε)  -  KL(q(y_T|x) ‖ π)  -  ½ ∫ E ‖s_θ - ∇ log q(y_s|x)‖²_{g²} ds
               reconstruction        prior KL              diffusion

Source: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1; the integral over log SNR after
Kingma et al., "Variational Diffusion Models", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.util import check_fully_reparametrized, torch_item
from pyro.poutine.util import prune_subsample_sites
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mdm.diffusions import shared_ends
from pyro_mdm.laws import (
    GenerativeChain,
    GenerativePath,
    NoisingPath,
    PathKL,
    chain_kl,
    path_kl,
)
from pyro_mdm.simulated import SimulatedPath, arrival, simulated_kl

__all__ = ["ELBOTerms", "MDM_ELBO", "elbo_terms"]


@dataclass(frozen=True)
class ELBOTerms:
    """One estimate of the bound per datum, by term; each field (batch,), nats."""

    reconstruction: Tensor  # E log p(x | y_ε)
    prior_kl: Tensor  # KL(q(y_T|x) ‖ π)
    diffusion: Tensor  # ½ ∫ E ‖s_θ - ∇ log q‖²_{g²} ds
    log_snr: Tensor  # the λ at which the integral was estimated

    @property
    def elbo(self) -> Tensor:
        """reconstruction - prior_kl - diffusion, (batch,), nats."""
        return self.reconstruction - self.prior_kl - self.diffusion


class MDM_ELBO(ELBO):
    """The bound with one network call per step and low-discrepancy log SNRs.

    Use it where Pyro takes an ELBO, ``SVI(model, guide, optim, loss=MDM_ELBO())``, or as a module
    for torch optimizers, ``loss = MDM_ELBO()(model, guide); loss(x).backward()``.

    The loss is the negative bound of the batch in nats, with the scales of plates applied. Like
    ``TraceMeanField_ELBO`` it uses the registered path divergence, but it never evaluates the
    ``log_prob`` of a path. Other latent variables of a program contribute their own KL, or
    ``log p - log q`` where none is registered; they must be reparameterized.

    Args:
        decoder: False for the paper's training loss, without the decoder's term: instead of
            E log p(x | y_ε) the bound then has -H[q(y_ε | x)] + H[q(v_0)], as if y_ε itself were
            the data (theory: log p(y_ε) less log q(v_0)). No observed site counts then. Linear
            diffusions only.
        args, kwargs: as of :class:`pyro.infer.ELBO`.

    Raises:
        ValueError: ``decoder=False`` for a diffusion that is simulated.
    """

    def __init__(self, *args: Any, decoder: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decoder = decoder

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss as a scalar tensor that carries gradients."""
        with shared_ends():
            particles = [
                self._particle_loss(*traces)
                for traces in self._get_traces(model, guide, args, kwargs)
            ]
        loss = torch.stack(particles).sum() / self.num_particles
        warn_if_nan(loss, "loss")
        return loss

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """The loss as a number."""
        with torch.no_grad():
            return float(torch_item(self.differentiable_loss(model, guide, *args, **kwargs)))

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """The loss as a number, after adding its gradients to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(torch_item(loss))

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)

    def _particle_loss(self, model_trace: Any, guide_trace: Any) -> Tensor:
        total: Tensor | float = 0.0
        for sign, value, site in _contributions(model_trace, guide_trace, self.decoder):
            if isinstance(value, tuple):
                value = value[0] + value[1]
                if not self.decoder:
                    value = value + _start_entropy(guide_trace.nodes[site["name"]]["fn"])
            total = total - sign * scale_and_mask(value, site["scale"], site["mask"]).sum()
        return torch.as_tensor(total)


def _contributions(
    model_trace: Any, guide_trace: Any, decoder: bool = True
) -> Iterator[tuple[float, Any, Any]]:
    """(sign, value, site) of every site: log-likelihoods count +1, divergences -1."""
    for name, site in _samples(model_trace):
        if site["is_observed"] and not decoder:
            continue
        if site["is_observed"]:
            yield 1.0, site["fn"].log_prob(site["value"]), site
        elif name not in guide_trace.nodes:
            raise ValueError(
                f"site {name!r} is latent in the model and absent from the guide; observe it "
                "(pass x) or sample it in the guide"
            )
        else:
            yield -1.0, _divergence(guide_trace.nodes[name], site), site
    for name, _ in _samples(guide_trace):
        if name not in model_trace.nodes:
            raise ValueError(f"site {name!r} is in the guide and absent from the model")


def _start_entropy(noising: Any) -> Tensor:
    """H[q(y_ε | x)] - H[q(v_0)], 0-dim, nats, differentiable in the diffusion."""
    if not isinstance(noising, NoisingPath):
        raise ValueError(
            f"decoder=False needs the entropy of y_ε given x, and {type(noising).__name__} has "
            "none in closed form; leave decoder out"
        )
    Sigma_v = noising.diffusion.initial_covariance[1:, 1:]
    log_det = noising.diffusion.start.log_det
    if len(Sigma_v):
        log_det = log_det - torch.logdet(Sigma_v)
    each = 0.5 * (log_det + math.log(2 * math.pi) + 1)
    return (noising.num_dims * each).to(noising.x.dtype)


def _samples(trace: Any) -> Iterator[tuple[str, Any]]:
    return ((n, site) for n, site in trace.nodes.items() if site["type"] == "sample")


def _divergence(guide_site: Any, model_site: Any) -> Any:
    q, p = guide_site["fn"], model_site["fn"]
    if isinstance(q, NoisingPath) and isinstance(p, GenerativePath):
        return path_kl(q, p)
    if isinstance(q, SimulatedPath) and isinstance(p, GenerativePath):
        return simulated_kl(q, p, guide_site["value"])
    if isinstance(q, NoisingPath) and isinstance(p, GenerativeChain):
        return chain_kl(q, p)
    check_fully_reparametrized(guide_site)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        value = guide_site["value"]
        return q.log_prob(value) - p.log_prob(value)


def elbo_terms(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
) -> ELBOTerms:
    """One estimate of the bound of each datum, by term: ``elbo_terms(model, guide, x)``.

    Of a simulated path ``prior_kl`` is :func:`~pyro_mdm.simulated.arrival`, from a path of its own
    to T, and ``diffusion`` all else of the divergence; where paths arrive at the prior they mean
    what they mean for a linear diffusion.

    Returns:
        :class:`ELBOTerms`, each (batch,), nats, without the scale of a plate.

    Raises:
        ValueError: the programs have no noising and generative path in common, or no observation.
    """
    model_trace, guide_trace = MDM_ELBO()._get_trace(model, guide, args, kwargs)
    path, reconstruction = None, []
    for _, value, site in _contributions(model_trace, guide_trace):
        if isinstance(value, tuple):
            path = PathKL(*value)
            noising = guide_trace.nodes[site["name"]]
            if isinstance(noising["fn"], SimulatedPath):
                prior = arrival(noising["fn"], noising["value"])
                path = PathKL(prior, path.prior + path.diffusion - prior, path.log_snr)
        elif site["is_observed"]:
            reconstruction.append(value)
        else:
            raise ValueError(
                f"elbo_terms has no term for the latent site {site['name']!r}; use MDM_ELBO"
            )
    if path is None or not reconstruction:
        raise ValueError(
            f"the model's sites are {list(model_trace.nodes)}, expected a latent path over a "
            "diffusion and an observed x; use DiffusionModel and DiffusionGuide, and pass x"
        )
    return ELBOTerms(sum(reconstruction[1:], reconstruction[0]), *path)
