r"""Contexts: information c about each datum, and its encoding for a network.

A model of x given c is a :class:`~pyro_mdm.DiffusionModel` with a ``context``. c is the second
argument of both programs, ``svi.step(x, c)``, and the bound is one on log p(x | c). For samples and
bounds at a known c, use :func:`~pyro_mdm.condition`.

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
from pyro_mdm.support.checks import (
    check_count,
    check_instance,
    check_number,
    describe,
    real_tensor,
    tensor_device,
)
from pyro_mdm.support.settings import Restorable

__all__ = ["EncodedContext", "GivenContext", "Labels", "Vectors"]


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


class Labels(GivenContext):
    """Labels of ``num_classes`` classes, whole numbers 0, 1, …; -1 for an unknown one.

    Args:
        num_classes: number of classes, at least 2.
        dropout: fraction of the data whose label is hidden in training (:class:`GivenContext`).

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser, DiffusionModel, condition
        >>> from pyro_mdm.networks import MLP
        >>> x, labels = torch.randn(100, 3), torch.randint(4, (100,))
        >>> score = Denoiser.fit(MLP(3 + 4, out_features=3), x)
        >>> model = DiffusionModel(VPSDE(), score, context=Labels(4, dropout=0.1))
        >>> condition(model, context=2)(batch_size=5).shape
        torch.Size([5, 3])
    """

    def __init__(self, num_classes: int, dropout: float = 0.0) -> None:
        check_count("num_classes", num_classes, "the number of classes", 2)
        super().__init__((), num_classes, dropout, whole=True)
        self.num_classes = num_classes

    @property
    def kind(self) -> str:
        return f"labels from 0 to {self.num_classes - 1} (write labels.long()) of shape"

    def check(self, context: object) -> Tensor:
        labels = super().check(context).long()
        off = (labels < -1) | (labels >= self.num_classes)
        if bool(off.any()):
            raise ValueError(
                f"context has the label {int(labels[off][0])}, expected one of 0 to "
                f"{self.num_classes - 1}, or -1 where it is not known; make the model with "
                "Labels(num_classes) of all classes"
            )
        return labels

    def extra_repr(self) -> str:
        return f"{self.num_classes}, dropout={self.dropout:g}"

    def numbers(self, context: Tensor) -> Tensor:
        return nn.functional.one_hot(context, self.num_classes).float()


class Vectors(GivenContext):
    """Vectors of real numbers, encoded in units of their standard deviation; NaN if unknown.

    Args:
        mean: mean of the contexts, (m,). The encoding is (c - mean) / scale, and a 1.
        scale: standard deviation of the contexts, (m,), positive.
        dropout: fraction of the data whose vector is hidden in training (:class:`GivenContext`).

    Raises:
        ValueError: means and scales of another shape, or scales that are not positive.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: object, scale: object, dropout: float = 0.0) -> None:
        mean, scale = (real_tensor(n, v, "(m,)") for n, v in (("mean", mean), ("scale", scale)))
        if mean.dim() != 1 or mean.shape != scale.shape or not bool((scale > 0).all()):
            raise ValueError(
                f"mean has shape {tuple(mean.shape)} and scale {tuple(scale.shape)}, expected both "
                "(m,), and scale positive; Vectors.fit(contexts) finds them"
            )
        super().__init__(tuple(mean.shape), len(mean) + 1, dropout)
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", scale.float())

    @classmethod
    def fit(cls, contexts: Tensor, dropout: float = 0.0) -> Vectors:
        """Vectors with the mean and scale of contexts (n, m); rows with NaN are left out."""
        rows = real_tensor("contexts", contexts, "vectors (n, m) of training data")
        rows = rows[rows.isfinite().flatten(1).all(1)] if rows.dim() > 1 else rows
        if rows.dim() != 2 or len(rows) < 2:
            raise ValueError(
                f"contexts has shape {tuple(contexts.shape)}, expected (n, m) with at least two "
                "rows of finite numbers; give numbers as contexts[:, None]"
            )
        spread = rows.std(0)
        # an entry that never varies is encoded as 0 rather than 0/0
        return cls(rows.mean(0), torch.where(spread > 0, spread, 1.0), dropout)

    def check(self, context: object) -> Tensor:
        c = torch.as_tensor(context)
        refused = c.is_complex() or c.dtype == torch.bool
        return super().check(c if refused else c.to(self.mean))

    def numbers(self, context: Tensor) -> Tensor:
        scaled = (context - self.mean) / self.scale
        # the last 1 distinguishes a context at the mean from an unknown one, which is all 0
        return torch.cat([scaled, torch.ones_like(scaled[:, :1])], -1)


class EncodedContext(GivenContext):
    """Contexts of any shape, encoded by a module of your own, which is trained with the model.

    Args:
        encoder: module from contexts, (n, *shape), to encodings, (n, size).
        size: width of the encodings.
        shape: shape of one context.
        dropout: fraction of the data whose context is hidden in training (:class:`GivenContext`).
            An unknown context is NaN, or -1 where contexts are whole numbers, in all its entries.
        whole: whether contexts are whole numbers, such as tokens.
    """

    def __init__(
        self,
        encoder: nn.Module,
        size: int,
        shape: tuple[int, ...] | list[int],
        dropout: float = 0.0,
        *,
        whole: bool = False,
    ) -> None:
        check_instance("encoder", encoder, nn.Module, "called as encoder(context)")
        check_count("size", size, "how many numbers the encoder returns")
        super().__init__(tuple(shape), size + 1, dropout, whole=whole)
        self.encoder = encoder

    def arguments(self) -> dict[str, object]:
        return super().arguments() | {"shape": list(self.shape)}

    def numbers(self, context: Tensor) -> Tensor:
        encoding: Tensor = self.encoder(context)
        if encoding.dim() != 2:
            return encoding  # encode() reports the shape
        # the last 1 distinguishes an encoding of 0 from an unknown context
        return torch.cat([encoding, torch.ones_like(encoding[:, :1])], -1)
