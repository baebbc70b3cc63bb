r"""The evidence lower bound of a diffusion program, as a Pyro objective.

    log p(x) ≥ E log p(x | y_ε)  -  KL(q(y_T|x) ‖ π)  -  ½ ∫ E ‖s_θ - ∇ log q(y_s|x)‖²_{g²} ds
               reconstruction        prior KL              diffusion

Source: Singhal, Goldstein & Ranganath, ICLR 2023, Theorem 1; the integral over log SNR after
Kingma et al., "Variational Diffusion Models", 2021.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import pyro.poutine as poutine
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.util import MultiFrameTensor, is_validation_enabled, torch_item
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor, nn
from torch.distributions import kl_divergence

import pyro_mdm.randomness as randomness
from pyro_mdm.compiled import WholeLoss
from pyro_mdm.diffusions.base import Cap, require
from pyro_mdm.diffusions.closed import Kernels
from pyro_mdm.diffusions.matrices import of_counted
from pyro_mdm.guide import DiffusionGuide, one_thread
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.base import (
    GenerativeLaw,
    NoisingLaw,
    PathKL,
    different_diffusions,
    path_divergence,
)
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import check_values, checked_arguments, describe, settle, tensor_device
from pyro_mdm.support.measured import ALL_TERMS, TERMS, Measured, table

__all__ = ["ELBOTerms", "MDM_ELBO", "check_programs", "elbo_terms"]

Program = Callable[..., object]
Options = Mapping[str, object]
Site = Mapping[str, Any]
"""A site of a trace, with ``fn``, ``value``, ``scale``, … of Pyro's ``Message``."""
Sites = dict[str, Site]
"""The sample sites of a program, by name, in the order in which it has them."""


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
    def __init__(self, *args: object, decoder: bool = True, **kwargs: object) -> None:
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
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> Tensor:
        """The loss, (), nats, differentiable in the parameters of both programs."""
        loss = None
        if self._whole is not None and self.num_particles == 1:
            entropy = None if self.decoder else start_entropy
            loss = self._whole(model, guide, args, kwargs, entropy)
        if loss is None:
            context = guide.diffusion.context if isinstance(guide, DiffusionGuide) else None
            paired = context is not None and not context.reparameterized
            paired = paired and self.num_particles == 1 and torch.is_grad_enabled()
            repeated: Callable[[], AbstractContextManager[None]] = nullcontext
            if paired:  # two draws of the context, with the same noise along the paths
                device = tensor_device(cast(nn.Module, guide)) or torch.device("cpu")
                repeated = randomness.repeatable(device)
            draws, bounds = [], []
            with one_thread():
                for _ in range(1 + paired):
                    with repeated():
                        for in_model, in_guide in self._get_traces(model, guide, args, kwargs):
                            nesting = self.max_plate_nesting
                            terms = _terms(in_model, in_guide, self.decoder, nesting)
                            draws.append((in_guide, terms))
            for i, (in_guide, terms) in enumerate(draws):
                bound = torch.zeros(())
                for j, term in enumerate(terms):
                    bound = bound + term.value.sum() if j else term.value.sum()
                for name, site in in_guide.items():
                    if torch.is_grad_enabled() and not isinstance(site["fn"], NoisingLaw):
                        baseline = draws[1 - i][1] if paired else []
                        bound = bound + _score_function(name, site, terms, baseline)
                bounds.append(bound)
            many = max(len(bounds), self.num_particles)  # of one trace if vectorized
            loss = -bounds[0] if many == 1 else -torch.stack(bounds).sum() / many
        with torch.no_grad():
            check_values(loss == loss, _warn_of_nan)
        return loss

    def loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> float:
        """The loss as a number, nats."""
        with torch.no_grad():
            loss = float(torch_item(self.differentiable_loss(model, guide, *args, **kwargs)))
        settle()
        return loss

    def loss_and_grads(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> float:
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

    def sites(
        self, model: Program, guide: Program, args: Sequence[object], kwargs: Options
    ) -> tuple[Sites, Sites]:
        """The sites of the model, replayed against the guide, and of the guide, by name.

        Args:
            model: generative program.
            guide: noising program.
            args: positional arguments of both programs.
            kwargs: keyword arguments of both programs.

        Raises:
            TypeError: programs that are swapped.
            ValueError: programs over different diffusions, or whose sites do not match.
        """
        check_programs(model, guide)
        messenger = poutine.unwrap(guide)
        if isinstance(messenger, GuideMessenger):
            guide(*args, **kwargs)
            traces = messenger.get_traces()
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            traces = poutine.trace(replayed).get_trace(*args, **kwargs), guide_trace
        traces = prune_subsample_sites(traces[0]), prune_subsample_sites(traces[1])
        in_model: Sites = {}
        in_guide: Sites = {}
        for sites, trace in zip((in_model, in_guide), traces, strict=True):
            for name, message in trace.nodes.items():
                if message["type"] == "sample":
                    sites[name] = message
        for name, site in in_model.items():
            if site["is_observed"] and name in in_guide:
                raise ValueError(
                    f"site {name!r} is observed in the model and sampled in the guide; leave it "
                    "out of the guide, or do not observe it"
                )
            if not site["is_observed"] and name not in in_guide:
                raise ValueError(
                    f"site {name!r} is latent in the model and absent from the guide; observe it "
                    "(pass x) or sample it in the guide"
                )
        for name, site in in_guide.items():
            if name not in in_model and not site["infer"].get("is_auxiliary"):
                raise ValueError(
                    f"site {name!r} is in the guide and absent from the model; sample it there, or "
                    "mark it with infer={'is_auxiliary': True}"
                )
            if site["infer"].get("enumerate"):
                raise ValueError(
                    f"site {name!r} asks for enumeration, and MDM_ELBO draws every site; leave out "
                    "infer={'enumerate': ...} for score-function gradients, or sum it out in the "
                    "model"
                )
        if is_validation_enabled():
            check_model_guide_match(*traces, self.max_plate_nesting)
        return in_model, in_guide

    _get_trace = sites  # Pyro's name for it, under which it asks for each particle


def _warn_of_nan() -> None:
    warnings.warn("Encountered NaN: loss", stacklevel=4)


class _Term(NamedTuple):
    """A site's part of the bound."""

    site: Site  # the model's, or the guide's if it is auxiliary
    value: Tensor  # of the site's batch shape, nats, scaled and masked
    drawn: bool = False  # log p - log q at a draw: a cost of the draw itself


def _terms(
    in_model: Sites, in_guide: Sites, decoder: bool, max_plate_nesting: float
) -> list[_Term]:
    """Every site's part of the bound, in the order of the model."""
    if not decoder:
        _check_no_decoder(in_model, in_guide)
    terms = []
    for name, p in in_model.items():
        if p["is_observed"]:
            if decoder:
                log_prob = p["fn"].log_prob(p["value"])
                terms.append(_Term(p, scale_and_mask(log_prob, p["scale"], p["mask"])))
            continue
        q = in_guide[name]
        unlike = _unlike(q, p)
        later = _drawn_later(name, in_model, in_guide) if len(in_guide) > 1 else []
        if not isinstance(q["fn"], NoisingLaw) or not isinstance(p["fn"], GenerativeLaw):
            terms.append(_latent(q, p, not unlike and not later))
            continue
        kl = path_divergence(q["fn"], p["fn"], q["value"])
        if unlike or later:
            _check_path(q, p, unlike, later)
        value = kl.prior + kl.diffusion
        if not decoder:
            value = value + _start_entropy(q["fn"], p["fn"].score)
        terms.append(_Term(p, -scale_and_mask(value, p["scale"], p["mask"])))
    for name, q in in_guide.items():
        if name not in in_model:
            terms.append(_Term(q, _minus_log_q(q), drawn=True))
    if is_validation_enabled():
        for term in terms:
            checked: Any = {**term.site, "log_prob": term.value}
            check_site_shape(checked, cast(int, max_plate_nesting))  # or infinity
    return terms


def _latent(q: Site, p: Site, in_closed_form: bool) -> _Term:
    """-KL(q ‖ p) of a latent site, in closed form where that is right, else at its draw."""
    if in_closed_form:
        with suppress(NotImplementedError):
            kl = kl_divergence(q["fn"], p["fn"])
            return _Term(p, -scale_and_mask(kl, p["scale"], p["mask"]))
    log_p = scale_and_mask(p["fn"].log_prob(p["value"]), p["scale"], p["mask"])
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


def _score_function(
    name: str, site: Site, terms: list[_Term], baseline: list[_Term]
) -> Tensor | float:
    """A zero with the gradient of the part of a site's draw that is not reparameterized."""
    score_function = _score_parts(site).score_function
    if not getattr(score_function, "requires_grad", False):
        return 0.0
    costs = MultiFrameTensor()
    for sign, draw in ((1, terms), (-1, baseline)):
        for term in draw:
            if term.drawn or term.site["name"] != name:
                costs.add((term.site["cond_indep_stack"], sign * term.value.detach()))
    surrogate = (costs.sum_to(site["cond_indep_stack"]) * score_function).sum()
    return surrogate - surrogate.detach()


def start_entropy(diffusion: Kernels) -> Tensor:
    """H[q(y_ε | x)] - H[q(v_0)] per data dimension, 0-dim or per dimension where they differ."""
    Sigma_v = diffusion.initial_covariance[..., 1:, 1:]
    log_det = diffusion.start.log_det  # of each data dimension, if they differ
    if Sigma_v.shape[-1]:
        log_det = log_det - torch.logdet(Sigma_v)
    # of K variables less K - 1, one has its ½ log 2πe left
    return 0.5 * (log_det + math.log(2 * math.pi) + 1)


def _start_entropy(noising: NoisingLaw, score: Score) -> Tensor:
    """:func:`start_entropy` of counted dimensions together, 0-dim or (*batch), nats."""
    require(noising.diffusion, Cap.KERNELS, who="decoder=False", fix="leave decoder out")
    entropy = start_entropy(noising.diffusion)
    counted = score.counts(noising.x)
    if counted is None:
        return (noising.num_dims * entropy.mean()).to(noising.x)
    event = tuple(range(-noising.x_dim, 0))
    return of_counted(entropy.to(noising.x), counted).sum(event)


def elbo_terms(model: Program, guide: Program, *args: object, **kwargs: object) -> ELBOTerms:
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
    in_model, in_guide = MDM_ELBO().sites(model, guide, args, kwargs)
    path, reconstruction, context = None, [], None
    for name, p in in_model.items():
        if p["is_observed"]:
            reconstruction.append(scale_and_mask(p["fn"].log_prob(p["value"]), mask=p["mask"]))
            continue
        q = in_guide[name]
        if isinstance(q["fn"], NoisingLaw) and isinstance(p["fn"], GenerativeLaw):
            if path is not None:
                what = f"a second path, {name!r}"
                raise ValueError(f"elbo_terms has no term for {what}; use MDM_ELBO")
            kl = q["fn"].by_term(path_divergence(q["fn"], p["fn"], q["value"]), q["value"])
            prior, diffusion = (scale_and_mask(value, mask=p["mask"]) for value in kl[:2])
            path = PathKL(prior, diffusion, kl.log_snr)
        elif name == "context":
            context = scale_and_mask(kl_divergence(q["fn"], p["fn"]), mask=p["mask"])
        else:
            raise ValueError(f"elbo_terms has no term for the latent site {name!r}; use MDM_ELBO")
    if path is None or not reconstruction:
        raise ValueError(
            f"the model's sites are {list(in_model)}, expected a latent path over a "
            "diffusion and an observed x; use DiffusionModel and DiffusionGuide, and pass x"
        )
    if context is None:
        context = torch.zeros_like(path.prior)
    decoded = sum(reconstruction[1:], reconstruction[0])
    return ELBOTerms(decoded, *path, context.to(path.prior.dtype))


# -- the programs ----------------------------------------------------------------------------------


def check_programs(model: object, guide: object) -> None:
    """Raises TypeError for a model and a guide that are swapped, and ValueError for those of this
    library over different diffusions."""
    if isinstance(model, DiffusionGuide) or isinstance(guide, DiffusionModel):
        raise TypeError(
            f"model is {describe(model)} and guide {describe(guide)}: they are swapped; the model "
            "comes first"
        )
    for name, program in (("model", model), ("guide", guide)):
        if isinstance(program, type) or not callable(program):
            raise TypeError(
                f"{name} is {describe(program)}, expected a program: DiffusionModel(diffusion, "
                "score) and DiffusionGuide(diffusion)"
            )
    if not isinstance(model, DiffusionModel) or not isinstance(guide, DiffusionGuide):
        return
    if model.diffusion is not guide.diffusion:
        raise ValueError(different_diffusions(guide.diffusion, model.diffusion))


def _unlike(q: Site, p: Site) -> str | None:
    """Which of scale and mask a site has otherwise in the guide, q, than in the model, p."""
    for what in ("scale", "mask"):
        a, b = q[what], p[what]
        if a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b):
            continue
        if a is None or b is None or not torch.equal(torch.as_tensor(a), torch.as_tensor(b)):
            return what
    return None


def _check_path(q: Site, p: Site, unlike: str | None, later: list[str]) -> None:
    """Raises ValueError for a path with another scale or mask in the guide than in the model, and
    warns where the guide draws it before sites that the model draws first."""
    if unlike is not None:
        values = []
        for value in (p[unlike], q[unlike]):
            shape = getattr(value, "shape", ())
            values.append(f"of shape {tuple(shape)}" if shape else f"{value}")
        raise ValueError(
            f"site {p['name']!r} has the {unlike} {values[0]} in the model and {values[1]} in the "
            "guide; a path's divergence is of both together, so give both programs the same "
            "plates, scales and masks"
        )
    warnings.warn(
        f"the guide draws the path {p['name']!r} before {later}, the model after it. Its "
        "divergence is wrong if the guide draws them given the path and the model's distribution "
        "of the path depends on them; draw them in the order of the model to be sure",
        stacklevel=2,
    )


def _drawn_later(name: str, in_model: Sites, in_guide: Sites) -> list[str]:
    """Latent sites that come before this one in the model and after it in the guide."""
    order = list(in_guide)
    later = set(order[order.index(name) :])
    return [n for n in itertools.takewhile(lambda n: n != name, in_model) if n in later]


def _check_no_decoder(in_model: Sites, in_guide: Sites) -> None:
    """Raises ValueError where more is observed than the ends of paths, which have no decoder."""
    observed = [n for n, site in in_model.items() if site["is_observed"]]
    paths = [n for n, site in in_guide.items() if isinstance(site["fn"], NoisingLaw)]
    if len(observed) > len(paths):
        raise ValueError(
            f"decoder=False leaves out what is observed at the end of each path, but the sites "
            f"{observed} are observed with the paths {paths}; leave decoder out"
        )
