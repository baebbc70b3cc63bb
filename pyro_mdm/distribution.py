"""A trained model as a distribution, for somebody else's Pyro program."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, get_args

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mdm import randomness
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.paths.divergence import path_divergence
from pyro_mdm.paths.flow import Solver, flow_log_prob
from pyro_mdm.support.checks import check_count, check_instance

__all__ = ["MDM"]

Method = Literal["elbo", "flow"]


class MDM(TorchDistribution):
    r"""The data that a model generates, ``pyro.sample("x", MDM(model))``: a prior of a program.

    ``sample`` runs the model's sampler and decoder. ``log_prob`` is a stochastic lower bound on
    log p(x), differentiable in x and in the model, so that a variational bound that it is part of
    stays a bound:

    - ``"elbo"``: one estimate of the evidence lower bound, a network call for each draw;
    - ``"flow"``: by the probability-flow ODE from one draw of y_ε, hundreds of calls. Its noise is
      that of the start alone, and so is its bound's gap.

    Args:
        model: a trained model in continuous time; put it in eval mode and freeze it,
            ``model.eval().requires_grad_(False)``, if it is not to be trained further.
        method: of ``log_prob``.
        draws: estimates that are averaged.
        seed: fixes the draws: ``log_prob`` is then a function, the same at every call.
        solver: of the ODE.
        batch_shape: as of any distribution.

    Raises:
        TypeError, ValueError: no model, a chain on a grid, a method that there is not.

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
    has_rsample = False

    def __init__(
        self,
        model: DiffusionModel,
        *,
        method: Method = "elbo",
        draws: int = 1,
        seed: int | None = None,
        solver: Solver | None = None,
        batch_shape: torch.Size | tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        check_instance(
            "model", model, DiffusionModel, "e.g. DiffusionModel.from_pretrained(folder)"
        )
        if model.times is not None:
            raise ValueError(
                "model is a chain on a grid, expected a model in continuous time; leave out times"
            )
        if method not in get_args(Method):
            raise ValueError(f"method is {method!r}, expected one of {', '.join(get_args(Method))}")
        check_count("draws", draws, "the number of estimates that are averaged")
        self.model, self.method, self.draws, self.seed = model, method, draws, seed
        self.solver = Solver() if solver is None else solver
        self.guide = DiffusionGuide(model.diffusion)
        super().__init__(torch.Size(batch_shape), model.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> MDM:
        new = self._get_checked_instance(MDM, _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Data (*sample_shape, *batch_shape, *event_shape)."""
        model = self.model
        path = model.path_law().expand(self.batch_shape).sample(torch.Size(sample_shape))
        y = path.select(-2 - len(self.event_shape), 0)
        law = model.likelihood(model.diffusion, model.score_function, y, len(self.event_shape))
        drawn: Tensor = law.sample()
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """A stochastic lower bound on log p(value), (*batch), nats."""
        if self._validate_args:
            self._validate_sample(value)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        x = value.reshape(-1, *self.event_shape)
        estimate = self._bound if self.method == "elbo" else self._flow
        with self._draws():
            found = torch.stack([estimate(x) for _ in range(self.draws)]).mean(0)
        return found.to(value.dtype).expand(len(x)).reshape(lead)

    def _draws(self) -> AbstractContextManager[None]:
        return nullcontext() if self.seed is None else randomness.piece(0, 1, self.seed)

    def _bound(self, x: Tensor) -> Tensor:
        noising = self.guide.law(x)
        path = noising.rsample()
        kl = path_divergence(noising, self.model.path_law(), path)
        return self._decoded(noising.states(path)[0], x) - kl.prior - kl.diffusion

    def _flow(self, x: Tensor) -> Tensor:
        noising = self.guide.law(x.double())
        path = noising.rsample()
        (y,) = noising.states(path)
        found = flow_log_prob(self.model.diffusion, self.model.score_function, y, self.solver)
        return found.log_prob + self._decoded(y.to(x.dtype), x) - noising.log_prob(path)

    def _decoded(self, y: Tensor, x: Tensor) -> Tensor:
        model = self.model
        law = model.likelihood(model.diffusion, model.score_function, y, x.dim() - 1)
        found: Tensor = law.log_prob(x)
        return found
