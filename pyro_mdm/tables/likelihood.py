"""Decoders of vectors with dimensions of several kinds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.levels.discrete import LevelSupport
from pyro_mdm.likelihoods.base import (
    DecoderDistribution,
    Likelihood,
    StateScore,
    log_prob_by_dimension,
)
from pyro_mdm.support.checks import checked_arguments
from pyro_mdm.support.modules import cached_on
from pyro_mdm.tables.one_hot import require_data

__all__ = ["MixedDecoder", "MixedLikelihood", "Parts"]


class Parts:
    """The dimensions of a vector split into parts, each in the order of the whole, by the part of
    each dimension, (d,) int64, as :meth:`checked` returns it."""

    def __init__(self, part_of: Tensor) -> None:
        count = int(part_of.max()) + 1
        self.number = len(part_of)
        self.dims = [(part_of == p).nonzero().squeeze(1) for p in range(count)]
        self._order = torch.cat(self.dims).argsort()

    @staticmethod
    def checked(part_of: object, count: int) -> Tensor:
        """The part of each dimension as a tensor, (d,) int64; ValueError unless they are all
        numbers from 0 to ``count`` - 1."""
        parts = torch.as_tensor(part_of)
        if parts.dim() != 1 or parts.unique().tolist() != list(range(count)):
            raise ValueError(
                f"part_of is {parts.tolist()}, expected the number of a part for each dimension, "
                f"with every one of the {count} parts 0 … {count - 1}"
            )
        return parts.to(torch.int64)

    def split(self, x: Tensor) -> list[Tensor]:
        """The dimensions of each part, (…, d_p), of x, (…, d)."""
        return [x[..., dims] for dims in self.dims]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole, (…, d), of its parts, (…, d_p), in the dtype of the first."""
        return torch.cat([piece.to(parts[0].dtype) for piece in parts], -1)[..., self._order]


class MixedLikelihood(Likelihood):
    """A decoder p(x | y_ε) of independent dimensions, each by the decoder of its part.

    Args:
        parts: decoders of vectors that do not call the network.
        part_of: the index of the part of each dimension, (d,) int64.

    Raises:
        ValueError: a part without a dimension, an index of no part. On call: a diffusion with
            clocks by dimension.
    """

    part_of: Tensor

    @checked_arguments
    def __init__(self, parts: Sequence[Likelihood], part_of: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.register_buffer("part_of", Parts.checked(part_of, len(self.parts)))

    def arguments(self) -> dict[str, object]:
        return {"parts": list(self.parts), "part_of": self.part_of}

    def forward(
        self, diffusion: Diffusion, score: StateScore, y: Tensor, event_dim: int | None = None
    ) -> MixedDecoder:
        require_data(diffusion, self)
        dims = cached_on(self.part_of, "parts", Parts)
        states = dims.split(diffusion.paths.without_displacement(y, 1))
        pieces = zip(self.parts, states, strict=True)
        base = diffusion.reference  # without a displacement by the data
        return MixedDecoder([decoder(base, score, x.to(y), 1) for decoder, x in pieces], dims)


class MixedDecoder(DecoderDistribution):
    """A distribution of independent dimensions of several kinds: of each part, with batch shape
    (*batch) and event shape (d_p,)."""

    def __init__(self, laws: Sequence[TorchDistribution], dims: Parts) -> None:
        self._laws, self._dims = list(laws), dims
        shape = torch.Size((dims.number,))
        super().__init__(self._laws[0].batch_shape, shape, validate_args=False)

    def expand(
        self, batch_shape: Sequence[int], _instance: MixedDecoder | None = None
    ) -> MixedDecoder:
        new = super().expand(batch_shape, _instance)
        new._laws = [law.expand(torch.Size(batch_shape)) for law in self._laws]
        return new

    @property
    def support(self) -> constraints.Constraint:
        """The levels in dimensions that have some, the real numbers in the others."""
        levels: list[Tensor | None] = [None] * self._dims.number
        for law, dims in zip(self._laws, self._dims.dims, strict=True):
            for j in dims.tolist():
                levels[j] = getattr(law, "levels", None)
        if all(column is None for column in levels):
            return super().support
        return constraints.independent(LevelSupport(levels), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x | y_ε), nats, (*sample, *batch), for x, (*sample, *batch, d)."""
        return self.log_prob_by_dimension(value).sum(-1).to(value.dtype)

    def log_prob_by_dimension(self, value: Tensor) -> Tensor:
        """log p(x_j | y_ε), nats, like x: a density or a probability, by the kind of j."""
        self.check_event(value)
        pieces = zip(self._laws, self._dims.split(value), strict=True)
        return self._dims.join([log_prob_by_dimension(law, x) for law, x in pieces])

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Samples of x, (*sample_shape, *batch, d)."""
        return self._dims.join([law.sample(torch.Size(sample_shape)) for law in self._laws])
