"""Kinds of context: labels, vectors, and what an encoder of one's own reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_mdm.contexts import GivenContext
from pyro_mdm.support.checks import check_count, check_instance, real_tensor

__all__ = ["EncodedContext", "Labels", "Vectors"]


class Labels(GivenContext):
    """Labels of ``num_classes`` classes, whole numbers 0, 1, …; -1 for an unknown one.

    Args:
        num_classes: number of classes, at least 2.
        dropout: fraction of the data whose label is hidden in training
            (:class:`~pyro_mdm.contexts.GivenContext`).

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
        dropout: fraction of the data whose vector is hidden in training
            (:class:`~pyro_mdm.contexts.GivenContext`).

    Raises:
        ValueError: means and scales of another shape, that are not finite in float32, or scales
            that are not positive there.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: object, scale: object, dropout: float = 0.0) -> None:
        mean, scale = (real_tensor(n, v, "(m,)") for n, v in (("mean", mean), ("scale", scale)))
        if mean.dim() != 1 or mean.shape != scale.shape:
            raise ValueError(
                f"mean has shape {tuple(mean.shape)} and scale {tuple(scale.shape)}, expected both "
                "(m,); Vectors.fit(contexts) finds them"
            )
        _check_moment("mean", mean, mean.float().isfinite())
        _check_moment("scale", scale, scale.float().isfinite() & (scale.float() > 0))
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
        return cls(rows.mean(0), torch.where(spread.float() > 0, spread, 1.0), dropout)

    def check(self, context: object) -> Tensor:
        c = torch.as_tensor(context)
        refused = c.is_complex() or c.dtype == torch.bool
        return super().check(c if refused else c.to(self.mean))

    def numbers(self, context: Tensor) -> Tensor:
        scaled = (context - self.mean) / self.scale
        # the last 1 distinguishes a context at the mean from an unknown one, which is all 0
        return torch.cat([scaled, torch.ones_like(scaled[:, :1])], -1)


def _check_moment(name: str, values: Tensor, right: Tensor) -> None:
    """Raises ValueError with the first of the values (m,) that is not right."""
    if not bool(right.all()):
        i = int((~right).nonzero()[0])
        kind = "finite" if name == "mean" else "finite and above 0"
        raise ValueError(
            f"{name}[{i}] is {float(values[i]):g}, expected a number that is {kind} in float32; "
            "Vectors.fit(contexts) finds it, if contexts are in units of such numbers"
        )


class EncodedContext(GivenContext):
    """Contexts of any shape, encoded by a module of your own, which is trained with the model.

    Args:
        encoder: module from contexts, (n, *shape), to encodings, (n, size).
        size: width of the encodings.
        shape: shape of one context.
        dropout: fraction of the data whose context is hidden in training
            (:class:`~pyro_mdm.contexts.GivenContext`). An unknown context is NaN, or -1 where
            contexts are whole numbers, in all its entries.
        whole: whether contexts are whole numbers, such as tokens.

    Raises:
        TypeError, ValueError: a shape that is none, or another argument of another kind.
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
        fix = "give tuple(contexts.shape[1:])"
        check_instance("shape", shape, (tuple, list), fix)
        for i, number in enumerate(shape):
            check_count(f"shape[{i}]", number, f"a size of one context; {fix}")
        check_instance("whole", whole, bool, "True for whole numbers, such as tokens")
        super().__init__(tuple(map(int, shape)), size + 1, dropout, whole=whole)
        self.encoder = encoder

    def arguments(self) -> dict[str, object]:
        return super().arguments() | {"shape": list(self.shape)}

    def numbers(self, context: Tensor) -> Tensor:
        encoding: Tensor = self.encoder(context)
        if encoding.dim() != 2:
            return encoding  # encode() reports the shape
        # the last 1 distinguishes an encoding of 0 from an unknown context
        return torch.cat([encoding, torch.ones_like(encoding[:, :1])], -1)
