"""A trained model as a distribution, for use in any Pyro program."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm.diffusions.base import Cap, for_samples
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.base import BoundScore
from pyro_mdm.paths.flow import Solver
from pyro_mdm.paths.likelihood import Estimator, Method
from pyro_mdm.samplers.base import Sampler
from pyro_mdm.support.checks import check_shape, checked_arguments, describe, tensor_device
from pyro_mdm.support.inference import Inference, inference_in_use
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.modules import evaluating, in_eval_mode

__all__ = ["MDM", "MOST"]

MOST = 256
"""The most dimensions d for which the flow's density, with d derivatives a call, is the default."""

DRAWS = {"flow": 2}
"""Number of draws for each datum by default, else 1: a flow has one pair of opposite sign."""

FEWEST, LARGEST = 20, 320
"""The least number of steps of the flow, and the largest that is chosen by itself."""

MEAN, SAMPLES = 1e-3, 64
"""The ends of the 95% interval of the mean difference of log densities by n and by 2 n steps of the
flow, nats, as rows of a plate add it up, and the number of samples of the model that it is over."""
AGREE, BETWEEN, RELEVANT = 0.1, 16, 8.0
"""The largest difference of a single one, nats, also at twice so many points between samples, and
the distance from the largest log density, nats, up to which it counts."""

NORMALIZED, SEEDS = 0.01, 5
"""The largest standard deviation of a log density by fixed draws over their seeds, nats, and the
number of seeds by which it is measured."""

_SPREADS: WeakKeyDictionary[DiffusionModel, dict[object, float]] = WeakKeyDictionary()
_STEPS: WeakKeyDictionary[DiffusionModel, int] = WeakKeyDictionary()


class MDM(TorchDistribution):
    r"""The distribution of the data that a model generates.

    It is a prior for the data in any Pyro program: ``pyro.sample("x", MDM(model))``.

    ``sample`` runs the model's sampler and decoder. ``rsample`` does so with derivatives in the
    model's parameters (for a fixed grid of the sampler's times), where the sampler is the library's
    and the decoder has ``rsample``. Pyro then draws by it, with the graph of every network call,
    unless the model is frozen. ``log_prob`` is differentiable in x and in the model. There are
    three methods:

    - ``"flow"``: the density of the probability-flow ODE, from ``draws`` draws of y_ε in ± pairs,
      with exact divergences. The default for a denoiser of at most :data:`MOST` continuous
      dimensions. The draws are fixed and the same for every datum, so it is one function of x, as
      HMC and NUTS need. The ODE takes Adams–Bashforth steps of one network call each: 20 steps,
      or up to 320 until twice as many change the mean log density of samples of the model by less
      than 0.001 nats, as rows of a plate add it up, and none by 0.1. Then one pass over
      all steps takes d derivatives of the network, and the gradient in x follows without
      another call.
    - ``"elbo"``: the mean of ``draws`` estimates of the evidence lower bound, all in one call. The
      default otherwise. Its error is several nats with one draw, and falls as 1/√draws.
    - ``"importance"``: the log of the mean of ``draws`` weights of paths on a grid, with a network
      call for each step of each: a bound for the chain on that grid, tighter with more draws.

    The last two are lower bounds in expectation over draws, which are fresh at every call, so that
    a variational bound that they are part of stays a bound. A seed fixes the draws, and with them
    an error that is the same for all data: the result is neither a bound nor a density. Pyro's
    inference takes it only if other seeds change it by less than 0.01 nats. Inference that
    exponentiates a log density or walks on it, such as ``Importance`` and NUTS, takes no bound.

    Entries of x that are NaN are missing, as for :func:`~pyro_mdm.bound`: ``"elbo"`` bounds the
    density of the others, if the denoiser has maps. With a context the distribution is conditional,
    ``MDM(model, context=c)``, and c may be a site of the program, even an enumerated one, if
    ``log_prob`` is the flow's.

    Args:
        model: a trained model in continuous time; put it in eval mode and freeze it,
            ``model.eval().requires_grad_(False)``, if it is not to be trained further.
        method: method of ``log_prob``; None for the default.
        draws: number of draws for each datum; by default 2 for ``"flow"``, else 1. Required with
            the seed of a bound.
        seed: seed of the draws, the same for every datum; the model is then in eval mode. None: 0
            for ``"flow"``, fresh draws at every call for bounds.
        times: grid of ``"importance"``: a number N of times, or the times from ε to T, (N,); by
            default those of a model that is a chain, else 65.
        solver: solver of the ODE of ``"flow"``; by default Adams–Bashforth steps as above for a
            denoiser, and an adaptive solver for another score.
        batch_shape: batch shape of the distribution, broadcast with that of the contexts.
        context: context of a model with contexts (:mod:`pyro_mdm.contexts`): one for all data,
            (*shape), or one for each, (*batch_shape, *shape).

    Raises:
        TypeError, ValueError: an object that is no model, an unknown method, options of another
            method, ``"importance"`` of a diffusion without a closed form, another method of a chain
            on a grid. ``log_prob``: a seed of a bound without a number of draws; under Pyro's
            inference, a bound where a density is needed.

    Example:
        >>> import pyro, torch
        >>> from pyro_mdm import VPSDE, Denoiser, DiffusionModel
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(100, 2)
        >>> model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), x))
        >>> prior = MDM(model)
        >>> def program(observed):
        ...     x = pyro.sample("x", prior)
        ...     pyro.sample("y", pyro.distributions.Normal(x, 0.1).to_event(1), obs=observed)
        >>> prior.sample((5,)).shape
        torch.Size([5, 2])
        >>> MDM(model, method="elbo").log_prob(x).shape
        torch.Size([100])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    context: Tensor | None = None

    @checked_arguments
    def __init__(
        self,
        model: DiffusionModel,
        *,
        method: Method | None = None,
        draws: int | None = None,
        seed: int | None = None,
        times: int | Tensor | None = None,
        solver: Solver | None = None,
        batch_shape: torch.Size | tuple[int, ...] = (),
        context: object = None,
    ) -> None:
        self.model = model
        shape = torch.Size(batch_shape)
        if context is not None:
            self.context = model.checked_context(context)
            lead = self.context.shape[: self.context.dim() - len(model.context.shape)]  # type: ignore
            shape = torch.broadcast_shapes(shape, lead)
        super().__init__(shape, model.event_shape)
        if times is not None and method is None:
            raise ValueError("times are of method 'importance'; add method='importance'")
        if solver is not None:
            method = method or "flow"
        self._asked = (method, draws, seed, times, solver)
        number = 1 if draws is None else draws
        Estimator(model, method or "elbo", number, seed, times, solver)  # for its errors

    @cached_property
    def method(self) -> Method:
        """The method of ``log_prob``: the given one, or the default."""
        return self._asked[0] or ("flow" if self._flows else "elbo")

    @cached_property
    def _flows(self) -> bool:
        """Whether few steps of the flow of z give the density: a denoiser of few continuous
        dimensions, all of them counted, over a diffusion that does not see the data."""
        score, diffusion = self.model.score_function, self.model.diffusion
        plain = {Cap.READOUT, Cap.OWN_DRIFT, Cap.NO_CONTEXT} <= diffusion.caps
        if not score.denoises or not plain or math.prod(self.event_shape) > MOST:
            return False
        some = score.counts(torch.zeros(1, *self.event_shape)) is not None
        return not some and not self.support.is_discrete

    def _estimator(self, model: DiffusionModel, method: Method) -> Estimator:
        """The estimator of log p(x) under the model, with the given options."""
        _, draws, seed, times, solver = self._asked
        if seed is not None and draws is None and method != "flow":
            raise ValueError(
                f"seed is {seed} and draws is not given: log p(x) by {method!r} and a single draw "
                "that is fixed is neither a density nor a bound; leave the seed out, give the "
                "number of draws, or use method='flow'"
            )
        draws = DRAWS.get(method, 1) if draws is None else draws
        if method == "flow":
            seed = 0 if seed is None else seed
            if solver is None and self._flows:
                solver = Solver("adams", steps=self._steps)
        return Estimator(model, method, draws, seed, times, solver, common=True)

    @property
    def _steps(self) -> int:
        """The fewest steps of the flow that agree with twice as many, at samples and between them.

        They are counted once for each model.
        """
        if self.model not in _STEPS:
            with self._repeatable():
                x = self._samples(SAMPLES)
                few = x[:BETWEEN]  # pairs of which have points between them
                weight = torch.rand(2, len(few), *[1] * (x.dim() - 1), dtype=x.dtype).to(x.device)
                other = torch.stack([few.roll(1, 0), few.roll(3, 0)])
                _STEPS[self.model] = self._enough(x, torch.cat([*(few + weight * (other - few))]))
        return _STEPS[self.model]

    @contextmanager
    def _repeatable(self) -> Iterator[None]:
        """A context in which draws repeat, and change none outside, of the model in eval mode."""
        device = tensor_device(self.model)
        devices = [device] if device is not None and device.type == "cuda" else []
        with torch.random.fork_rng(devices), evaluating(self.model):
            torch.manual_seed(0)
            yield

    def _samples(self, number: int) -> Tensor:
        """About so many samples (n, *batch_shape, *event_shape), n ≥ 2."""
        # contexts of one datum each decide the number of rows; one for all leaves it free
        contexts = self.model.score_function.network_context
        rows = number if contexts is None or contexts.dim() == 1 else len(contexts.flatten(0, -2))
        return self.sample((max(2, rows // math.prod(self.batch_shape)),))

    def _enough(self, samples: Tensor, between: Tensor) -> int:
        x = torch.cat([samples, between])
        model = self._model_for(x.shape[: x.dim() - len(self.event_shape)])
        flat = x.reshape(-1, *self.event_shape)
        number = len(flat) * len(samples) // len(x)

        def density(steps: int) -> Tensor:
            return Estimator(model, "flow", 2, 0, None, Solver("adams", steps=steps), True)(flat)

        steps, coarse = FEWEST, density(FEWEST)
        while True:
            finer = density(2 * steps)
            larger = torch.maximum(coarse, finer)
            # a density that is e^-RELEVANT of the largest moves no inference, whatever its error
            matters = larger > larger.max() - RELEVANT
            off = float((coarse - finer).abs()[matters].max())
            mean = Measured.from_values((coarse - finer)[:number])
            low, high = mean.interval
            if off < AGREE and low > -MEAN and high < MEAN:
                return steps
            if steps == LARGEST:
                warnings.warn(
                    f"log p(x) by {steps} steps of the flow differs by up to {off:.2g} nats from "
                    f"that by {2 * steps}, and by {low:.1g} to {high:.1g} in the mean, expected at "
                    f"most {AGREE:g} and {MEAN:g}: the data have narrow modes at this max_log_snr; "
                    f"give MDM a solver of more steps, e.g. Solver('adams', steps={4 * steps}), or "
                    "train at a lower max_log_snr",
                    stacklevel=2,
                )
                return steps
            steps, coarse = 2 * steps, finer

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The decoder's support, which is discrete for levels."""
        return self._decoded.support

    @checked_arguments
    def expand(self, batch_shape: Sequence[int], _instance: MDM | None = None) -> MDM:
        new = self._get_checked_instance(MDM, _instance)
        new.__dict__.update(self.__dict__, _batch_shape=torch.Size(batch_shape))
        return new

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples have derivatives in the model's parameters."""
        if not isinstance(self.model.sampler, Sampler) or self.model.times is not None:
            return False
        return bool(self._decoded.has_rsample)

    @cached_property
    def _decoded(self) -> TorchDistributionMixin:
        """The decoder's distribution of one datum, at state 0."""
        K, device = self.model.diffusion.num_variables, tensor_device(self.model)
        y = torch.zeros(1, K, *self.event_shape, dtype=self.model.bound_score.dtype)
        latent = self.model.diffusion.context
        context = None if latent is None else torch.zeros(1, latent.size, device=device)
        if self.context is None:
            model = self.model.without_context()
        else:
            shape = self.model.context.shape  # type: ignore[union-attr]
            model = self.model.given_context(self.context.reshape(-1, *shape)[0])
        with torch.no_grad():
            given = model.given(context)
            return model.likelihood(*given, y.to(device), len(self.event_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Data as from :meth:`sample`, with the graph of every network call of the sampler."""
        if not self.has_rsample:
            raise NotImplementedError(
                f"samples of {describe(self.model.sampler)} and {describe(self.model.likelihood)} "
                "have no derivative; use sample, or a density as the decoder and a sampler of "
                "pyro_mdm.samplers"
            )
        lead = (*sample_shape, *self.batch_shape)
        model, n = self._model_for(lead), math.prod(lead)
        shape = (n, model.diffusion.num_variables, *self.event_shape)
        sampler: Any = model.sampler
        diffusion, score = model.given(for_samples(model.diffusion, n).context)
        y = sampler(diffusion, BoundScore(diffusion, score), shape, differentiable=True)
        drawn: Tensor = model.likelihood(diffusion, score, y, len(self.event_shape)).rsample()
        return drawn.reshape(*lead, *self.event_shape)

    @torch.no_grad()
    @checked_arguments
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Data (*sample_shape, *batch_shape, *event_shape)."""
        lead = (*sample_shape, *self.batch_shape)
        model, n = self._model_for(lead), math.prod(lead)
        context = for_samples(model.diffusion, n).context
        y = model.path_law(context).expand((n,)).sample()[:, 0]
        drawn: Tensor = model.likelihood(*model.given(context), y, len(self.event_shape)).sample()
        return drawn.reshape(*lead, *self.event_shape)

    def _model_for(self, lead: Sequence[int]) -> DiffusionModel:
        """The model of data (*lead, *event_shape) with their contexts, if there are any."""
        if self.context is None:
            return self.model.without_context()
        shape = self.model.context.shape  # type: ignore[union-attr]
        context = self.context.expand(torch.Size([*lead, *shape]))
        return self.model.given_context(context.reshape(-1, *shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), or a lower bound on it, (*batch), nats; see the class.

        Raises:
            ValueError: data of another shape, missing entries for a denoiser without maps, a seed
                without a number of draws, and a bound under inference that needs a density.
            TypeError: missing entries for a score that cannot leave out dimensions.
        """
        try:
            return self._log_prob(value)
        except RuntimeError as error:
            if not str(error).startswith("vmap:"):
                raise
        return _AllRows.apply(value, self)

    def _log_prob(self, value: Tensor) -> Tensor:
        event_dim = len(self.event_shape)
        check_shape("x", value, self.event_shape)
        lead = value.shape[: value.dim() - event_dim]
        if self.context is None:
            model = self.model.without_context()
            model.check_given(value)
        else:
            lead = torch.broadcast_shapes(lead, self.batch_shape)
            value = value.expand(*lead, *self.event_shape)
            model = self._model_for(lead)
        x, method = value.reshape(-1, *self.event_shape), self.method
        if bool(x.isnan().any()):
            model, x = model.for_present(x)
            method = self._asked[0] or "elbo"
        if (use := inference_in_use()) is not None:
            self.check_density(use, method)
        estimator = self._estimator(model, method)
        if estimator.seed is None:
            return estimator(x).reshape(lead)
        with in_eval_mode(model):
            return estimator(x).reshape(lead)

    def check_density(self, use: Inference, method: Method | None = None) -> None:
        """Raises ValueError unless ``log_prob`` serves an inference.

        It serves as one density that is normalized to 0.01 nats of noise, or for SVI as a bound by
        fresh draws.

        Args:
            use: the inference, with its requirements.
            method: method of ``log_prob`` for the values in question; by default that for values
                without missing entries.
        """
        method = method or self.method
        estimator = self._estimator(self.model, method)
        if estimator.is_exact and method == "flow":
            return
        flow = "method='flow'" if method != "flow" else "a solver with exact divergences"
        if estimator.seed is None:
            if use.walks or (use.weighs and not estimator.is_exact):
                raise ValueError(
                    f"log_prob of {describe(self.model)} is a bound by {method!r} here, with other "
                    f"noise at every call, and {use.name} needs one density; use SVI, or {flow}, "
                    "or fix so many draws by a seed that others hardly change it, e.g. "
                    f"MDM(model, method={method!r}, draws=100_000, seed=0)"
                )
            return
        off = self._spread_of(method)
        if off > NORMALIZED:
            draws = estimator.draws
            enough = float(f"{draws * (off / NORMALIZED) ** 2:.1g}")
            instead = f"use {flow}" if use.weighs else "leave the seed out"
            raise ValueError(
                f"log_prob of {describe(self.model)} by {method!r} with {draws:,} draws of a seed "
                f"is {off:.2g} nats off, for all data alike and once for each row, expected at "
                f"most {NORMALIZED:g} as {use.name} takes it for the log density; {instead}, or "
                f"take about {enough:,.0f} draws"
            )

    def _spread_of(self, method: Method) -> float:
        """The standard deviation of log densities over seeds, at samples, nats; computed once."""
        asked = (method, *map(str, self._asked[1:]))
        kept = _SPREADS.setdefault(self.model, {})
        if asked not in kept:
            with self._repeatable(), torch.no_grad():
                x = self._samples(4)
                model = self._model_for(x.shape[: x.dim() - len(self.event_shape)])
                first, flat = self._estimator(model, method), x.reshape(-1, *self.event_shape)
                values = []
                for seed in range(SEEDS):
                    estimator = copy.copy(first)
                    estimator.seed = (first.seed or 0) + seed
                    values.append(estimator(flat).double())
            kept[asked] = float(torch.stack(values).var(0).mean().sqrt())
        return kept[asked]


class _AllRows(torch.autograd.Function):
    """``log_prob`` under :func:`torch.func.vmap`, of all of its rows in one call."""

    generate_vmap_rule = False

    @staticmethod
    def forward(value: Tensor, distribution: MDM) -> Tensor:
        return distribution.log_prob(value)

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def vmap(
        info: object, in_dims: tuple[int, None], value: Tensor, distribution: MDM
    ) -> tuple[Tensor, int]:
        return distribution.log_prob(value.movedim(in_dims[0], 0)), 0
