"""Public functions × wrong values of each argument: they answer in words of ours, or rightly."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.public_arguments import (
    ARGUMENTS,
    BEYOND,
    EXEMPT,
    OF_STEPS,
    RIGHT,
    arguments_of,
    doors,
    is_result,
    public_names,
)
from tests.wrong_values import called, cases, complaint

SLOW = {
    name
    for name in ARGUMENTS
    if re.fullmatch(r"(Amortized|LikelihoodM|AutoMDM|Table|Conditional|to_|from_pipe).*", name)
}
DOORS = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in doors()]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a name of no folder makes, it makes it here."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")  # of what is right, but unwise
@pytest.mark.parametrize("name", DOORS)
def test_a_wrong_value_is_answered_in_words_or_rightly(name: str) -> None:
    function = doors()[name]()
    arguments = arguments_of(name, function)
    right = called(function, arguments)
    torch.manual_seed(0)
    complaints = [
        f"{case.name}: {words}"
        for case in cases(function, arguments)
        if (words := complaint(case.call, case.wrong, right))
        and not allowed(name, case.name, words)
    ]
    assert not complaints, "\n".join(complaints)


def allowed(name: str, case: str, words: str) -> bool:
    """Whether what a call did with a wrong value is right for a reason that is listed."""
    argument = f"{name}.{case.split(' = ')[0]}"
    if words.startswith("raw"):
        return argument in BEYOND
    return argument in RIGHT | BEYOND or (words == "answered by NaN" and name in OF_STEPS.split())


def named_parameters(function: Any) -> bool:
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    return bool(kinds - {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})


def test_every_public_name_is_tried() -> None:
    """A new name is given arguments, or a reason why nobody calls it."""
    untried = [
        name
        for name, value in public_names().items()
        if name not in EXEMPT
        and not is_result(value)
        and not arguments_of(name, value)
        and named_parameters(value)
    ]
    assert not untried, f"expected arguments of {untried} in tests/public_arguments.py"
    assert not EXEMPT - set(public_names())
    assert not {name for name in ARGUMENTS if name.split(".")[0] not in public_names()}
