"""Data sets from settings: reading, split and contexts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, Literal

from inference.settings.names import find, find_column_kind
from inference.settings.options import DataOptions
from models import Problem
from pyro_mdm.support.checks import describe

OPTIONS = {
    "protocol": "images",
    "network": "images",
    "logit_margin": "images",
    "data": "data sets that are read from files",
    "columns": "tables",
    "image_size": "images of your own",
}
"""The data sets that have an option, in words, by option."""

BY_INDEX: Final = "index"
"""The --split_seed of data that are split by index."""

CONTEXT_DROPOUT = 0.1
"""The default fraction of a batch whose context is hidden."""


def build_problem(
    data: DataOptions, *, network: str | None = None, facts: Mapping[str, Any] | None = None
) -> Problem:
    """The data set that settings describe, with its context.

    Args:
        data: settings, whose ``model`` is a name, see :func:`~inference.settings.names.find`.
            Without ``split_seed`` data have the split of their class.
        network: the network of images, see :class:`~models.base.ImageProblem`.
        facts: facts that a run keeps of its data set, see :attr:`models.base.DataSet.facts`.

    Raises:
        NameNotFoundError: see :func:`~inference.settings.names.find`.
        TypeError: the name is no data set, or one that takes no ``holdout``.
        ValueError: an option that this data set does not have, or data that it refuses.
    """
    options = {"network": network, **{n: getattr(data, n) for n in OPTIONS if n != "network"}}
    given = {name: value for name, value in options.items() if value is not None}
    problem = _made(data, given, facts)
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{data.model} is {describe(problem)}, expected a subclass of models.base.Problem: "
            "see models/digits.py"
        )
    if not hasattr(problem, "train"):
        raise TypeError(f"{data.model} has no data: its __init__ does not call super().__init__()")
    seed = _seed(data, problem)
    if problem.rows is not None and problem.rows.seed != seed:
        raise ValueError(
            f"{data.model} was split by --split_seed {split_word(problem.rows.seed)} when it was "
            f"made, and {split_word(seed)} is asked for; name its class, or make it by split_by"
        )
    dropout = data.context_dropout
    if data.condition is not None:
        problem.condition_on(data.condition, CONTEXT_DROPOUT if dropout is None else dropout)
    elif dropout is not None:
        raise ValueError(
            f"--context_dropout is {dropout}, but the data have no context; give --condition "
            "labels too, or leave it out"
        )
    return problem


def _made(
    data: DataOptions, given: Mapping[str, object], facts: Mapping[str, Any] | None
) -> object:
    """The object that the name stands for; a class is called with the given options."""
    named = find("model", data.model)
    is_class = inspect.isclass(named) and issubclass(named, Problem)
    options = {"holdout": data.holdout, "find_kind": find_column_kind, **given}
    taken = _taken(named, options) if is_class else {}
    for key, value in given.items():
        if key not in taken:
            raise ValueError(
                f"--{key} {value} is for {OPTIONS[key]}; --model {data.model} has none"
            )
    if not is_class:
        return named
    if "holdout" not in taken:
        raise TypeError(
            f"{data.model} does not take holdout; let its __init__ have a keyword holdout and call "
            "super().__init__(holdout=holdout)"
        )
    return named.split_by(_seed(data, named), facts, **taken)


def _taken(kind: type[Problem], options: Mapping[str, object]) -> dict[str, Any]:
    """Those of ``options`` that a data set takes, also through its base classes."""
    names: set[str] = set()
    for base in kind.__mro__[: kind.__mro__.index(Problem)]:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            names |= set(parameters)
            if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
                break
    else:
        names.add("holdout")
    return {name: value for name, value in options.items() if name in names}


def _seed(data: DataOptions, named: type[Problem] | Problem) -> int | None:
    """The seed of the split; None: by index."""
    if data.split_seed is None:
        return named.split_seed
    return None if data.split_seed == BY_INDEX else data.split_seed


def split_word(seed: int | None) -> Literal["index"] | int:
    """The value of --split_seed for data split by ``seed``."""
    return BY_INDEX if seed is None else seed


def check_split(split_seed: Literal["index"] | int | None, problem: Problem) -> None:
    """Raise ValueError for a given split of data with official parts."""
    if split_seed is not None and problem.rows is None:
        raise ValueError(
            f"--split_seed is {split_seed}, and {problem.name} has official parts, which are never "
            "split; leave it out"
        )
