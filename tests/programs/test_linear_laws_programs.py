"""Diffusions that are not at rest, in programs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from inference.drawing import sampling
from inference.folders.loading import load_trained
from inference.measuring.inspection import look
from inference.settings.diffusion import build_diffusion
from inference.settings.names import GUIDES
from inference.settings.options import Guide
from inference.train import train
from pyro_mdm.diffusions import LinearDiffusion
from tests.brief import SHORT
from tests.problems import normal


@pytest.mark.parametrize("name", ["ve", "subvp", "rectified_flow", "cosine", "momentum_ve"])
def test_programs_know_them_by_name(name: str) -> None:
    diffusion = build_diffusion(Guide(guide=name, max_log_snr=9.0, min_log_snr=-8.0))
    assert type(diffusion) is GUIDES[name]
    assert diffusion.max_log_snr == 9.0
    assert diffusion.terminal_log_snr.item() == pytest.approx(-8.0, abs=1e-9)
    assert isinstance(diffusion, LinearDiffusion)
    seen = look(name, diffusion, normal(1, 8, 2))
    assert not seen.errors and seen.terminal_log_snr == pytest.approx(-8.0, abs=1e-9)
    if name in ("ve", "momentum_ve"):
        assert seen.damping == "none" and seen.relaxation_time == math.inf
    with pytest.raises(ValueError, match=f"--learned_from {name}: .* has no Q and D"):
        build_diffusion(Guide(guide="learned", learned_from=name))


@pytest.mark.slow
@pytest.mark.usefixtures("few_pictures")
@pytest.mark.parametrize(("name", "score"), [("ve", "noise"), ("momentum_ve", "denoiser")])
def test_runs_are_trained_opened_and_sampled(name: str, score: str, tmp_path: Path) -> None:
    whole = train(**SHORT | {"guide": name, "score": score, "run": tmp_path / "run"})
    programs = load_trained(tmp_path / "run")[1]
    assert type(programs.model.diffusion) is GUIDES[name]
    assert train(resume=tmp_path / "run").bits_per_dim == whole.bits_per_dim
    assert bool(sampling.draw(programs.model, 4, steps=4).isfinite().all())
