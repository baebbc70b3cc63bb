"""The ladder of recipes: what its rungs change, its table, and that it is resumed."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from tests.benchmarks import ladder


def test_differences_are_paired_by_seed_and_image():
    base = {
        seed: {"bits": [1.0 + seed, 2.0 + seed], "objective": 1.0, "steps": 5, "seconds": 1.0}
        for seed in range(3)
    }
    other = {
        seed: r | {"bits": [b - 0.1 - 0.001 * seed for b in r["bits"]]} for seed, r in base.items()
    }
    text = ladder.table({"base": base, "better": other})
    row = text.splitlines()[-1].split(" | ")
    # seeds differ by 1, the paired differences are -0.100, -0.101 and -0.102: t(2) × 0.001/3^½
    assert row[1] == "2.399 ± 0.577" and row[2] == "**-0.101 (-0.103 to -0.099)**"


@pytest.mark.slow
def test_it_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    words = ["--seconds", "0.1", "--draws", "1", "--turns", "2", "--rungs", "base", "batches of 32"]
    words += ["--out", str(tmp_path)]
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr(sys, "argv", ["ladder", *words, "--seeds", *seeds])
        before = {p: p.read_bytes() for p in tmp_path.glob("digits/*-0.json")}
        ladder.main()
        assert all(path.read_bytes() == was for path, was in before.items())
    found = sorted(path.name for path in tmp_path.glob("digits/*.json"))
    assert found == [
        "base-0.json",
        "base-1.json",
        "batches_of_32-0.json",
        "batches_of_32-1.json",
        "costs.json",
    ]
    monkeypatch.setattr(sys, "argv", ["ladder", *words, "--draws", "2"])
    with pytest.raises(SystemExit):
        ladder.main()
    assert "was begun with {'seconds': 0.1, 'draws': 1}" in capsys.readouterr().err
    costs = json.loads((tmp_path / "digits" / "costs.json").read_text())
    one = json.loads((tmp_path / "digits" / "batches_of_32-1.json").read_text())
    assert one["steps"] == max(1, round(costs["base"] / costs["batches of 32"]))
    assert "| batches of 32 |" in (tmp_path / "digits" / "table.md").read_text()


def test_no_square_of_photographs_that_is_trained_on_is_measured():
    numbered = torch.arange(2 * 3 * 40 * 640).reshape(2, 3, 40, 640)
    cut = ladder.squares(numbered, 8)
    assert cut.shape == (2 * 2 * 77, 3, 32, 32)
    assert torch.equal(cut[1], numbered[0, :, :32, 8:40])
    assert torch.equal(cut[-1], numbered[1, :, 8:40, 608:640])
    problem = ladder.Photographs(holdout=True)
    assert problem.train.shape == (5300, 3, 32, 32)
    seen = set(map(bytes, problem.train[:, :, 0].flatten(1).numpy()))
    others = torch.cat([problem.validation, problem.test])
    assert len(others) == 450 and len(seen) > 5000
    assert not any(bytes(x) in seen for x in others[:, :, 0].flatten(1).numpy())
