r"""The evidence lower bound of a diffusion program, as a Pyro objective.

    log p(x) ≥ E log p(x | y_ε)  -  KL(q(y_T|x) ‖ π)  -  ½ ∫ E ‖s_θ - ∇ log q(y_s|x)‖²_{g²} ds
               reconstruction        prior KL              diffusion

Source: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1; the integral over log SNR after
Kingma et al., "Variational Diffusion Models", 2021.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.util import MultiFrameTensor, is_validation_enabled, torch_item
from pyro.poutine import Trace
from pyro.util import check_site_shape
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mdm import randomness
from pyro_mdm.compiled import WholeLoss
from pyro_mdm.diffusions.base import Cap, require
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import of_counted
from pyro_mdm.diffusions.memory import shared_ends
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.paths.base import NoisingLaw, PathKL
from pyro_mdm.paths.divergence import path_divergence
from pyro_mdm.paths.generative import GenerativeLaw
from pyro_mdm.program import one_thread
from pyro_mdm.sites import (
    Program,
    Site,
    check_alike,
    check_no_decoder,
    drawn_later,
    run_programs,
    samples,
    unlike,
    warn_of_order,
)
from pyro_mdm.support.checks import tensor_device
from pyro_mdm.support.doors import checked_arguments
from pyro_mdm.support.late_checks import check_values, checked_together, settle
from pyro_mdm.support.measured import ALL_TERMS, TERMS, Measured, table

__all__ = ["ELBOTerms", "MDM_ELBO", "elbo_terms"]


@dataclass(frozen=True, repr=False)
class ELBOTerms:
    """One estimate of the bound per datum, by term; each field (batch,), nats.

    Its text has the means over the batch with their standard errors.

    Example:
        >>> x = torch.zeros(2)
        >>> terms = ELBOTerms(x - 1.0, x + 0.1, x + 0.4, log_snr=x)
        >>> {name: value.mean().item() for name, value in terms.items()}["elbo"]
        -1.5
    """

    reconstruction: Tensor  # E log p(x | y_ε)
    prior_kl: Tensor  # KL(q(y_T|x) ‖ π)
    diffusion: Tensor  # ½ ∫ E ‖s_θ - ∇ log q‖²_{g²} ds
    log_snr: Tensor  # the λ at which the integral was estimated
    context: Tensor = field(default_factory=lambda: torch.zeros(()))
    """KL(q(c|x) ‖ p(c)); 0 where there is no latent context."""

    @property
    def elbo(self) -> Tensor:
        """reconstruction - prior_kl - diffusion - context, (batch,), nats."""
        return self.reconstruction - self.prior_kl - self.diffusion - self.context

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """The terms and their total ``elbo`` by name, each (batch,), nats.

        The term ``context`` is left out where it is 0 for all data.
        """
        names = [*TERMS, "elbo"] if bool((self.context == 0).all()) else [*ALL_TERMS, "elbo"]
        return ((name, getattr(self, name)) for name in names)

    def __repr__(self) -> str:
        return table(
            f"one estimate for {self.elbo.numel()} data, mean ± standard error",
            ("", "nats per datum"),
            [(name, str(Measured.from_values(value.flatten()))) for name, value in self.items()],
        )


class MDM_ELBO(ELBO):
    """The evidence lower bound, with one network call per step and low-discrepancy log SNRs.

    Use it where Pyro takes an ELBO, ``SVI(model, guide, optim, loss=MDM_ELBO())``, or as a module
    for torch optimizers, ``loss = MDM_ELBO()(model, guide); loss(x).backward()``.

    The loss is the negative bound of the batch in nats, with the scales of plates and the masks
    applied. A path contributes its registered divergence, and its ``log_prob`` is never evaluated.
    Any other latent site contributes

    - its KL divergence, if one is registered, model and guide scale and mask it alike, and no
      earlier site of the model comes later in the guide (otherwise the model's distribution may
      depend on a later draw of the guide, and the closed form would be wrong);
    - else log p - log q at its draw.

    Sites that are not reparameterized have score-function gradients, with the costs of other
    elements of a shared plate left out, as in :class:`~pyro.infer.Trace_ELBO`. With one particle, a
    discrete context of a :class:`DiffusionGuide` is drawn twice, with the same noise along the
    path. The loss is the average of both bounds, and each is the baseline of the other's gradient
    (leave-one-out, Kool et al. 2019), so that only the effect of the context remains. Sites of the
    guide that are marked ``is_auxiliary`` contribute -log q. Nothing is enumerated.

    Args:
        decoder: whether the bound has the decoder's term. False is the paper's training loss: in
            place of E log p(x | y_ε) the bound has -H[q(y_ε | x)] + H[q(v_0)], as if y_ε itself
            were the data. Observed sites, one for each path, then do not count. Linear diffusions
            only.
        args: positional arguments of :class:`pyro.infer.ELBO`, such as ``num_particles``.
        kwargs: keyword arguments of :class:`pyro.infer.ELBO`.

    Raises:
        ValueError: ``decoder=False`` for a diffusion that is simulated or for a program with other
            observed sites; a site that only one of the programs has or that asks for enumeration; a
            path that the programs scale or mask differently.

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(8, 2)
        >>> model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), x))
        >>> loss = MDM_ELBO()(model, DiffusionGuide(model.diffusion))(x)  # of all 8 data, nats
        >>> loss.backward()
        >>> loss.shape
        torch.Size([])
    """

    _whole: WholeLoss | None = None

    @checked_arguments
    def __init__(self, *args: Any, decoder: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decoder = decoder

    def compile(self, backend: str = "inductor", **options: object) -> MDM_ELBO:
        """Compile the loss whole, in place; returns the objective.

        Losses are the same up to rounding, with the same draws. It is for
        :class:`~pyro_mdm.DiffusionModel` and :class:`~pyro_mdm.DiffusionGuide` of a fixed linear
        diffusion of one block, with a :class:`~pyro_mdm.Denoiser` and the Gaussian decoder, or
        with a score of the raw state. Other programs, and SVI, are evaluated as before.

        Args:
            backend: backend of ``torch.compile``.
            options: further arguments of ``torch.compile``, such as ``mode``.
        """
        self._whole = WholeLoss(backend, options)
        return self

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, (), nats, differentiable in the parameters of both programs."""
        with shared_ends(), checked_together():
            loss = self._compiled(model, guide, args, kwargs)
            if loss is None:
                with one_thread():
                    loss = self._evaluated(model, guide, args, kwargs)
            with torch.no_grad():
                check_values(loss == loss, _warn_of_nan)
        return loss

    def _compiled(
        self, model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """The loss compiled whole; None where it is not."""
        if self._whole is None or self.num_particles > 1:
            return None
        return self._whole(model, guide, args, kwargs, None if self.decoder else start_entropy)

    def _evaluated(
        self, model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """The loss by Pyro's handlers."""
        one = self.num_particles == 1
        twice = one and torch.is_grad_enabled()
        if isinstance(guide, DiffusionGuide) and guide.is_paired and twice:
            return torch.stack(self._pair(model, guide, args, kwargs)).mean()
        particles = [
            self._loss(trace, list(_terms(model_trace, trace, self.decoder)), [])
            for model_trace, trace in self._get_traces(model, guide, args, kwargs)
        ]
        if one:
            return particles[0]
        # of one trace too, where they are vectorized
        return torch.stack(particles).sum() / self.num_particles

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, nats."""
        with torch.no_grad():
            loss = float(torch_item(self.differentiable_loss(model, guide, *args, **kwargs)))
        settle()
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, nats, after a backward pass to the parameters.

        Raises:
            ValueError: gradients are off, so that a step would train nothing.
        """
        if not torch.is_grad_enabled():
            raise ValueError(
                "gradients are off, expected a step where they are kept; take SVI.step out of "
                "torch.inference_mode or no_grad, or call SVI.evaluate_loss there"
            )
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        try:
            settle()
        except BaseException:
            for program in (model, guide):  # whose gradients come from wrong values
                if isinstance(program, nn.Module):
                    program.zero_grad()
            raise
        return float(torch_item(loss))

    def _get_trace(
        self, model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Trace, Trace]:
        return run_programs(model, guide, args, kwargs, self.max_plate_nesting)

    def _pair(
        self, model: Program, guide: DiffusionGuide, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[Tensor]:
        """Two particles of the same noise along their paths, each the other's baseline."""
        same = randomness.repeatable(tensor_device(guide) or torch.device("cpu"))
        traces = []
        for _ in range(2):
            with same():
                model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
                terms = list(_terms(model_trace, guide_trace, self.decoder))
            traces.append((guide_trace, terms))
        (one, ours), (other, theirs) = traces
        return [self._loss(one, ours, theirs), self._loss(other, theirs, ours)]

    def _loss(self, guide_trace: Trace, terms: list[_Term], baseline: list[_Term]) -> Tensor:
        """The negative bound from its terms; those of another draw are a baseline for gradients."""
        if is_validation_enabled():
            for term in terms:
                checked: Any = {**term.site, "log_prob": term.value}
                check_site_shape(checked, self.max_plate_nesting)
        sums = [term.value.sum() for term in terms] or [torch.zeros(())]
        bound = sum(sums[1:], sums[0])
        if torch.is_grad_enabled():
            for name, site in samples(guide_trace):
                surrogate = _score_function_gradient(name, site, terms, baseline)
                bound = bound if surrogate is None else bound + surrogate
        return -bound


def _warn_of_nan() -> None:
    warnings.warn("Encountered NaN: loss", stacklevel=4)


class _Term(NamedTuple):
    """A site's part of the bound."""

    site: Site  # the model's, or the guide's if it is auxiliary
    value: Tensor  # of the site's batch shape, nats, scaled and masked
    drawn: bool = False  # log p - log q at a draw: a cost of the draw itself


def _terms(model_trace: Trace, guide_trace: Trace, decoder: bool = True) -> Iterator[_Term]:
    """Every site's part of the bound, in the order of the model."""
    if not decoder:
        check_no_decoder(model_trace, guide_trace)
    for name, site in samples(model_trace):
        if site["is_observed"]:
            if decoder:
                yield _Term(site, _scaled(site["fn"].log_prob(site["value"]), site))
        elif (kl := site_divergence(guide_trace.nodes[name], site)) is not None:
            check_alike(guide_trace.nodes[name], site)
            warn_of_order(name, model_trace, guide_trace)
            value = kl.prior + kl.diffusion
            if not decoder:
                value = value + _start_entropy(guide_trace.nodes[name], site)
            yield _Term(site, -_scaled(value, site))
        else:
            yield _latent(name, model_trace, guide_trace)
    for name, site in samples(guide_trace):
        if name not in model_trace.nodes:
            yield _Term(site, _minus_log_q(site), drawn=True)


def _latent(name: str, model_trace: Trace, guide_trace: Trace) -> _Term:
    """-KL(q ‖ p) of a latent site, in closed form where that is right, else at its draw."""
    p: Site = model_trace.nodes[name]
    q: Site = guide_trace.nodes[name]
    if unlike(q, p) is None and not drawn_later(name, model_trace, guide_trace):
        with suppress(NotImplementedError):
            return _Term(p, -_scaled(kl_divergence(q["fn"], p["fn"]), p))
    log_p = _scaled(p["fn"].log_prob(p["value"]), p)
    return _Term(p, log_p + _minus_log_q(q), drawn=True)


def _minus_log_q(site: Site) -> Tensor:
    """-log q at the draw, scaled and masked, with the reparameterized part of its gradient."""
    terms = _score_parts(site)
    # the value is -log q, the gradient that of Pyro's entropy term, as in Trace_ELBO
    rest = torch.as_tensor(terms.log_prob - terms.entropy_term).detach()
    return -(terms.entropy_term + rest)


def _score_parts(site: Site) -> ScoreParts:
    terms = site["fn"].score_parts(site["value"], *site["args"], **site["kwargs"])
    return terms.scale_and_mask(site["scale"], site["mask"])


def _score_function_gradient(
    name: str, site: Site, terms: list[_Term], baseline: list[_Term]
) -> Tensor | None:
    """A zero whose gradient is the part of a site's draw that is not reparameterized, if it has
    one."""
    if isinstance(site["fn"], NoisingLaw):
        return None
    score_function = _score_parts(site).score_function
    if not getattr(score_function, "requires_grad", False):
        return None
    costs = MultiFrameTensor()
    for term in terms:
        if term.drawn or term.site["name"] != name:
            costs.add((term.site["cond_indep_stack"], term.value.detach()))
    for term in baseline:
        if term.drawn or term.site["name"] != name:
            costs.add((term.site["cond_indep_stack"], -term.value.detach()))
    surrogate = (costs.sum_to(site["cond_indep_stack"]) * score_function).sum()
    return surrogate - surrogate.detach()


def site_divergence(guide_site: Site, model_site: Site) -> PathKL | None:
    """The divergence of the distributions of a path, by part; None for a site of another kind."""
    q, p = guide_site["fn"], model_site["fn"]
    if isinstance(q, NoisingLaw) and isinstance(p, GenerativeLaw):
        return path_divergence(q, p, guide_site["value"])
    return None


def _scaled(value: Tensor, site: Site) -> Tensor:
    return torch.as_tensor(scale_and_mask(value, site["scale"], site["mask"]))


def start_entropy(diffusion: Kernels) -> Tensor:
    """H[q(y_ε | x)] - H[q(v_0)] per data dimension, 0-dim or per dimension where they differ."""
    Sigma_v = diffusion.initial_covariance[..., 1:, 1:]
    log_det = diffusion.start.log_det  # of each data dimension, if they differ
    if Sigma_v.shape[-1]:
        log_det = log_det - torch.logdet(Sigma_v)
    # of K variables less K - 1, one has its ½ log 2πe left
    value: Tensor = 0.5 * (log_det + math.log(2 * math.pi) + 1)
    return value


def _start_entropy(guide_site: Site, model_site: Site) -> Tensor:
    """H[q(y_ε | x)] - H[q(v_0)], 0-dim or (*batch), nats, differentiable in the diffusion."""
    noising, score = guide_site["fn"], model_site["fn"].score
    require(noising.diffusion, Cap.KERNELS, who="decoder=False", fix="leave decoder out")
    entropy = start_entropy(noising.diffusion)
    counted = score.counts(noising.x)
    if counted is None:
        return (noising.num_dims * entropy.mean()).to(noising.x.dtype)
    event = tuple(range(-noising.x_dim, 0))
    return of_counted(entropy, counted).sum(event).to(noising.x.dtype)


def elbo_terms(model: Program, guide: Program, *args: Any, **kwargs: Any) -> ELBOTerms:
    """One estimate of the bound of each datum, by term: ``elbo_terms(model, guide, x)``.

    It is differentiable, and as noisy as a step of training. For an average over draws and data,
    with standard errors and without gradients, use :func:`pyro_mdm.bound`.

    A latent site named ``"context"`` contributes its divergence as that term. If it is not
    reparameterized, only :class:`MDM_ELBO` has its gradients.

    For a simulated path ``prior_kl`` is :func:`~pyro_mdm.simulated.arrival`, from a path of its own
    to T, and ``diffusion`` is the rest of the divergence. Where paths arrive at the prior, both
    mean the same as for a linear diffusion.

    Args:
        model: generative program, such as a :class:`DiffusionModel`.
        guide: noising program over the same diffusion, such as a :class:`DiffusionGuide`.
        args: positional arguments of both programs, first the data x, (batch, *event_shape).
        kwargs: keyword arguments of both programs.

    Returns:
        :class:`ELBOTerms`, each (batch,), nats, without the scale of a plate.

    Raises:
        ValueError: the programs have no noising and generative path in common, or no observation.

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(8, 2)
        >>> model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), x))
        >>> elbo_terms(model, DiffusionGuide(model.diffusion), x).elbo.shape
        torch.Size([8])
    """
    model_trace, guide_trace = run_programs(model, guide, args, kwargs)
    path, reconstruction, context = None, [], None
    for name, site in samples(model_trace):
        if site["is_observed"]:
            reconstruction.append(_masked(site["fn"].log_prob(site["value"]), site))
            continue
        noising: Site = guide_trace.nodes[name]
        kl = site_divergence(noising, site)
        if kl is None and name == "context":
            context = _masked(kl_divergence(noising["fn"], site["fn"]), site)
            continue
        if kl is None or path is not None:
            what = "the latent site" if kl is None else "a second path,"
            raise ValueError(f"elbo_terms has no term for {what} {name!r}; use MDM_ELBO")
        kl = noising["fn"].by_term(kl, noising["value"])
        path = PathKL(_masked(kl.prior, site), _masked(kl.diffusion, site), kl.log_snr)
    if path is None or not reconstruction:
        raise ValueError(
            f"the model's sites are {list(model_trace.nodes)}, expected a latent path over a "
            "diffusion and an observed x; use DiffusionModel and DiffusionGuide, and pass x"
        )
    if context is None:
        context = torch.zeros_like(path.prior)
    decoded = sum(reconstruction[1:], reconstruction[0])
    return ELBOTerms(decoded, *path, context.to(path.prior.dtype))


def _masked(value: Tensor, site: Site) -> Tensor:
    return torch.as_tensor(scale_and_mask(value, 1.0, site["mask"]))
