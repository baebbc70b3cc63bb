"""A trained model as a distribution, for somebody else's Pyro program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.flow import Solver
from pyro_mdm.paths.generative import BoundScore
from pyro_mdm.paths.likelihood import Estimator, Method
from pyro_mdm.samplers.base import Sampler
from pyro_mdm.support.checks import check_instance, describe, tensor_device

__all__ = ["MDM"]


class MDM(TorchDistribution):
    r"""The data that a model generates, ``pyro.sample("x", MDM(model))``: a prior of a program.

    ``sample`` runs the model's sampler and decoder. ``rsample`` does so with derivatives by the
    model's parameters (at the times of the sampler's grid as they are), where the sampler is the
    library's and the decoder has ``rsample``. Pyro then draws by it, with the graph of every
    network call, unless the model is frozen.
    ``log_prob`` is a stochastic lower bound on log p(x), differentiable in x and in the model, so
    that a variational bound that it is part of stays a bound:

    - ``"elbo"``: the mean of ``draws`` estimates of the evidence lower bound, a network call each;
    - ``"importance"``: the log of the mean of ``draws`` weights of paths on a grid, a call for each
      step of each: a bound for the chain on that grid, tighter the more there are;
    - ``"flow"``: the same with weights of the probability-flow ODE from draws of y_ε, hundreds of
      calls each. With an estimated divergence the mean of their logarithms.

    Args:
        model: a trained model in continuous time; put it in eval mode and freeze it,
            ``model.eval().requires_grad_(False)``, if it is not to be trained further.
        method: of ``log_prob``.
        draws: for each datum.
        seed: fixes the draws: ``log_prob`` is then a function, the same for the same batch.
        times: of the grid of ``"importance"``, a number or the times from ε to T; by default those
            of a model that is a chain, else 65.
        solver: of the ODE of ``"flow"``.
        batch_shape: as of any distribution, broadcast with that of the contexts.
        context: of a model that has one, see :mod:`pyro_mdm.contexts`: of all data, (*shape), or of
            each, (*batch_shape, *shape).

    Raises:
        TypeError, ValueError: no model, a method that there is not, ``"importance"`` of a diffusion
            without a closed form, another method of a chain on a grid.

    With a context it is a conditional distribution, ``MDM(model, context=c)``, and c may be a site
    of the program, enumerated ones included.

    Example:
        >>> import pyro, torch
        >>> from pyro_mdm import VPSDE, Denoiser, DiffusionModel
        >>> from pyro_mdm.networks import MLP
        >>> x = torch.randn(100, 2)
        >>> prior = MDM(DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), x)))
        >>> def program(observed):
        ...     x = pyro.sample("x", prior)
        ...     pyro.sample("y", pyro.distributions.Normal(x, 0.1).to_event(1), obs=observed)
        >>> prior.log_prob(x).shape
        torch.Size([100])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    context: Tensor | None = None

    def __init__(
        self,
        model: DiffusionModel,
        *,
        method: Method = "elbo",
        draws: int = 1,
        seed: int | None = None,
        times: int | Tensor | None = None,
        solver: Solver | None = None,
        batch_shape: torch.Size | tuple[int, ...] = (),
        context: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        check_instance(
            "model", model, DiffusionModel, "e.g. DiffusionModel.from_pretrained(folder)"
        )
        self._options = (method, draws, seed, times, solver)
        self.model, self.estimator = model, Estimator(model, *self._options)
        self._decoder_has_rsample: bool | None = None
        shape = torch.Size(batch_shape)
        if context is not None:
            self.context = model.checked_context(context)
            own = self.context.shape[: self.context.dim() - len(model.context.shape)]  # type: ignore
            shape = torch.broadcast_shapes(shape, own)
        super().__init__(shape, model.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> MDM:
        new = self._get_checked_instance(MDM, _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples have derivatives by the model's parameters."""
        if not isinstance(self.model.sampler, Sampler) or self.model.times is not None:
            return False
        if self._decoder_has_rsample is None:  # its law may take a network call
            K, device = self.model.diffusion.num_variables, tensor_device(self.model)
            y = torch.zeros(1, K, *self.event_shape, dtype=self.model.bound_score.dtype)
            latent = self.model.diffusion.context
            context = None if latent is None else torch.zeros(1, latent.size, device=device)
            model = self.model
            if self.context is not None:
                shape = model.context.shape  # type: ignore[union-attr]
                model = model.given_context(self.context.reshape(-1, *shape)[0])
            with torch.no_grad():
                law = self._decoder(model, y.to(device), context)
            self._decoder_has_rsample = bool(law.has_rsample)
        return self._decoder_has_rsample

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The same as :meth:`sample`, with the graph of every network call of the sampler."""
        if not self.has_rsample:
            raise NotImplementedError(
                f"{describe(self.model.sampler)} and {describe(self.model.likelihood)} draw what "
                "has no derivative; use sample, or a density as the decoder and a sampler of "
                "pyro_mdm.samplers"
            )
        lead = (*sample_shape, *self.batch_shape)
        model = self._of(lead)
        shape = (math.prod(lead), model.diffusion.num_variables, *self.event_shape)
        sampler: Any = model.sampler
        context = self._context((shape[0],))
        diffusion, score = model.given(context)
        y = sampler(diffusion, BoundScore(diffusion, score), shape, differentiable=True)
        drawn: Tensor = self._decoder(model, y, context).rsample()
        return drawn.reshape(*lead, *self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Data (*sample_shape, *batch_shape, *event_shape)."""
        lead = (*sample_shape, *self.batch_shape)
        model, context = self._of(lead), self._context(lead)
        path = model.path_law(context).expand(self.batch_shape).sample(torch.Size(sample_shape))
        y = path.select(-2 - len(self.event_shape), 0)
        drawn: Tensor = self._decoder(model, y, context).sample()
        return drawn

    def _of(self, lead: Sequence[int]) -> DiffusionModel:
        """The model of data (*lead, *event_shape) with their contexts, if there are any."""
        if self.context is None:
            return self.model
        shape = self.model.context.shape  # type: ignore[union-attr]
        context = self.context.expand(torch.Size([*lead, *shape]))
        return self.model.given_context(context.reshape(-1, *shape))

    def _context(self, lead: Sequence[int]) -> Tensor | None:
        """c ~ p(c), (*lead, size), where the diffusion depends on one."""
        context = self.model.diffusion.context
        return None if context is None else context.draw(math.prod(lead)).reshape(*lead, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """A stochastic lower bound on log p(value), (*batch), nats."""
        if self._validate_args:
            self._validate_sample(value)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        if self.context is None:
            self.model.check_given(value)
            return self.estimator(value.reshape(-1, *self.event_shape)).reshape(lead)
        lead = torch.broadcast_shapes(lead, self.batch_shape)
        x = value.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        return Estimator(self._of(lead), *self._options)(x).reshape(lead)

    def _decoder(self, model: DiffusionModel, y: Tensor, context: Tensor | None = None) -> Any:
        return model.likelihood(*model.given(context), y, len(self.event_shape))
