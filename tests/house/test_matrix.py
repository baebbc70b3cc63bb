"""The page of what goes with what: every diffusion is tried, and only refusals count as such."""

from __future__ import annotations

import inspect

import pytest
import torch

import pyro_mdm
from docs._ext import matrix, trials
from docs._ext.trials import CLASSES, ROWS, Outcome, kinds, outcomes, refusal
from pyro_mdm import CLD, VPSDE, Denoiser, DiffusionGuide, DiffusionModel, elbo_terms
from pyro_mdm.networks import MLP
from pyro_mdm.samplers import Ancestral

ABSTRACT = {"Diffusion", "Interpolant", "NonlinearDiffusion"}
"""Those that are made by subclasses or by functions of their own."""


def test_every_public_diffusion_is_tried() -> None:
    public = {
        name
        for name in pyro_mdm.__all__
        if inspect.isclass(getattr(pyro_mdm, name))
        and issubclass(getattr(pyro_mdm, name), pyro_mdm.Diffusion)
    }
    tried = {name.split()[0] for name in CLASSES}
    assert public - ABSTRACT <= tried and {"PerDimensionDiffusion", "CLD"} < public


def test_diffusions_of_a_kind_lack_the_same() -> None:
    alike = kinds()
    assert list(matrix.TITLES) == list(alike)
    assert {name for names in alike.values() for name in names} == set(CLASSES)
    assert "VPSDE" in alike["CLD"] and "LearnedDrift" in alike["Simulated"]
    assert not matrix.lacks("CLD")
    assert matrix.lacks("EncodedDiffusion") == ["the mean of its v_0 depends on the data"]


def test_a_refusal_has_the_words_of_the_library() -> None:
    diffusion = CLASSES["EncodedDiffusion"]()
    said = refusal(lambda: Ancestral(4).check(diffusion))
    assert said is not None and said.startswith("Ancestral needs a readout z")
    assert refusal(lambda: Ancestral(4).check(CLD())) is None


def test_a_mistake_of_the_trial_is_no_refusal() -> None:
    """Neither its own error nor a network of another size."""
    with pytest.raises(TypeError):
        refusal(lambda: len(3))  # type: ignore[arg-type]
    x, diffusion = torch.randn(16, 4), VPSDE()
    model = DiffusionModel(diffusion, Denoiser(MLP(3)), event_shape=(4,))
    with pytest.raises(ValueError, match="the MLP takes vectors"):
        refusal(lambda: elbo_terms(model, DiffusionGuide(diffusion), x))


def test_rows_that_always_serve_are_told_apart() -> None:
    found = [
        Outcome("a", "1", None),
        Outcome("a", "2", None),
        Outcome("b", "1", "no"),
        Outcome("b", "2", None),
    ]
    assert matrix.sorted_out(found) == (["a"], {"b": found[2:]}, ["no"])


@pytest.mark.slow
@pytest.mark.parametrize("table", ROWS)
def test_linear_diffusions_are_served_by_all_that_is_for_them(table: str) -> None:
    """So a row is refused for what its diffusion lacks, and not for how the trial asks."""
    refused = {o.row for o in outcomes(table, "diffusion") if o.column == "CLD" and o.refused}
    assert refused == {"scores": {"StateDenoiser"}, "questions": {"step_size_bias"}}.get(
        table, set()
    )
    for outcome in outcomes(table, "diffusion"):
        assert outcome.refused is None or "Trace Shapes" not in outcome.refused


@pytest.mark.slow
def test_what_is_known_to_be_refused() -> None:
    said = {(o.row, o.column): o.refused for o in outcomes("scores", "diffusion")}
    assert "closed-form kernels" in (said["StateDenoiser", "Simulated"] or "")
    assert said["ResidualScore", "Simulated"] is None and said["RawScore", "Simulated"] is None
    by_score = {(o.row, o.column): o.refused for o in outcomes("questions", "score")}
    assert by_score["impute", "Denoiser, maps"] is None
    assert "maps=True" in (by_score["impute", "Denoiser"] or "")
    assert "only denoisers" in (by_score["condition, some dimensions", "RawScore"] or "")
    assert len(trials.SCORES) - len(trials.NONE) == len({column for _, column in by_score})
