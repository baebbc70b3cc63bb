"""The paper's protocol: its recipes are its settings, and what differs is listed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch

from inference.guides import published
from inference.measuring.experiment_tables import FIXED, PaperData, paper
from inference.samplers.published import Euler, quadratic_from_start
from inference.settings.names import find
from inference.settings.options import Training
from models.official import MNIST
from pyro_mdm import CLD
from pyro_mdm.networks import StridedUNet, UNet
from pyro_mdm.samplers import EulerMaruyama

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "measured" / "paper-protocol.md").read_text("utf-8")
VARIABLES = {"vpsde": 1, "cld": 2, "malda": 3, "alda": 3, "learned2": 2, "learned3": 3}


def test_the_page_has_every_difference_with_its_reason() -> None:
    words = re.sub(r"\s+", " ", PAGE)
    for name, reason in published.DIFFERENCES.items():
        assert f"*{name}*: {reason}." in words
    assert len(re.findall(r"^- \*", PAGE, re.MULTILINE)) == len(published.DIFFERENCES)


def intervals(images: str) -> tuple[pd.Series, pd.Series]:
    file = ROOT / "docs" / "measured" / "data" / f"paper-{images}-learned.csv"
    rows = pd.read_csv(file, comment="#").set_index("pair")
    return rows["difference_low"], rows["difference_high"]


def test_the_page_says_what_its_intervals_say() -> None:
    low, high = intervals("fashion_mnist")
    assert low["learned2 − vpsde"] > 0 > high["learned2 − cld"]
    assert "surpasses some of those with auxiliary variables" in PAGE
    assert "has none, is ahead of it in short trainings" in PAGE
    low, high = intervals("digits-long")
    assert low["learned2 − vpsde"] < 0 < high["learned2 − vpsde"]
    assert "in the longest training here the two cannot be told apart" in PAGE
    low, high = intervals("digits")
    for learned in ("learned2", "learned3"):
        assert low[f"{learned} − vpsde"] > 0 and high[f"{learned} − malda"] < 0
        assert low[f"{learned} − cld"] < 0 < high[f"{learned} − cld"]
    words = (
        "VPSDE, which is better, and from MALDA, which is worse. They do not tell them\nfrom CLD"
    )
    assert words in PAGE


def test_networks_of_mnist_have_the_paper_s_size() -> None:
    for name, kind, size in (
        ("published_small", StridedUNet, 1.12),
        ("published_unet", UNet, 1.51),
    ):
        problem = object.__new__(MNIST)
        problem.network_name = name
        network = problem.network(2, 2)
        assert type(network) is kind
        parameters = sum(p.numel() for p in network.parameters())
        assert parameters / 1e6 == pytest.approx(size, abs=0.01)


@pytest.mark.parametrize("images", get_args(PaperData))
def test_the_table_has_four_fixed_diffusions_and_two_learned_ones(images: PaperData) -> None:
    table = paper(images)
    cells = list(table.cells())
    assert {cell.guide for cell in cells} == {*FIXED, "learned2", "learned3"} == VARIABLES.keys()
    assert len(cells) == 6 * table.seeds and table.seeds >= 3
    for cell in cells[:6]:
        settings = Training(**cell.options)  # every option is one of inference.train
        assert settings.precision == ("64-true" if cell.guide == "alda" else "32-true")
        assert find("guide", settings.guide)().num_variables == VARIABLES[cell.guide]


def test_the_sampler_has_quadratic_times_and_no_noise_at_last() -> None:
    diffusion = CLD(cut_time=1e-3)
    times = quadratic_from_start(diffusion, 10)
    way = (times - diffusion.start_time) / (diffusion.horizon - diffusion.start_time)
    torch.testing.assert_close(way, torch.linspace(1, 0, 11, dtype=torch.float64).square())

    def end_and_mean(sampler: EulerMaruyama) -> tuple[torch.Tensor, torch.Tensor]:
        """The last state, and what the last step comes to without noise."""
        states: list[tuple[torch.Tensor, torch.Tensor]] = []
        sampler(
            diffusion,
            lambda y, s: -y,
            (4, 2, 3),
            torch.Generator().manual_seed(0),
            watch=lambda s, y: states.append((s, y.clone())),
        )
        (s, before), (_, end) = states[-2:]
        pull = -diffusion.noise_covariance(s) - diffusion.drift_matrix(s)
        return end, before + (s - diffusion.start_time) * pull @ before

    torch.testing.assert_close(*end_and_mean(Euler(10)), rtol=1e-6, atol=1e-6)
    end, mean = end_and_mean(EulerMaruyama(10, quadratic_from_start))
    assert (end - mean).abs().max() > 1e-3
