"""Public functions × wrong values of each argument: they answer in words of ours, or rightly."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI

from inference.folders.checkpoints import RunError
from inference.settings.kinds import is_of, kinds_of
from pyro_mdm import MDM_ELBO
from pyro_mdm.__main__ import PROGRAMS as COMMANDS
from pyro_mdm.measurements import (
    Blur,
    Downsample,
    FunctionOperator,
    Mask,
    Matrix,
    NonlinearOperator,
)
from tests.public_arguments import (
    ARGUMENTS,
    EXEMPT,
    X,
    arguments_of,
    doors,
    guide,
    is_result,
    model,
    public_names,
)
from tests.wrong_values import called, cases, complaint

RIGHT_AFTER_ALL = {
    "a size that the argument itself sets": """NoisingPath.x SimulatedPath.x prior_kl.x
        Completions.x
        DiffusionGuide.forward.x Denoiser.fit.train_x DiscreteDenoiser.fit.train_x
        ResidualScore.fit.train_x ImportedDenoiser.fit.train_x GaussianPosterior.fit.x
        from_azula.train_x from_denoising_diffusion.train_x from_diffusers.train_x
        from_pipeline.train_x from_sigma_denoiser.train_x from_velocity.train_x apply_matrix.y
        apply_vector.y read_state.y Gaussian.forward.y LinearDiffusion.drift.y Simulated.drift.y
        GaussianPrior.log_prob.y GaussianPrior.score.y QuadraturePrior.log_prob.y
        QuadraturePrior.score.y LevelCategorical.log_probs LocalGuide.data""",
    "a loss that is no number, which patience counts": "Trainer.look.value",
    "a decoder that asks no score": "read_state.score Gaussian.forward.score",
    "any word": """DiffusionGuide.plate DiffusionModel.plate require.who require.fix
        Labelled.argument Trainer.fit.unit""",
    "any cell of a table": "Table.sample.given Conditional.log_prob.values",
    "a number for each dimension": "from_azula.shift from_velocity.shift",
    "what an annotation elsewhere allows": """MixedDenoiser.fit.levels LikelihoodMembers.fit.steps
        DiffusionModel.log_prob.seed different_diffusions.guide different_diffusions.model""",
    "of no auxiliary variable": "VPSDE.initial_variance",
}
"""Arguments of which a value counts as wrong here, and is right, by the reason."""
RIGHT = {name for names in RIGHT_AFTER_ALL.values() for name in names.split()}

OTHERS_WORDS = {
    "torch's broadcasting of a value of a distribution": """Clipped.log_prob.value
        Quantized.log_prob.value LevelCategorical.log_prob.value""",
    "torch's expand": "Clipped.expand.batch_shape",
    "the encoder, which is the user's": """GaussianContext.posterior.x
        GaussianContext.posterior.event_dim""",
}
"""Arguments whose shapes another library or the user's network refuses, by the reason."""
BEYOND = {name for names in OTHERS_WORDS.values() for name in names.split()}

OF_STEPS = """apply_matrix apply_vector read_state prior_kl bits_per_dim LinearDiffusion.drift
    Simulated.drift LearnedDrift.drift GaussianPrior.log_prob GaussianPrior.score
    QuadraturePrior.log_prob QuadraturePrior.score Blur.__call__ Downsample.__call__ Mask.__call__
    Matrix.__call__ FunctionOperator.__call__ NonlinearOperator.__call__ Blur.adjoint
    Downsample.adjoint Mask.adjoint Matrix.adjoint FunctionOperator.adjoint NoisingPath.log_prob"""
"""Functions of steps, which look at no entry, as that would wait for a device: NaN gives NaN."""

SLOW = {
    name
    for name in ARGUMENTS
    if re.fullmatch(
        r"(Amortized|LikelihoodM|AutoMDM|Table|Conditional|to_|from_pipe|check_import).*", name
    )
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


# -- programs that Python calls --------------------------------------------------------------------

PROGRAMS = {
    name: getattr(importlib.import_module(f"inference.{name}"), name)
    for name in COMMANDS
    if name != "svi"  # a script
}
"""The functions of the commands."""


def options_of(program: Any) -> dict[str, Any]:
    """The annotations of a program's options."""
    options = inspect.getclosurevars(program).nonlocals["options"]
    return typing.get_type_hints(options)


@pytest.mark.parametrize("name", PROGRAMS)
def test_options_are_checked_where_python_calls_a_program(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    for option, hint in options_of(program).items():
        kinds = " ".join(kinds_of(hint))
        wrong: list[object] = [object(), b"x", 1j, math.nan, {1: 2}, [{}]]
        wrong += [] if "true" in kinds else [True]
        wrong += [None] if not is_of(None, hint) else []
        wrong += [] if "path" in kinds or "name" in kinds else ["no such word"]
        for value in wrong:
            with pytest.raises(TypeError, match=f"--{option} is .*, expected .*; leave it out"):
                program(**{option: value})
    with pytest.raises(TypeError, match=f"no option of {name}, expected one"):
        program(sede=1)
    assert not list(tmp_path.iterdir())


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere"):
        PROGRAMS["evaluate"](run=str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        PROGRAMS["train"](model="toy", run=str(tmp_path / "file"), steps=1)


# -- what is silently wrong ------------------------------------------------------------------------

SHAPES = [(4, 4), (5, 5), (1, 4, 4), (1, 8, 8), (3, 8, 8), (6,)]
"""Shapes of data, each of which is wrong for operators of the others."""
OPERATORS: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "mask": lambda shape: Mask(torch.arange(math.prod(shape)).reshape(shape) % 2 == 0),
    "matrix": lambda shape: Matrix(torch.eye(math.prod(shape)), shape),
    "function": lambda shape: FunctionOperator(torch.clone, shape),
    "nonlinear": lambda shape: NonlinearOperator(torch.square, shape),
    "blur": Blur,
    "average": Downsample,
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_look_at_the_shape_of_a_datum(kind: str, shape: tuple[int, ...]) -> None:
    if kind in ("blur", "average") and len(shape) != 3:
        return
    H = OPERATORS[kind](shape)
    for other in SHAPES:
        x = torch.zeros(2, *other)
        if tuple(x.shape[max(0, x.dim() - len(shape)) :]) == shape:
            lead = x.shape[: x.dim() - len(shape)]
            assert H(x).shape == (*lead, *H.obs_shape)
            continue
        with pytest.raises(ValueError, match=r"x has shape .*, expected \(\*batch"):
            H(x)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_step_without_gradients_is_refused(mode: Any) -> None:
    svi = SVI(model(), guide(), pyro.optim.Adam({"lr": 1e-3}), loss=MDM_ELBO())
    with mode(), pytest.raises(ValueError, match=r"gradients are off, expected .*evaluate_loss"):
        svi.step(X)
    with mode():
        assert math.isfinite(svi.evaluate_loss(X))
    assert math.isfinite(svi.step(X))
