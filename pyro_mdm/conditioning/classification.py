r"""Classes by Bayes' rule from the bounds of a model of x given its class.

    p(c | x) ∝ p(c) exp ELBO(x | c)

All classes are evaluated at the same noise, so that shared errors cancel. No classifier is trained:
the accuracy tests the densities (Li et al., "Your Diffusion Model is Secretly a Zero-Shot
Classifier", ICCV 2023).

The exponential of a noisy bound is too large on average, so that log Σ p(c) exp ELBO(x | c) at the
estimates is no bound. By Jensen's inequality it is at least

    Σ w_c ( ELBO(x | c) + log p(c) - log w_c )

for any weights that sum to 1, with equality for p(c | x). The weights come from one half of a
datum's draws, the bounds from the other half, whose noise is independent. So this is a bound in
expectation, whatever the noise; a single estimate may be above. The halves share coefficients of
the baseline, which come from other data and leave each half unbiased. They also share strata and
densities of noise levels, to which one of n data contributes a share of order 1/n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_mdm.conditioning.contexts import Labels
from pyro_mdm.evaluation.comparison import EstimateOptions, compare
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.support.checks import Several, checked_arguments, describe, real_tensor
from pyro_mdm.support.measured import Measured

__all__ = ["ClassPosterior", "class_posterior"]

BINS = 10
"""The number of intervals of confidence, for the calibration error."""


@dataclass(frozen=True, repr=False)
class ClassPosterior:
    """The posterior over the classes of n data, from bounds on log p(x | c)."""

    elbo: Tensor  # (n, classes) bound on log p(x | c), nats
    halves: Tensor  # (2, n, classes) the same from each half of the draws
    log_prior: Tensor  # (classes,)
    num_dims: int
    network_calls: int

    @property
    def log_probs(self) -> Tensor:
        """log p(c | x), (n, classes)."""
        return (self.elbo + self.log_prior).log_softmax(-1)

    @property
    def labels(self) -> Tensor:
        """The most probable class of each datum, (n,)."""
        return self.log_probs.argmax(-1)

    @property
    def mixture(self) -> Tensor:
        """A bound in expectation on log p(x) of the mixture of classes, (n,), nats.

        Noise makes it smaller on average; a single estimate may be above, see the module's text.
        """
        joint = self.halves + self.log_prior
        log_w = joint.log_softmax(-1)
        return (log_w.exp() * (joint.flip(0) - log_w)).sum(-1).mean(0)

    @property
    def mixture_gap(self) -> float:
        """The largest expected loss of the mean of :attr:`mixture` by noise, nats, at least 0.

        It is the mean over data of log Σ_c p(c) exp ELBO(x | c) at the estimates, which noise makes
        larger on average, minus the mean of :attr:`mixture`.
        """
        larger = (self.elbo + self.log_prior).logsumexp(-1)
        return max(0.0, float((larger - self.mixture).mean()))

    @property
    def bits_per_dim(self) -> Measured:
        """:attr:`mixture` in bits/dim; its error includes :attr:`mixture_gap`."""
        mean, error = Measured.from_values(self.mixture)
        nats = Measured(mean, math.hypot(error, self.mixture_gap))
        return nats.scaled(-1 / (self.num_dims * math.log(2)))

    @checked_arguments
    def accuracy(self, labels: Tensor) -> Measured:
        """The fraction of data whose label is the most probable class.

        Args:
            labels: labels of the data, (n,), whole numbers from 0.
        """
        return Measured.from_values((self.labels == self._checked(labels)).double())

    def log_loss(self, labels: Tensor) -> Measured:
        """The mean of -log p(c | x) at the labels, nats.

        Args:
            labels: labels of the data, (n,), whole numbers from 0.
        """
        classes = self._checked(labels)
        return Measured.from_values(-self.log_probs.gather(-1, classes[:, None])[:, 0])

    def calibration_error(self, labels: Tensor, bins: int = BINS) -> float:
        """The expected calibration error: the mean distance of confidence from accuracy.

        Args:
            labels: labels of the data, (n,), whole numbers from 0.
            bins: number of bins of equal size into which data are sorted by confidence.

        Source: Guo et al., ICML 2017; Nguyen & O'Connor, EMNLP 2015.
        """
        right = (self.labels == self._checked(labels)).double()
        confidence = self.log_probs.exp().amax(-1)
        order = confidence.argsort()
        rows_by_bin = [rows for rows in order.tensor_split(bins) if len(rows)]
        apart = [
            float((confidence[p].mean() - right[p].mean()).abs()) * len(p) for p in rows_by_bin
        ]
        return sum(apart) / len(order)

    def _checked(self, labels: Tensor) -> Tensor:
        n, classes = self.elbo.shape
        whole = labels.cpu().long()
        if whole.shape != (n,) or not bool(((whole >= 0) & (whole < classes)).all()):
            raise ValueError(
                f"labels are {describe(labels)}, expected those of the {n} data, ({n},) whole "
                f"numbers from 0 to {classes - 1}; leave out data whose class is not known"
            )
        return whole

    def __repr__(self) -> str:
        n, classes = self.elbo.shape
        return f"ClassPosterior({n} data, {classes} classes, {self.network_calls} network calls)"


@checked_arguments
def class_posterior(
    model: DiffusionModel,
    guide: DiffusionGuide,
    x: Tensor,
    *,
    prior: Tensor | None = None,
    draws: Several = 16,
    **options: Unpack[EstimateOptions],
) -> ClassPosterior:
    """The probabilities p(c | x) of the classes of data, from bounds on log p(x | c).

    Args:
        model: generative program whose context is :class:`~pyro_mdm.conditioning.Labels`.
        guide: noising program over the same diffusion.
        x: data in model space, (n, *event_shape), n ≥ 8.
        prior: probabilities p(c), (classes,), positive with sum 1; by default uniform.
        draws: number of network calls per datum and class, at least 2.
        options: those of :func:`~pyro_mdm.evaluation.compare`, such as ``batch_size`` and ``seed``;
            all classes share the noise.

    Returns:
        :class:`ClassPosterior` of the n data.

    Raises:
        TypeError: a model whose context is no label.
        ValueError: a prior that is no probability; else as :func:`~pyro_mdm.evaluation.compare`.
    """
    context = model.context
    if not isinstance(context, Labels):
        raise TypeError(
            f"the model's context is {describe(context)}, expected Labels; make it with "
            "context=Labels(10)"
        )
    C = context.num_classes
    even = torch.full((C,), 1 / C, dtype=torch.float64)
    p = even if prior is None else real_tensor("prior", prior, f"the probabilities of {C} classes")
    # 1e-6: float32 probabilities sum to 1 up to their rounding
    if p.shape != (C,) or not bool((p > 0).all()) or abs(float(p.sum()) - 1) > 1e-6:
        raise ValueError(
            f"prior is {describe(prior)}, expected ({C},) positive numbers whose sum is 1; e.g. "
            "(counts + 1) / (counts + 1).sum()"
        )
    programs = {str(c): (model.given_context(c), guide) for c in range(C)}
    comparison = compare(programs, x, draws=draws, **options)
    estimates = [comparison.estimates[str(c)] for c in range(C)]
    elbo = torch.stack([estimate.per_datum for estimate in estimates], -1)
    halves = torch.stack([estimate.halves for estimate in estimates], -1)
    dims, calls = math.prod(model.event_shape), comparison.network_calls
    return ClassPosterior(elbo, halves, p.cpu().log(), dims, calls)
