"""The SVI script, run as a user would."""

from __future__ import annotations

import functools
import signal
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyro_mdm import networks
from tests.processes import Program, finish, signalled
from tests.programs.running import run_program

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "inference" / "svi.py"


def small_networks() -> None:
    """In a process of its own: U-Nets of half as many channels."""
    networks.UNet = functools.partial(networks.UNet, base=16)


def run(*words: object) -> str:
    return finish(Program("inference.svi", *words, before=small_networks))


def elbo(said: str) -> float:
    """The bound in nats that a script printed last."""
    return float(said.split("elbo")[-1].split()[0])


@pytest.mark.other_processes
def test_it_trains_resumes_measures_and_samples(tmp_path: Path) -> None:
    """The bound rises, TensorBoard has its terms, and a script that was killed goes on as if it had
    not been."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    said = run("--guide", "LearnedDiffusion", "--steps", 50, "--logdir", whole)
    first = run("--guide", "LearnedDiffusion", "--steps", 1, "--logdir", tmp_path / "first")
    assert elbo(said) > elbo(first)
    killed = signalled(signal.SIGKILL, 2, "checkpoint.pt", small_networks)  # as it is replaced
    words = ("--guide", "learned", "--steps", 50, "--logdir", stopped)
    program = Program("inference.svi", *words, before=killed)
    program.communicate()
    assert program.returncode == -signal.SIGKILL
    assert torch.load(stopped / "checkpoint.pt")["step"] == 25
    assert run("--guide", "learned", "--steps", 50, "--logdir", stopped) == said
    one, two = (torch.load(folder / "checkpoint.pt") for folder in (whole, stopped))
    assert one["step"] == two["step"] == 50 and one["model"].keys() == two["model"].keys()
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    written = EventAccumulator(str(stopped)).Reload()
    for term in ("elbo", "reconstruction", "prior_kl", "diffusion"):
        assert [event.step for event in written.Scalars(f"nats/{term}/test")] == [25, 50]
        assert written.Scalars(f"uncertainty/low/nats/{term}/test")
    assert np.load(stopped / "samples.npy").shape == (64, 30)


@pytest.mark.parametrize(
    ("guide", "score", "file"),
    [
        ("MALDA", "default", "images.npy"),
        ("inference.guides.published:learned2_at_time", "noise", "numbers.csv"),
        ("inference.guides.by_dimension:per_pixel", "default", "images.npy"),
        ("inference.guides.encoder:cld", "default", "images.npy"),
        ("inference.guides.relativistic:Relativistic", "default", "numbers.csv"),
    ],
)
def test_it_takes_every_guide_and_any_file(
    guide: str,
    score: str,
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(networks, "UNet", functools.partial(networks.UNet, base=16))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which the script replaces
    pyro.clear_param_store()
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", np.tanh(rng.normal(size=(60, 1, 4, 4))))
    numbers = rng.normal(size=(60, 3))
    np.savetxt(tmp_path / "numbers.csv", numbers, delimiter=",", header="a,b,c", comments="")
    shape = {"numbers.csv": (64, 3), "images.npy": (64, 1, 4, 4)}[file]
    words = ("--guide", guide, "--score", score, "--steps", 1, "--data", tmp_path / file)
    run_program("svi", *words, "--logdir", tmp_path / "run")
    assert "elbo" in capsys.readouterr().out
    assert np.load(tmp_path / "run" / "samples.npy").shape == shape


def test_it_is_short_and_plain() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    assert "SVI(model, guide" in text and "loss=MDM_ELBO()" in text
