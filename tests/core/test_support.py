"""What the library stands on: files replaced whole, modules in another mode for a while."""

from __future__ import annotations

import doctest
import hashlib
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import pyro_mdm
from pyro_mdm.support.files import replacing
from pyro_mdm.support.modules import ExactBuffers, evaluating, of_part


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    old = {"a": b"old", "b": b"old"}
    for path in files:
        path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing() as write:
        write(files[0], [b"new"])
        write(files[1], (bytes([1 // n]) for n in (1, 0)))
    assert content() == old
    with replacing() as write:
        digests = [write(path, [b"ne", memoryview(b"w")]) for path in files]
        assert [path.read_bytes() for path in files] == [b"old", b"old"]
    assert content() == {"a": b"new", "b": b"new"}
    assert digests == [hashlib.sha256(b"new").hexdigest()] * 2


def test_modules_are_evaluated_for_a_while_and_then_as_they_were() -> None:
    trained, evaluated = nn.Dropout(), nn.Dropout().eval()
    with pytest.raises(ZeroDivisionError), evaluating(trained, evaluated, "no module"):
        assert not trained.training and not torch.is_grad_enabled()
        _ = 1 // 0
    assert trained.training and not evaluated.training and torch.is_grad_enabled()


def test_exact_buffers_keep_their_digits_when_parameters_are_cast() -> None:
    module = ExactBuffers()
    module.register_buffer("exact", torch.ones(2, dtype=torch.float64))
    module.weight = nn.Parameter(torch.ones(2))
    module.half()
    assert module.exact.dtype == torch.float64 and module.weight.dtype == torch.float16


def test_members_of_a_part_are_read_and_set_there() -> None:
    class Whole(nn.Module):
        training_rate = of_part("part")
        p = of_part("part")

        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Dropout(0.25)

    whole = Whole()
    whole.p = 0.5
    assert whole.p == whole.part.p == 0.5 and "p" not in vars(whole)
    with pytest.raises(AttributeError, match="training_rate"):
        _ = whole.training_rate


LIBRARY = Path(pyro_mdm.__file__).parent
EXAMPLES = [path for path in sorted(LIBRARY.rglob("*.py")) if ">>>" in path.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings(path):
    name = ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
    module = importlib.import_module(name)
    names = vars(pyro_mdm.diffusions) | vars(pyro_mdm) | vars(module) | {"torch": torch}
    found = doctest.testmod(module, extraglobs=names)
    assert found.attempted and not found.failed
