"""The SVI script, run as a user would."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.processes import Program, finish

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "inference" / "svi.py"


def small_networks() -> None:
    """In a process of its own: U-Nets of half as many channels."""
    from pyro_mdm import networks

    networks.UNet = functools.partial(networks.UNet, base=16)


@pytest.mark.other_processes
@pytest.mark.parametrize(
    "options", [["--guide", "LearnedDiffusion"], ["--data", "digits", "--guide", "MALDA"]]
)
def test_it_trains_measures_and_samples(options: list[str], tmp_path: Path) -> None:
    """From a measurement of the bound to the next the terms improve, and TensorBoard has them."""
    words = [*options, "--steps", "50", "--logdir", tmp_path]
    said = finish(Program("inference.svi", *words, before=small_networks))
    assert "bits/dim" in said and "elbo" in said
    written = EventAccumulator(str(tmp_path))
    written.Reload()
    first, last = written.Scalars("nats/elbo/test")
    assert (first.step, last.step) == (25, 50)
    assert last.value > first.value
    for term in ("reconstruction", "prior_kl", "diffusion"):
        assert len(written.Scalars(f"nats/{term}/test")) == 2
    if "digits" in options:
        assert written.Images("samples")[0].width > 200
    else:
        assert "correlations" in said


def test_it_is_short_and_plain() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 63
    assert "SVI(model, guide" in text and "loss=MDM_ELBO()" in text
