"""Networks that the ladder found to cost, or not to pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.base import ImageProblem
from pyro_mdm import DiscreteDenoiser, randomness
from pyro_mdm.levels import LevelCategorical, LevelDistribution
from pyro_mdm.networks import UNet
from pyro_mdm.scores.base import Number
from pyro_mdm.support.settings import Recorded

T = TypeVar("T")


class Fourier(nn.Module):
    """A network that also sees sin and cos of z with periods of two levels and of one (VDM)."""

    def __init__(self, inputs: int, outputs: int, problem: ImageProblem, **options: Any) -> None:
        super().__init__()
        self.network = UNet(5 * inputs, outputs, **options)
        gap = 2 / (problem.num_levels - 1)
        self.rates = [math.pi / gap, 2 * math.pi / gap]
        x = problem.fit_x().double()
        mean, variance = x.mean(0), x.var(0)
        self.register_buffer("mean", mean.float())
        self.register_buffer("variance", variance.clamp_min(0.5 * variance.mean()).float())

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        v = torch.exp(-log_snr).reshape(-1, *[1] * (x.dim() - 1))
        z = self.mean + x * (self.variance + v).sqrt()
        waves = [wave(rate * z) for rate in self.rates for wave in (torch.sin, torch.cos)]
        out: Tensor = self.network(torch.cat([x, *waves], 1), log_snr)
        return out


class SelfConditioned(nn.Module):
    """A network that sees what it has said itself, of the same z; in training half of the time.

    It stays a function of z and log SNR, so that the bound stays one, of two calls.
    """

    def __init__(self, inputs: int, outputs: int, problem: ImageProblem, **options: Any) -> None:
        super().__init__()
        self.network = UNet(inputs + outputs, outputs, **options)
        self.outputs = outputs

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        said = x.new_zeros(len(x), self.outputs, *x.shape[2:])
        if not self.training or torch.rand(()) < 0.5:
            with torch.no_grad():
                said = self.network(torch.cat([x, said], 1), log_snr).tanh()
        out: Tensor = self.network(torch.cat([x, said], 1), log_snr)
        return out


class Ensemble(Recorded, nn.Module):
    """Networks that are trained apart, each on its part of every batch, and averaged in use.

    In training row i of a call is the i mod M-th member's alone, so that a step costs what one
    member's does. In evaluation mode the output is the average of all of them, and costs M calls.
    Where an average of outputs means nothing, as of mixtures, :class:`MeanDenoiser` asks for each
    in turn, see :meth:`only`. What one member has learned by heart of few data is not what another
    has.

    Args:
        members: M networks, called alike.

    Call: as of each member.

    Raises:
        ValueError: no members.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not len(self.members):
            raise ValueError("members is empty, expected networks, e.g. [UNet(1), UNet(1)]")
        self.context_size = int(getattr(self.members[0], "context_size", 0))
        self._only: int | None = None

    @contextmanager
    def only(self, member: int) -> Iterator[None]:
        """In here, in evaluation mode, it is that member alone."""
        self._only = member
        try:
            yield
        finally:
            self._only = None

    def forward(self, x: Tensor, log_snr: Tensor, *context: Tensor) -> Tensor:
        M = len(self.members)
        if not self.training and self._only is not None:
            alone: Tensor = self.members[self._only](x, log_snr, *context)
            return alone
        if not self.training:
            return torch.stack([member(x, log_snr, *context) for member in self.members]).mean(0)
        rows = [torch.arange(i, len(x), M, device=x.device) for i in range(min(M, len(x)))]
        parts = [
            member(x[mine], log_snr[mine], *(c[mine] for c in context))
            for member, mine in zip(self.members, rows, strict=False)
        ]
        return torch.cat(parts)[torch.cat(rows).argsort()]


def places_of(height: int, width: int) -> Tensor:
    """Row and column of each pixel, from -1 to 1, (2, H, W)."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


class Located(Recorded, nn.Module):
    """A network of images that sees where each of their pixels is, in two more channels.

    Images that were turned or moved may be told from others by it: it is for training on both, see
    :meth:`told`. Otherwise a pixel is where it is: row and column from -1 to 1.

    Args:
        network: called with (n, C + 2, H, W), log SNR (n,) and contexts.
        height, width: H and W.

    Call: as of the network, with two channels less.
    """

    own: Tensor

    def __init__(self, network: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("own", places_of(height, width), persistent=False)
        self.context_size = int(getattr(network, "context_size", 0))
        self._told: Tensor | None = None

    @contextmanager
    def told(self, places: Tensor) -> Iterator[None]:
        """Where pixels come from, (n, 2, H, W), of the data that it is called with in here.

        Several calls in one have all data in turn, or those of :func:`randomness.rows_asked`.

        Raises, from the call:
            ValueError: another number of data.
        """
        self._told = places
        try:
            yield
        finally:
            self._told = None

    def forward(self, x: Tensor, log_snr: Tensor, *context: Tensor) -> Tensor:
        if self._told is None:
            places = self.own.expand(len(x), -1, -1, -1)
        else:
            places = self._of_rows(self._told, len(x))
        found: Tensor = self.network(torch.cat([x, places.to(x.dtype)], 1), log_snr, *context)
        return found

    def _of_rows(self, told: Tensor, n: int) -> Tensor:
        rows = randomness.rows_asked()
        if rows is not None and len(rows) == n:
            return told[rows]
        if n % len(told):
            raise ValueError(
                f"the network is called with {n} images and told where the pixels of {len(told)} "
                "come from; expected as many, or a multiple of them"
            )
        return told.repeat(n // len(told), 1, 1, 1)


class MeanDenoiser(DiscreteDenoiser):
    """A discrete denoiser whose law is the mean of those of the members of its :class:`Ensemble`.

    The mean of probabilities is meant, as components of one member's mixture are not those of
    another's. In training a row is one member's, as ever.
    """

    def x_hat(self, z: Tensor, log_snr: Number) -> Tensor:
        return torch.stack(self._each(lambda: super(MeanDenoiser, self).x_hat(z, log_snr))).mean(0)

    def posterior(self, z: Tensor, log_snr: Number) -> LevelDistribution:
        laws = self._each(lambda: super(MeanDenoiser, self).posterior(z, log_snr))
        mean = torch.stack([law.log_probs() for law in laws]).logsumexp(0) - math.log(len(laws))
        return LevelCategorical(self.levels, mean, laws[0].event_dim)

    def _each(self, say: Callable[[], T]) -> list[T]:
        if self.network.training:
            return [say()]
        (ensemble,) = (part for part in self.network.modules() if isinstance(part, Ensemble))
        said = []
        for member in range(len(ensemble.members)):
            with ensemble.only(member):
                said.append(say())
        return said


def several(number: int) -> Callable[..., Ensemble]:
    """Makes as many U-Nets in place of one."""

    def made(inputs: int, outputs: int, problem: ImageProblem, **options: Any) -> Ensemble:
        return Ensemble([UNet(inputs, outputs, **options) for _ in range(number)])

    return made


def located(inputs: int, outputs: int, problem: ImageProblem, **options: Any) -> Located:
    """A U-Net that sees where pixels are."""
    return Located(UNet(inputs + 2, outputs, **options), *problem.event_shape[1:])
