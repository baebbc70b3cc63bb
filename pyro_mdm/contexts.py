r"""Contexts: information c about each datum, and its encoding for a network.

A model of x given c is a :class:`~pyro_mdm.DiffusionModel` with a ``context``, of a kind in
:mod:`pyro_mdm.conditioning`. c is the second argument of both programs, ``svi.step(x, c)``, and the
bound is one on log p(x | c). For samples and bounds at a known c, use :func:`~pyro_mdm.condition`.

A network receives c as ``size`` numbers: as further channels of its inputs after the others, the
same for all pixels. A network of your own with an attribute ``context_size`` is called as
``network(inputs, log_snr, context)`` instead, with context (n, context_size).

An unknown c is a context too (``unknown``), given to the network as zeros, which learns it from
data without c, or by ``dropout``. Then it is a model of x as well
(:meth:`~pyro_mdm.DiffusionModel.without_context`), and samples can be guided
(:class:`~pyro_mdm.conditioning.Guided`; Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

import pyro_mdm.randomness as randomness
from pyro_mdm.support.checks import check_number, describe, tensor_device
from pyro_mdm.support.settings import Restorable

__all__ = ["GivenContext"]


class GivenContext(Restorable, nn.Module, ABC):
    """A context c of each datum, of shape (*batch, *shape), and its encoding for a network.

    Args:
        shape: shape of one c.
        size: width of the encoding that the network receives.
        dropout: fraction of the data, in [0, 1), whose c is hidden from the network in training.
            Their share of the objective is a bound on log p(x). At 0 every c must be known.
        whole: whether contexts are whole numbers. An unknown one is then -1, else NaN.

    Raises:
        ValueError: a dropout that is not in [0, 1).
    """

    def __init__(
        self, shape: tuple[int, ...], size: int, dropout: float = 0.0, *, whole: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= check_number("dropout", dropout, "a part of the data, e.g. 0.1") < 1:
            raise ValueError(f"dropout is {dropout}, expected a number in [0, 1), e.g. 0.1")
        self.shape, self.size, self.dropout, self.whole = shape, size, float(dropout), whole

    @property
    def unknown(self) -> Tensor:
        """The value that stands for an unknown c, (*shape)."""
        return torch.full(self.shape, -1) if self.whole else torch.full(self.shape, math.nan)

    def is_known(self, context: Tensor) -> Tensor:
        """Whether c is known, bool (n,), for contexts (n, *shape)."""
        flat = context.reshape(len(context), math.prod(self.shape))
        return ~(flat == -1).all(-1) if self.whole else flat.isfinite().all(-1)

    @abstractmethod
    def numbers(self, context: Tensor) -> Tensor:
        """The encoding (n, size) of known contexts (n, *shape)."""

    def check(self, context: object) -> Tensor:
        """Contexts (*batch, *shape) as a tensor.

        Raises:
            TypeError, ValueError: another kind of value, another shape, or values that c cannot
                have.
        """
        c, k = torch.as_tensor(context), len(self.shape)
        shape = f"({', '.join(['*batch', *map(str, self.shape)])})"
        if tuple(c.shape[max(c.dim() - k, 0) :]) != self.shape:
            raise ValueError(
                f"context has shape {tuple(c.shape)}, expected {shape}; one for each datum, or one "
                "for all"
            )
        if self.whole == c.is_floating_point() or c.is_complex() or c.dtype == torch.bool:
            raise TypeError(
                f"context is {describe(context)} of {c.dtype}, expected {self.kind} {shape}"
            )
        c = c.to(tensor_device(self) or c.device)
        rows = c.reshape(*c.shape[: c.dim() - k], math.prod(self.shape))
        if bad := int((~(rows.isfinite().all(-1) | rows.isnan().all(-1))).sum()):
            raise ValueError(
                f"{bad} contexts have entries that are not finite beside others that are; give "
                "finite numbers, or NaN in all entries of a context that is not known"
            )
        return c

    @property
    def kind(self) -> str:
        """The kind of its values, in words."""
        return "whole numbers" if self.whole else "real numbers"

    def encode(self, context: object) -> Tensor:
        """The encoding (*batch, size) of contexts (*batch, *shape); 0 for an unknown one.

        Raises:
            TypeError, ValueError: invalid contexts; an unknown one without dropout.
        """
        c = self.check(context)
        batch = c.shape[: c.dim() - len(self.shape)]
        flat = c.reshape(-1, *self.shape)
        is_known = self.is_known(flat)
        if not self.dropout and not bool(is_known.all()):
            raise ValueError(
                f"the context of {int((~is_known).sum())} of {len(flat)} data is not known, and "
                f"the network always knew it; make the model with {type(self).__name__}(…, "
                "dropout=0.1) and train it again"
            )
        # an unknown c never reaches the encoder: its NaN times 0 would be NaN
        encoding = self.numbers(torch.where(is_known.view(-1, *[1] * len(self.shape)), flat, 0))
        if encoding.shape != (len(flat), self.size):
            raise ValueError(
                f"the encoding of {len(flat)} contexts has shape {tuple(encoding.shape)}, expected "
                f"({len(flat)}, {self.size}); give {type(self).__name__} the size of its encoder"
            )
        return (encoding * is_known.unsqueeze(-1).to(encoding)).reshape(*batch, self.size)

    def drop(self, encodings: Tensor) -> Tensor:
        """Encodings (n, size) with a random fraction ``dropout`` of the rows set to 0."""
        if not self.dropout:
            return encodings
        u = randomness.uniform((len(encodings), 1), encodings.dtype, encodings.device)
        return encodings * (u >= self.dropout).to(encodings)

    def settings(self) -> dict[str, object]:
        return {"size": self.size, "dropout": self.dropout}
