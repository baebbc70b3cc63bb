r"""Models of data given a context, p(x | c), or given some of their dimensions, p(x_u | x_o).

A network is given the context (:mod:`pyro_mdm.contexts`), or a map of log SNR that marks observed
dimensions.

Given x the noised dimensions are independent. So an observed dimension can be noised like the
others, and the network be given its value instead. With λ the log SNR of the state,

    x̂_u( z_u, x_o, λ ),    λ_j = λ for u, generated;  +∞ for o, observed;  -∞, left out,

is a denoiser of x_u given x_o. The bound is that of any denoiser, its three terms summed over u
alone:

    log p(x_u | x_o) ≥ E log p(x_u | y_ε) - KL(q(y_T,u | x_u) ‖ π) - ½ ∫ E ‖x_u - x̂_u‖² e^λ dλ.

The guide is that of the unconditional model. The conditional distributions of an inexact network
need not be those of one joint distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mdm.conditioning.denoiser import (
    ConditionedDenoiser,
    ConditionedLikelihood,
    checked_denoiser,
    number_of_data,
)
from pyro_mdm.diffusions.base import Cap, require
from pyro_mdm.model import DiffusionModel, model_of_present
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.checks import checked_arguments

__all__ = ["condition"]


@checked_arguments
def condition(
    model: DiffusionModel,
    observed: Tensor | None = None,
    values: Tensor | None = None,
    left_out: Tensor | None = None,
    *,
    context: object = None,
) -> DiffusionModel:
    """The model of data given a context, p(x | c), or given some dimensions, p(x_u | x_o); or both.

    Every sampler serves it; observed entries keep their values. Its bound (:func:`~pyro_mdm.bound`,
    :func:`~pyro_mdm.elbo_terms`, :class:`~pyro_mdm.MDM_ELBO`, ``log_prob``) is on log p(x_u | x_o),
    in nats, with the x_o of the data. Bits/dim are still per dimension of all. Parameters, network
    and diffusion are shared with ``model``; the guide is ``DiffusionGuide(conditioned.diffusion)``,
    or the one of ``model``.

    Where dimensions are observed or left out, joint densities of all dimensions are refused:
    ``Trace_ELBO``, importance weights, the probability flow. Given a context alone they are not.

    Args:
        model: the unconditional model. For a context, one with a context
            (:mod:`pyro_mdm.contexts`). For masks, one whose score is a denoiser with
            :attr:`~pyro_mdm.scores.Score.maps` of log SNR, trained on maps with dimensions observed
            and left out (:class:`~pyro_mdm.conditioning.RandomMaps`, or conditional models
            themselves).
        observed: mask of observed dimensions, bool, (*event_shape); or (n, *event_shape) for n data
            that differ. Every call is then for these n data in order, once or several times.
        values: observed values, (*event_shape) or (n, *event_shape). Other entries are not read,
            and may be NaN. Data of a bound must agree with the values. None: the bound is for any
            data, and the model cannot be sampled.
        left_out: mask of dimensions that are integrated out, bool, shaped like ``observed``; None:
            none. They have no part in a bound, whatever the data hold there. In samples they have
            the data's mean, or the level nearest to it.
        context: context of all data, (*shape), or of each of n data, (n, *shape). Calls are then
            for these n data in order, once or several times. A trained encoder is called once, now.

    Returns:
        The conditional model, a :class:`DiffusionModel`.

    Raises:
        TypeError: nothing to condition on; a model whose score is no denoiser, or is conditioned
            already, or whose decoder's dimensions are not independent; masks that are not bool.
        ValueError: a context for a model without one, or one that it cannot have; a score that is
            without maps; a diffusion in frequencies of the data, or whose drift sees the data;
            masks or values of another shape, a dimension both observed and left out, none left to
            generate, observed values that are not finite or not on the levels. On call: data that
            differ from the values, another number of data than masks and values have; samples
            without values.

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser, DiffusionGuide, DiffusionModel, elbo_terms
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(100, 3)
        >>> score = Denoiser.fit(MLP(features=6, out_features=3), x, maps=True)
        >>> model = DiffusionModel(VPSDE(min_log_snr=-9.0), score)
        >>> first = torch.tensor([True, False, False])
        >>> conditioned = condition(model, first, torch.tensor([0.5, 0.0, 0.0]))
        >>> conditioned(batch_size=4)[:, 0]
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
        >>> elbo_terms(condition(model, first), DiffusionGuide(model.diffusion), x).elbo.shape
        torch.Size([100])
    """
    if observed is None and left_out is None and context is None:
        raise TypeError(
            "there is nothing to condition on, expected observed dimensions or a context; pass "
            "condition(model, mask, values) or condition(model, context=c)"
        )
    model = model.given_context(context)
    if observed is None and left_out is None:
        return model
    if observed is None:
        observed = torch.zeros(model.event_shape, dtype=torch.bool)
    denoiser = checked_denoiser(model.score_function)
    _check_noised_apart(model)
    score = ConditionedDenoiser(denoiser, observed, values, left_out)
    contexts = score.network_context
    sizes = number_of_data(observed, values, left_out, event_dim=len(model.event_shape))
    if contexts is not None and contexts.dim() > 1 and sizes - {len(contexts)}:
        raise ValueError(
            f"contexts are of {len(contexts)} data and masks or values of {sizes.pop()}, expected "
            "both of the same number of data"
        )
    return model.with_score(score, ConditionedLikelihood(model.likelihood))


@model_of_present.register(DenoiserScore)
def _of_present(score: DenoiserScore, model: DiffusionModel, missing: Tensor) -> DiffusionModel:
    _check_noised_apart(model)
    if isinstance(score, ConditionedDenoiser):
        return model.with_score(score.leaving_out(missing), model.likelihood)
    nothing = torch.zeros(model.event_shape, dtype=torch.bool)
    whole = ConditionedDenoiser(checked_denoiser(score), nothing)
    whole.training_maps = score.training_maps
    return model.with_score(whole.leaving_out(missing), ConditionedLikelihood(model.likelihood))


def _check_noised_apart(model: DiffusionModel) -> None:
    """Raises UnsupportedDiffusionError unless dimensions of a datum are noised apart."""
    needed = (Cap.DATA_STATES, Cap.OWN_DRIFT, Cap.NO_CONTEXT)
    fix = "use a linear diffusion of the data, whose dimensions are noised apart"
    require(model.diffusion, *needed, who="conditioning on some dimensions of a datum", fix=fix)
