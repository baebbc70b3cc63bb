"""The ladder of recipes: what its rungs change, its table, and that it is resumed."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from inference.machine.processes import start
from pyro_mdm import randomness
from pyro_mdm.networks import MLP
from tests.benchmarks.ladder import __main__ as ladder
from tests.benchmarks.ladder.__main__ import trainee_of
from tests.benchmarks.ladder.networks import Ensemble
from tests.benchmarks.ladder.rungs import RUNGS


@pytest.fixture(scope="module")
def fabric():
    return start("cpu", "32-true")


def test_shifted_images_are_told_where_each_pixel_was(fabric):
    trainee = trainee_of("digits", RUNGS["shifts, told"], 0, 10, fabric)
    (before,) = trainee.batches(3)
    with RUNGS["shifts, told"].during(trainee):
        after, places = trainee.batches.moves(before, 3, 0, 1)
        (seen,) = trainee.batches(3)
        assert torch.equal(seen, after)
        assert math.isfinite(trainee.step(3).bits)
    moved = (after != before).flatten(1).any(1)
    assert 0.2 < moved.float().mean() < 0.8
    rows, columns = ((places * 3.5 + 3.5).round().long()).unbind(1)
    inside = (places.abs() <= 1).all(1)
    n = torch.arange(len(before))[:, None, None]
    was = before[n, 0, rows.clamp(0, 7), columns.clamp(0, 7)]
    assert torch.equal(after[:, 0][inside], was[inside])
    assert (after[:, 0][~inside] == 0).all() and not inside.all()


def test_members_of_an_ensemble_are_trained_apart_and_averaged():
    torch.manual_seed(0)
    members = [MLP(3, hidden=8, depth=1) for _ in range(2)]
    for member in members:
        torch.nn.init.normal_(member.outlet.weight)
    network, x, log_snr = Ensemble(members), torch.randn(5, 3), torch.linspace(-3, 3, 5)
    each = torch.stack([member(x, log_snr) for member in members])
    out = network.train()(x, log_snr)
    torch.testing.assert_close(out, each[torch.arange(5) % 2, torch.arange(5)])
    torch.testing.assert_close(network.eval()(x, log_snr), each.mean(0))
    network.train()(x, log_snr)[0].sum().backward()  # of the first datum, the first member's
    assert members[0].outlet.weight.grad.any() and not members[1].outlet.weight.grad.any()
    assert network(x[:1], log_snr[:1]).shape == (1, 3)  # fewer data than members
    with pytest.raises(ValueError, match="members is empty"):
        Ensemble([])


def test_antithetic_noise_and_clipping_are_put_back(fabric):
    normal = randomness.normal
    trainee = trainee_of("digits", RUNGS["base"], 0, 10, fabric)
    with RUNGS["antithetic noise"].during(trainee):
        drawn = randomness.normal((6, 2), torch.float32, "cpu")
        assert torch.equal(drawn[:3], -drawn[3:])
    assert randomness.normal is normal
    clip = trainee.fabric.clip_gradients
    with RUNGS["clip at the median"].during(trainee):
        trainee.step(0)
    assert trainee.fabric.clip_gradients == clip


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
