"""``--guide learned --time_varying``: training, resuming, opening and looking at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inference.folders.loading import load_trained
from inference.inspect import inspect
from inference.measuring.inspection import look
from inference.settings.diffusion import LEARNED_MIN_LOG_SNR, build_diffusion
from inference.settings.options import Guide
from inference.train import train
from pyro_mdm import ALDA, CLD, TimeVaryingLearnedDiffusion
from pyro_mdm.diffusions.linear import frozen
from pyro_mdm.plots import figures
from tests.brief import SHORT
from tests.problems import normal
from tests.varying.problems import learned_in_time

pytestmark = pytest.mark.usefixtures("few_pictures")


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return SHORT | {"time_varying": True, "run": tmp_path / "run"}


@pytest.mark.slow
def test_it_is_trained_resumed_opened_and_looked_at(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole = train(**options)
    run = options["run"]
    assert train(resume=run).bits_per_dim == whole.bits_per_dim
    diffusion = load_trained(run)[1].model.diffusion
    assert isinstance(diffusion, TimeVaryingLearnedDiffusion)
    assert diffusion.lower.shape == (4, 1) and diffusion.B.shape == (4, 2, 2)
    assert bool((diffusion.lower[1:] != 0).all()) and bool((diffusion.B[1:] != 0).any())
    assert diffusion.terminal_log_snr.item() == LEARNED_MIN_LOG_SNR
    assert diffusion.terminal.log_snr.item() == pytest.approx(LEARNED_MIN_LOG_SNR, abs=1e-8)
    capsys.readouterr()
    inspect(f"run:{run}", model="toy", out=tmp_path / "run.png")
    shown = capsys.readouterr().out
    assert "variables K, rank of D" in shown and (tmp_path / "run.png").exists()


def test_figures_show_the_middle_of_its_clock() -> None:
    diffusion = learned_in_time(2, 2, 7, min_log_snr=-9.0)
    shown = figures.snapshot(diffusion)
    s = diffusion.time_at_clock(diffusion.clock(1.0) / 2)
    assert shown["Q"] == diffusion.matrices.at("Q", s).tolist() and len(shown["eigenvalues"]) == 2
    found = look("", diffusion.requires_grad_(False), normal(1, 100, 2))
    assert not found.errors and found.num_variables == 2


def test_it_begins_as_another_guide() -> None:
    ends = {"max_log_snr": 9.0, "min_log_snr": -10.0}
    found = build_diffusion(
        Guide(guide="learned", time_varying=True, learned_from="alda", rank=1, **ends)
    )
    assert isinstance(found, TimeVaryingLearnedDiffusion)
    one = ALDA(**ends)
    torch.testing.assert_close(found.matrices.at("Q", 0.7), one.Q)
    torch.testing.assert_close(found.matrices.at("D", 0.2), one.D)
    torch.testing.assert_close(found.start_time, one.start_time, rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match=r"--time_varying is for --guide learned; cld has its own"):
        build_diffusion(Guide(guide="cld", time_varying=True, **ends))
    torch.testing.assert_close(frozen(CLD()).Q, CLD().Q)
