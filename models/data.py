"""Data sets: reading data, splitting them into parts, and their contexts."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from models.checks import as_tensor, check_numbers, check_shape
from pyro_mdm.conditioning import Labels, Vectors
from pyro_mdm.contexts import GivenContext
from pyro_mdm.support.checks import DataError
from pyro_mdm.support.files import JsonObject
from pyro_mdm.support.splits import EVERY, Rows, split_rows

SHOWN_CLASSES = 20
"""The most classes whose numbers of test data are printed."""

PARTS = ("train", "validation", "test")

D = TypeVar("D", bound="DataSet")


@dataclass(frozen=True)
class Part:
    """A part of the data, as stored, (n, *event_shape), with contexts (n, …), if any."""

    data: Tensor
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: slice | Tensor) -> Part:
        return Part(self.data[rows], None if self.context is None else self.context[rows])


class DataSet(ABC):
    """Data, their split into parts, and their contexts.

    Subclasses define :meth:`load`, or :meth:`split` where the parts are official.

    A tenth of the data, drawn by ``split_seed``, is test. With ``holdout`` another tenth is kept
    from training for validation: choose settings there, never on test. Each class is split so,
    where data have labels; a class with a single datum is trained on. Official parts, such as a
    published test set, come from :meth:`split` instead of :meth:`load`::

        def split(self, holdout):
            train, test = …  # tensors or NumPy arrays
            end = len(train) - 5000 if holdout else len(train)
            return train[:end], train[end:], test

    Contexts, such as labels, are named in ``contexts`` and come from :meth:`load_context` (or
    :meth:`split_context`), in the order of the data.

    Args:
        holdout: whether to keep a validation part out of the training data.

    Attributes:
        train, validation, test: the data as stored, (n, *event_shape); uint8 for images.
            ``validation`` is empty without ``holdout``.
        rows: the indices of each part in the order of :meth:`load`; None for official parts.
        context: the way in which a network is given contexts, after :meth:`condition_on`; None
            before.

    Raises:
        TypeError: an attribute is missing, or data are neither tensor nor NumPy array.
        ValueError: data of another shape or type than the class declares, or no data.
    """

    name: str
    event_shape: tuple[int, ...]
    """The shape of a datum; without one, that of the training data."""

    contexts: ClassVar[tuple[str, ...]] = ()
    """The names of contexts of the data: those of whole numbers are labels, others vectors."""

    split_seed: int | None = 0
    """The seed of the split of data without official parts; :meth:`split_by` gives another.

    None splits by index: 0, 10, 20, … are test and 8, 18, 28, … validation."""

    facts: JsonObject | None = None
    """The properties of the data that a trained model needs beside its weights, as JSON, such as
    the levels and scales of columns; a run keeps them. None: all follow from the data."""

    exact: ClassVar[bool] = False
    """Whether its numbers are those of a file, to the last bit, on every machine. A run compares
    their bits then, and sums up to rounding where they are drawn or computed."""

    class_names: Sequence[str] | None = None
    """The names of the classes 0, 1, … that data are conditioned on; None: classes without
    names."""

    absent: str | None = None
    """The reason that the data could not be read, where :attr:`facts` serve without them; None:
    they were read."""

    strata: ClassVar[str] = "classes"
    """The name of the groups that data are split evenly over, in words."""

    needed: ClassVar[Mapping[str, str]] = {"name": "'mine'"}
    """Attributes that a class must have, with an example of each."""

    @classmethod
    def split_by(
        cls: type[D], split_seed: int | None, facts: JsonObject | None = None, **options: Any
    ) -> D:
        """The data set split by another seed than the class's.

        Args:
            split_seed: the seed of the split, see :attr:`split_seed`.
            facts: the facts of the data that a model was trained on, which replace those of the
                data; None: those of the data.
            options: arguments of the class, such as ``holdout``.
        """
        data = cls.__new__(cls)
        data.split_seed = split_seed
        if facts is not None:
            data.facts = facts
        cls.__init__(data, **options)
        return data

    def __init__(self, *, holdout: bool = False) -> None:
        for attribute, example in self.needed.items():
            if not hasattr(self, attribute):
                raise TypeError(
                    f"{type(self).__name__} has no {attribute}; give the class one, such as "
                    f"{attribute} = {example}"
                )
        self.holdout = holdout
        self.rows: Rows | None = None
        self.context: GivenContext | None = None
        self._contexts: dict[str, Tensor] = {}
        parts = self.split(holdout)
        if not isinstance(parts, tuple | list) or len(parts) != 3:
            count = f" of {len(parts)}" if isinstance(parts, tuple | list) else ""
            raise TypeError(
                f"{self.name}: split returned a {type(parts).__name__}{count}, expected three: "
                "training, validation (empty without holdout) and test data"
            )
        names = ("training", "validation", "test")
        self.train, self.validation, self.test = (
            as_tensor(data, f"{self.name}: the {name} data")
            for name, data in zip(names, parts, strict=True)
        )
        if not hasattr(self, "event_shape"):
            self.event_shape = tuple(self.train.shape[1:])
        for name, data in zip(names, (self.train, self.validation, self.test), strict=True):
            if len(data) == 0 and name != "validation":
                raise ValueError(f"{self.name}: there are no {name} data")
            self.check(data, f"{self.name}: the {name} data")

    def withhold(self, reason: str) -> None:
        """Forget the parts, which are not those that a model was trained with.

        Their use is a DataError then.

        Args:
            reason: the reason, in words.
        """
        for name in PARTS:
            delattr(self, name)
        self._contexts, self._withheld = {}, reason

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in PARTS and "_withheld" in vars(self):
                raise DataError(self._withheld)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def check(self, data: Tensor, what: str) -> None:
        """Raise ValueError unless a part of the data is as the class declares."""
        check_shape(data, self.event_shape, what)
        check_numbers(data, what)

    def load(self) -> Tensor:
        """All data, (n, *event_shape), in a fixed order."""
        raise NotImplementedError(
            f"{type(self).__name__} defines neither load, all data in a fixed order, nor split; "
            "see models/digits.py"
        )

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Train, validation (empty without ``holdout``) and test; by :attr:`split_seed` here."""
        data = as_tensor(self.load(), f"{self.name}: the data")
        labels = None if self.split_seed is None else self._labels(len(data))
        rows = self.divide(len(data), holdout, labels, [] if labels is None else [labels])
        return data[rows.train], data[rows.validation], data[rows.test]

    def divide(
        self,
        n: int,
        holdout: bool,
        strata: Tensor | None = None,
        categories: Sequence[Tensor] = (),
    ) -> Rows:
        """The split of n data by :attr:`split_seed`, kept in ``rows``; see :func:`split_rows`."""
        self.rows = split_rows(n, holdout, self.split_seed, strata, categories)
        return self.rows

    def _labels(self, n: int) -> Tensor | None:
        """The labels of all n data, if they have any and two data a class on average."""
        if type(self).load_context is DataSet.load_context:
            return None  # contexts are split by split_context alone
        for name in self.contexts:
            try:
                context = as_tensor(self.load_context(name), f"{self.name}: the {name}")
            except TypeError:
                continue
            whole = not (context.is_floating_point() or context.is_complex())
            if whole and context.shape == (n,) and 2 * len(context.unique()) <= n:
                return context.long()
        return None

    def numbers(self, part: str) -> Tensor:
        """Indices of a part's data in the order of :meth:`load`, (n,) int64; 0, 1, … if official.

        Raises:
            ValueError: ``rows`` are for another number of data.
        """
        n = len(getattr(self, part))
        rows: Tensor | None = None if self.rows is None else getattr(self.rows, part)
        if rows is None or len(rows) == 0:
            return torch.arange(n)
        if len(rows) != n:
            raise ValueError(
                f"{self.name}: rows has {len(rows)} indices of {part} data, expected {n}, one for "
                "each; set rows to those of the data that split returns"
            )
        return rows

    @property
    def split_in_words(self) -> str:
        """The number of data in each part and the way of the split, in words."""
        parts = [(len(self.train), "training"), (len(self.validation), "validation")]
        parts = [(n, name) for n, name in [*parts, (len(self.test), "test")] if n]
        counts = ", ".join(f"{n:,} {name}" for n, name in parts) + " data"
        if (rows := self.rows) is None:
            return f"{counts}, in official parts"
        if rows.seed is None:
            how = f"every {EVERY}th is test"
        else:
            evenly = f", evenly over {self.strata}" if rows.stratified else ""
            how = f"split at random by --split_seed {rows.seed}{evenly}"
        if rows.rare:
            one = rows.rare == 1
            how += f"; {rows.rare} {'datum is' if one else 'data are'} of categories too rare to "
            how += f"be split, and {'is' if one else 'are'} trained on"
        labels = self._labels(sum(n for n, _ in parts))
        if labels is not None and int(labels.min()) >= 0 and len(labels.unique()) <= SHOWN_CLASSES:
            number = labels[rows.test].bincount(minlength=int(labels.max()) + 1).tolist()
            how += f"; test data of classes 0, 1, …: {', '.join(map(str, number))}"
        return f"{counts}; {how}"

    # -- contexts ----------------------------------------------------------------------------------

    def load_context(self, name: str) -> Any:
        """The contexts of all data by name, in the order of :meth:`load`.

        Labels 0, 1, … (n,) as whole numbers, or vectors (n, m). With a dropout above 0 unknown ones
        may be -1 or NaN.
        """
        raise NotImplementedError(
            f"{type(self).__name__} names {name} in contexts and defines neither load_context nor "
            "split_context; see models/digits.py"
        )

    def split_context(self, name: str, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The contexts of train, validation and test; split like the data unless overridden."""
        context = as_tensor(self.load_context(name), f"{self.name}: the {name}")
        # by index, if an overridden split does not set rows
        rows = split_rows(len(context), holdout, None) if self.rows is None else self.rows
        n = sum(map(len, rows[:3]))
        if len(context) != n:
            raise ValueError(
                f"{self.name}: {len(context)} {name} of {n} data, expected one for each, in the "
                "order of load"
            )
        return context[rows.train], context[rows.validation], context[rows.test]

    def condition_on(self, name: str, dropout: float = 0.0) -> None:
        """Condition models of the data on one of ``contexts``.

        Args:
            name: the name of the context.
            dropout: the fraction of contexts that are hidden in training, see
                :class:`~pyro_mdm.contexts.GivenContext`.

        Raises:
            ValueError: an unknown name; another number of contexts than data; labels of test data
                that no training data have.
        """
        if name not in self.contexts:
            available = f"one of {', '.join(self.contexts)}" if self.contexts else "no context"
            raise ValueError(
                f"--condition is {name!r}, expected {available} for {self.name}; leave it out, or "
                "name it in contexts of a class of your own"
            )
        overridden = type(self).split_context is not DataSet.split_context
        if overridden and type(self).split is DataSet.split and self.split_seed is not None:
            raise TypeError(
                f"{type(self).__name__} has a split_context of its own, but its data are split by "
                "split_seed; return all contexts from load_context in the order of load, or define "
                "split too"
            )
        names = ("train", "validation", "test")
        parts = dict(zip(names, self.split_context(name, self.holdout), strict=True))
        for part_name, context in parts.items():
            if len(context) != len(getattr(self, part_name)):
                raise ValueError(
                    f"{self.name}: {len(context)} {name} of {len(getattr(self, part_name))} "
                    f"{part_name} data, expected one for each, in their order"
                )
        if parts["train"].is_floating_point():
            parts = {
                part_name: c.float().reshape(len(c), *c.shape[1:] or (1,))
                for part_name, c in parts.items()
            }
            self.context = Vectors.fit(parts["train"], dropout)
        else:
            self.context = Labels(self._classes(name, parts, always_given=not dropout), dropout)
            parts = {part_name: c.long() for part_name, c in parts.items()}
        self._contexts = parts

    def _classes(self, name: str, parts: Mapping[str, Tensor], *, always_given: bool) -> int:
        """The number of classes of labels 0, 1, 2, …; -1 is an unknown one."""
        train = parts["train"]
        classes = int(train.max()) + 1
        given = set(train.unique().tolist()) - (set() if always_given else {-1})
        missing = set(range(classes)) - given
        unseen = [c for c in torch.cat(list(parts.values())).unique().tolist() if c >= classes]
        if missing or unseen or min(given, default=-1) < 0:
            raise ValueError(
                f"{self.name}: training data have the {name} {train.unique().tolist()}, expected "
                f"all of 0, 1, 2, …{f', and {unseen[0]} is among other data' if unseen else ''}; "
                "number the classes of the training data from 0"
            )
        return classes

    def part(self, name: str) -> Part:
        """The part ``train``, ``validation`` or ``test``, with contexts if there are any."""
        return Part(getattr(self, name), self._contexts.get(name))

    def contexts_in_turn(self, n: int) -> Tensor | None:
        """Contexts of n samples: each class in turn, or those of test data; None without any."""
        if self.context is None:
            return None
        if isinstance(self.context, Labels):
            return torch.arange(n) % self.context.num_classes
        contexts = self._contexts["test"]
        return contexts[torch.arange(n) % len(contexts)]
