r"""Diffusions that depend on a latent context c of each datum, with q(c | x) and a prior p(c).

Given c the noising process is linear, with a clock for each data dimension: the guide chooses by
datum when each dimension is noised. The context is a site of both programs, and KL(q(c | x) ‖ p(c))
is a term of the bound. Given c paths are Markov, and x enters through their start and c alone, so
that the bound can be tight.

Source: Sahoo et al., "Diffusion Models With Learned Adaptive Noise", NeurIPS 2024, for one variable
and a Gaussian or discrete context; here for K variables.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

import pyro_mdm.randomness as randomness
from pyro_mdm.by_dimension.clocks import Clocks, LearnedClocks
from pyro_mdm.by_dimension.per_dimension import PerDimensionDiffusion
from pyro_mdm.diffusions.base import Cap, Marginal, remade, typical
from pyro_mdm.diffusions.clocks import LogSNR, TimeChange
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.seeing.encoded import check_encoded
from pyro_mdm.support.checks import (
    Count,
    check_count,
    check_instance,
    check_number,
    checked_arguments,
)
from pyro_mdm.support.modules import Exact
from pyro_mdm.support.settings import Restorable, described

__all__ = ["Context", "ContextClocks", "ContextDiffusion", "DiscreteContext", "GaussianContext"]


class Context(Restorable, Exact, ABC):
    """A latent context c of each datum, a vector, with its distributions in guide and model.

    Args:
        encoder: module called with data, (n, *event_shape), whose output gives :meth:`posterior`.
        size: number of entries of c.
    """

    reparameterized: ClassVar[bool] = True
    """Whether draws of q(c | x) are differentiable in its parameters."""

    def __init__(self, encoder: nn.Module, size: int) -> None:
        super().__init__()
        check_instance("encoder", encoder, nn.Module, "called as encoder(x)")
        check_count("size", size, "how many numbers a context has")
        self.encoder, self.size = encoder, size

    @abstractmethod
    def posterior(self, x: Tensor, event_dim: int | None = None) -> TorchDistributionMixin:
        """q(c | x), with batch shape (*batch) and event shape (size,).

        Args:
            x: data, (*batch, *event_shape).
            event_dim: number of dimensions of a datum; by default all of x's but the first.
        """

    @abstractmethod
    def drawn(self, law: Any) -> Tensor:
        """A draw of q(c | x), (n, size), by :mod:`pyro_mdm.randomness`.

        It is differentiable if :attr:`reparameterized`.

        Args:
            law: distribution from :meth:`posterior`.
        """

    @abstractmethod
    def typical(self, x: Tensor) -> Tensor:
        """The centre of q(c | x), (n, size), for pictures."""

    @abstractmethod
    def prior(self) -> TorchDistributionMixin:
        """p(c), with batch shape () and event shape (size,)."""

    @abstractmethod
    @checked_arguments
    def draw(self, n: int) -> Tensor:
        """n draws of p(c), (n, size), float32.

        The i-th is the same however many are drawn (:func:`pyro_mdm.randomness.stream`).
        """

    def encoded(self, x: Tensor, outputs: int, event_dim: int | None = None) -> Tensor:
        """The encoder's output, (*batch, outputs), for data (*batch, *event_shape); checked."""
        batch_dim = 1 if event_dim is None else x.dim() - event_dim
        flat = x.reshape(-1, *x.shape[batch_dim:])
        dtype = next((p.dtype for p in self.encoder.parameters()), x.dtype)
        out: Tensor = self.encoder(flat.to(dtype))
        check_encoded(self.encoder, flat, out, (len(flat), outputs))
        return out.reshape(*x.shape[:batch_dim], outputs)

    def settings(self) -> dict[str, object]:
        return {"size": self.size}


class GaussianContext(Context):
    """q(c | x) = N(μ(x), diag σ(x)²), p(c) = N(0, I).

    Args:
        encoder: module called with data, (n, *event_shape), which returns (n, 2·size): μ, then
            log σ, which is clamped to ± 10.
        size: number of entries of c.
    """

    @checked_arguments
    def posterior(self, x: Tensor, event_dim: int | None = None) -> TorchDistributionMixin:
        mean, log_scale = self.encoded(x, 2 * self.size, event_dim).chunk(2, -1)
        scale = log_scale.clamp(-10, 10).exp()  # so that σ and 1/σ² are finite from the start
        law: TorchDistributionMixin = dist.Normal(mean, scale).to_event(1)
        return law

    def drawn(self, law: Any) -> Tensor:
        mean = law.mean
        noise = randomness.normal(mean.shape, mean.dtype, mean.device)
        c: Tensor = mean + law.stddev * noise
        return c

    def typical(self, x: Tensor) -> Tensor:
        law: Any = self.posterior(x)
        mean: Tensor = law.mean
        return mean

    def prior(self) -> TorchDistributionMixin:
        zero = torch.zeros(self.size, device=self._device())
        law: TorchDistributionMixin = dist.Normal(zero, torch.ones_like(zero)).to_event(1)
        return law

    @checked_arguments
    def draw(self, n: Count) -> Tensor:
        return randomness.for_data(
            lambda shape, generator: torch.randn(*shape, generator=generator),
            (n, self.size),
            self._device(),
        )

    def _device(self) -> torch.device:
        return next((p.device for p in self.encoder.parameters()), torch.device("cpu"))


class DiscreteContext(Context):
    """A context with one of ``size`` values, one-hot; p(c) is learned and starts uniform.

    Gradients are score-function estimates, whose baseline is the bound at a second draw of c under
    the same noise; see :class:`~pyro_mdm.MDM_ELBO`.

    Args:
        encoder: module called with data, (n, *event_shape), which returns the logits of q(c | x),
            (n, size).
        size: number of values, at least 2.
    """

    reparameterized = False

    def __init__(self, encoder: nn.Module, size: int) -> None:
        check_count("size", size, "the number of values of a discrete context", 2)
        super().__init__(encoder, size)
        self.logits = nn.Parameter(torch.zeros(size))

    def posterior(self, x: Tensor, event_dim: int | None = None) -> TorchDistributionMixin:
        logits = self.encoded(x, self.size, event_dim)
        return dist.OneHotCategorical(logits=logits)

    def drawn(self, law: Any) -> Tensor:
        probs = law.probs.detach()
        u = randomness.uniform((len(probs), 1), probs.dtype, probs.device)
        # clamped: rounding may leave the sum of probabilities below u
        value = (probs.cumsum(-1) < u).sum(-1).clamp_max(self.size - 1)
        return nn.functional.one_hot(value, self.size).to(probs)

    def typical(self, x: Tensor) -> Tensor:
        law: Any = self.posterior(x)
        return nn.functional.one_hot(law.probs.argmax(-1), self.size).to(law.probs)

    def prior(self) -> TorchDistributionMixin:
        return dist.OneHotCategorical(logits=self.logits)

    def draw(self, n: int) -> Tensor:
        u = randomness.for_data(
            lambda shape, generator: torch.rand(*shape, generator=generator),
            (n,),
            self.logits.device,
        )
        below = self.logits.detach().softmax(-1).cumsum(-1)
        value = torch.searchsorted(below, u).clamp_max(self.size - 1)
        return nn.functional.one_hot(value, self.size).float()


class ContextClocks(Clocks):
    """Learned clocks (:class:`LearnedClocks`) whose weights are a function of the context.

    :meth:`given` evaluates them. All start as the common clock.

    Args:
        number: number of clocks.
        context_size: number of entries of c.
        degree: degree of the rates' polynomials, as for :class:`LearnedClocks`.
        floor: least weight, as a fraction of an even share, as for :class:`LearnedClocks`.
        width: width of the hidden layer between the context and the weights.
    """

    @checked_arguments
    def __init__(
        self,
        number: Count,
        context_size: Count,
        degree: Count = 4,
        floor: float = 0.05,
        width: Count = 32,
    ) -> None:
        super().__init__()
        if not 0 < check_number("floor", floor, "a part of an even share, e.g. 0.05") < 1:
            raise ValueError(f"floor is {floor}, expected a number between 0 and 1")
        self.number, self.degree, self.floor = number, degree, float(floor)
        last = nn.Linear(width, number * (degree + 1), dtype=torch.float64)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        first = nn.Linear(context_size, width, dtype=torch.float64)
        self.layers = nn.Sequential(first, nn.Tanh(), last)

    def given(self, context: Tensor) -> RowClocks:
        """The clocks of n data with contexts (n, size)."""
        weight: Any = self.layers[0].weight
        logits = self.layers(context.to(weight))
        logits = logits.unflatten(-1, (self.number, self.degree + 1))
        return RowClocks(LearnedClocks.mixed(logits, self.floor))

    def forward(self, u: Tensor) -> Tensor:
        raise ValueError(_NO_CONTEXT)

    def rate(self, u: Tensor) -> Tensor:
        raise ValueError(_NO_CONTEXT)


_NO_CONTEXT = (
    "the clocks of the diffusion depend on a context, which is not given; use "
    "diffusion.given(context), with contexts (n, size) of n data"
)


class RowClocks(Clocks):
    """Clocks of each of n data: (…, n, number) at u (…, n), or at u (…, 1) for all data.

    Args:
        weights: weights of the polynomials, (n, number, degree + 1), with sums of 1 over the last.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights, self.number = weights, weights.shape[1]

    def forward(self, u: Tensor) -> Tensor:
        return self._of_rows(LearnedClocks.integrals(u, self.weights.shape[-1] - 1))

    def rate(self, u: Tensor) -> Tensor:
        degree = self.weights.shape[-1] - 1
        return (degree + 1) * self._of_rows(LearnedClocks.bernstein(u, degree))

    def _of_rows(self, basis: Tensor) -> Tensor:
        return (basis.unsqueeze(-2) @ self.weights.mT).squeeze(-2)


class ContextDiffusion(PerDimensionDiffusion):
    """A linear diffusion with a clock for each data dimension, chosen by a latent context.

    The programs draw the context at the site ``"context"`` (*batch, size) and use the diffusion
    that :meth:`given` returns. Every clock ends where the block's does, whatever the context, so
    that the decoder, the prior and their terms do not depend on it.

    Args:
        block: linear diffusion that all dimensions run.
        context: distributions of c in guide and model.
        clocks: clocks as functions of c.
        clock_of: index of each dimension's clock, (*event_shape) int64.

    Raises:
        TypeError: a part of another type.
        ValueError: clocks of contexts of another size, indices of no clock; without a context,
            kernels between the two ends.
    """

    _networks = ("_coordinates", "context")
    _usual_caps = frozenset({Cap.KERNELS})

    @checked_arguments
    def __init__(
        self, block: LinearDiffusion, context: Context, clocks: ContextClocks, clock_of: Tensor
    ) -> None:
        super().__init__(block, None, clocks, clock_of)
        first: Any = clocks.layers[0]
        if first.in_features != context.size:
            raise ValueError(
                f"clocks are of contexts of {first.in_features} numbers, and the context has "
                f"{context.size}; make them with ContextClocks(number, {context.size})"
            )
        self._modules["context"] = context

    @property
    def context(self) -> Context | None:
        """The distributions of the context; None once a context is given."""
        return cast("Context | None", self._modules.get("context"))

    def given(self, context: Tensor) -> ContextDiffusion:
        """The diffusion of n data given their contexts.

        It shares the block's parameters and is differentiable in the context. Times are (…, n), or
        (…, 1) for all data.

        Args:
            context: contexts, (*batch, size), whose batch has n data.
        """
        clocks: Any = self.clocks
        of_rows = clocks.given(context.reshape(-1, context.shape[-1]))
        cells = dataclasses.replace(self.cells, clocks=of_rows, _kept={})
        return remade(self, clocks=of_rows, cells=cells, context=None)

    @property
    def origin(self) -> ContextDiffusion:
        """The diffusion before :meth:`given`; itself, if no contexts are given."""
        return cast(ContextDiffusion, self.made_from or self)

    @property
    def way(self) -> TimeChange:
        """Log SNR of the block, which is common to all data."""
        return LogSNR(self)

    @property
    def terminal(self) -> Marginal:
        """The marginal at T, batch (1, *event_shape); it does not depend on the context."""
        marginal: Marginal = self.of_blocks("terminal")
        return marginal

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """The log SNRs − the common one at three times from ε to T, at typical contexts.

        Args:
            x: data in model space, (n, *event_shape).
        """
        at_typical = typical(self, x)
        u = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        maps = at_typical.level(u[:, None]).log_snr
        common = self.max_log_snr - u * (self.max_log_snr - self.terminal_log_snr)
        apart = maps - common.reshape(-1, *[1] * (maps.dim() - 1))
        return {"log SNR less the common one": apart.expand(3, *x.shape)}

    def settings(self) -> dict[str, object]:
        return super().settings() | {"context": described(self.context)}
