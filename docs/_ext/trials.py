"""Trials of every kind of diffusion with every score, likelihood, sampler and question.

A trial builds the parts for small data and uses them once. A part that does not serve a diffusion
refuses it (:func:`pyro_mdm.diffusions.base.require`), and its message is the outcome.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_mdm
from inference.guides.relativistic import Relativistic
from pyro_mdm import (
    CLD,
    MDM,
    VPSDE,
    Denoiser,
    Diffusion,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    MixedDenoiser,
    NoisePrediction,
    RawScore,
    ResidualScore,
    Simulation,
    StateDenoiser,
    bound,
    condition,
    elbo_terms,
    impute,
)
from pyro_mdm.auxiliary import auxiliary_use
from pyro_mdm.by_dimension import Frequencies
from pyro_mdm.conditioning import Labels, Replacement
from pyro_mdm.diffusions.base import Cap, coordinates
from pyro_mdm.evaluation import log_likelihood
from pyro_mdm.levels import DiscretizedGaussian, NetworkPosterior
from pyro_mdm.likelihoods import Gaussian, JointTweedie, Tweedie
from pyro_mdm.measurements import condition_on_measurements
from pyro_mdm.networks import MLP
from pyro_mdm.paths.flow import Solver
from pyro_mdm.paths.likelihood import Method
from pyro_mdm.samplers import (
    Ancestral,
    EulerMaruyama,
    ExponentialIntegrator,
    ProbabilityFlow,
    Splitting,
    StochasticExponentialIntegrator,
    StochasticHeun,
)
from pyro_mdm.scores.base import Score
from pyro_mdm.seeing import ContextClocks, ContextDiffusion, GaussianContext
from pyro_mdm.simulated import TorchSDE, step_size_bias

__all__ = ["CLASSES", "ROWS", "Outcome", "kinds", "outcomes", "refusal"]

SIZE = 4
"""Dimensions of a datum."""
LEVELS = torch.tensor([-1.0, 0.0, 1.0])
X = torch.stack([LEVELS[torch.arange(8) * k // 2 % 3] for k in (1, 2, 3, 5)], -1)
"""Data of three levels, (8, SIZE)."""
OBSERVED = torch.tensor([True, False, False, True])
ENDS: dict[str, Any] = {"max_log_snr": 4.0, "min_log_snr": -3.0}
FEW = 4
"""The number of steps of samplers: a trial shows that parts serve, not how well."""
SMALL = (8, 1)
"""Width and depth of networks."""
LIBRARY = Path(pyro_mdm.__file__).parent
STEPS = Simulation(step_size=0.125)


# -- diffusions ------------------------------------------------------------------------------------


def _blocks(**options: Any) -> Diffusion:
    return pyro_mdm.PerDimensionDiffusion(
        [CLD(**ENDS), CLD(**ENDS)], torch.tensor([0, 1, 1, 0]), **options
    )


def _of_context() -> Diffusion:
    context = GaussianContext(nn.Linear(SIZE, 4), 2)
    return ContextDiffusion(VPSDE(**ENDS), context, ContextClocks(2, 2), OBSERVED.long())


def _driven() -> Diffusion:
    outputs = SIZE * pyro_mdm.DataDrivenDiffusion.outputs()
    return pyro_mdm.DataDrivenDiffusion(VPSDE(**ENDS), MLP(SIZE, out_features=outputs))


def _constant(value: list[list[float]]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda s: torch.tensor(value, dtype=torch.float64).expand(*s.shape, 2, 2)


TURN, RUB = [[0.0, -1.0], [1.0, 0.0]], [[0.5, 0.0], [0.0, 1.0]]

CLASSES: Mapping[str, Callable[[], Diffusion]] = {
    "CLD": lambda: CLD(**ENDS),
    "VPSDE": lambda: VPSDE(**ENDS),
    "MALDA": lambda: pyro_mdm.MALDA(**ENDS),
    "ALDA": lambda: pyro_mdm.ALDA(**ENDS),
    "HOLD": lambda: pyro_mdm.HOLD(**ENDS),
    "LearnedDiffusion": lambda: pyro_mdm.LearnedDiffusion(**ENDS),
    "LinearDiffusion": lambda: pyro_mdm.LinearDiffusion(TURN, RUB, **ENDS),
    "LinearSDE": lambda: pyro_mdm.LinearSDE([[-1.0]], [[1.0]], **ENDS),
    "VE": lambda: pyro_mdm.VE(**ENDS),
    "SubVP": lambda: pyro_mdm.SubVP(max_log_snr=4.0),
    "RectifiedFlow": lambda: pyro_mdm.RectifiedFlow(max_log_snr=4.0),
    "Cosine": lambda: pyro_mdm.Cosine(max_log_snr=4.0),
    "MomentumVE": lambda: pyro_mdm.MomentumVE(max_log_snr=4.0),
    "TimeVaryingDiffusion": lambda: pyro_mdm.TimeVaryingDiffusion(
        _constant(TURN), _constant(RUB), **ENDS
    ),
    "TimeVaryingLearnedDiffusion": lambda: pyro_mdm.TimeVaryingLearnedDiffusion(**ENDS),
    "TimeVaryingSDE": lambda: pyro_mdm.TimeVaryingSDE(
        _constant([[-1.0, 0.0], [0.0, -1.0]]), _constant(RUB), **ENDS
    ),
    "PerDimensionDiffusion": _blocks,
    "PerDimensionDiffusion of frequencies": lambda: _blocks(transform=Frequencies(1)),
    "EncodedDiffusion": lambda: pyro_mdm.EncodedDiffusion(
        CLD(initial_variance=0.25, **ENDS), nn.Linear(SIZE, SIZE)
    ),
    "DataDrivenDiffusion": _driven,
    "ContextDiffusion": _of_context,
    "Simulated": lambda: pyro_mdm.Simulated(CLD(**ENDS), STEPS),
    "LearnedDrift": lambda: pyro_mdm.LearnedDrift(
        CLD(**ENDS), MLP(2 * SIZE, out_features=2 * SIZE), simulation=STEPS
    ),
    "HamiltonianDiffusion with D(y)": lambda: Relativistic(simulation=STEPS, **ENDS),
}
"""Diffusions of the library, by the name that the page gives them."""


@cache
def kinds() -> dict[str, list[str]]:
    """The names of diffusions that have the same capabilities, by the first of them."""
    first: dict[frozenset[Cap], str] = {}
    alike: dict[str, list[str]] = {}
    for name, make in CLASSES.items():
        alike.setdefault(first.setdefault(make().caps, name), []).append(name)
    return alike


# -- scores ----------------------------------------------------------------------------------------


def _network(diffusion: Diffusion, inputs: int, outputs: int = 1) -> MLP:
    """A network of ``inputs`` numbers per dimension; contexts are further inputs."""
    context = 0 if diffusion.context is None else diffusion.context.size
    return MLP(inputs * SIZE + context, *SMALL, out_features=outputs * SIZE)


def _denoiser(diffusion: Diffusion, maps: bool = False) -> Denoiser:
    maps = maps or diffusion.maps
    network = _network(diffusion, 1 + maps)
    return Denoiser.fit(network, coordinates(diffusion, X), maps=maps)


def _discrete(diffusion: Diffusion, maps: bool = False) -> DiscreteDenoiser:
    maps = maps or diffusion.maps
    network = _network(diffusion, 1 + maps, len(LEVELS))
    return DiscreteDenoiser.fit(network, X, LEVELS, maps=maps)


def _mixed(diffusion: Diffusion) -> MixedDenoiser:
    columns = [None, None, None, LEVELS]
    network = MLP(2 * SIZE, *SMALL, out_features=MixedDenoiser.num_outputs(columns))
    return MixedDenoiser.fit(network, X, columns, maps=True)


def _whole(diffusion: Diffusion) -> MLP:
    """A network of the whole state."""
    return _network(diffusion, diffusion.num_variables, diffusion.num_variables)


def _residual(diffusion: Diffusion) -> ResidualScore:
    network = _whole(diffusion)
    return ResidualScore.fit(network, diffusion, X, num_levels=5, num_paths=16)


SCORES: Mapping[str, Callable[[Diffusion], Score]] = {
    "Denoiser": _denoiser,
    "Denoiser, maps": lambda diffusion: _denoiser(diffusion, maps=True),
    "DiscreteDenoiser": _discrete,
    "DiscreteDenoiser, maps": lambda diffusion: _discrete(diffusion, maps=True),
    "MixedDenoiser": _mixed,
    "StateDenoiser": lambda diffusion: StateDenoiser(Denoiser.fit(_whole(diffusion), X)),
    "NoisePrediction": lambda diffusion: NoisePrediction(_whole(diffusion)),
    "RawScore": lambda diffusion: RawScore(_whole(diffusion)),
    "ResidualScore": _residual,
}


NONE = ("StateDenoiser",)
"""Scores that CLD has no use for."""


def serving(diffusion: Diffusion, maps: bool = False) -> Score:
    """A score that serves the diffusion: a denoiser where there is one."""
    if Cap.KERNELS not in diffusion.caps:
        return _residual(diffusion)
    if Cap.READOUT not in diffusion.caps:
        return StateDenoiser(Denoiser.fit(_whole(diffusion), X))
    return _denoiser(diffusion, maps)


# -- trials ----------------------------------------------------------------------------------------


def _model(diffusion: Diffusion, score: Score, **options: Any) -> DiffusionModel:
    model = DiffusionModel(diffusion, score, event_shape=(SIZE,), **options)
    if getattr(model.sampler, "is_default", False):
        model.sampler.steps = FEW  # type: ignore[union-attr]
    return model


def _bound(diffusion: Diffusion, score: Score, **options: Any) -> None:
    elbo_terms(_model(diffusion, score, **options), DiffusionGuide(diffusion), X)


def _sampled(make: Callable[[int], Any]) -> Callable[[Diffusion, Score], object]:
    return lambda diffusion, score: _model(diffusion, score, sampler=make(FEW))(batch_size=2)


def _replaced(diffusion: Diffusion, score: Score) -> None:
    sampler = Replacement(StochasticExponentialIntegrator(FEW), OBSERVED, torch.zeros(SIZE))
    _model(diffusion, score, sampler=sampler)(batch_size=2)


def _likelihood(method: Method, **options: Any) -> Callable[[Diffusion, Score], object]:
    return lambda diffusion, score: log_likelihood(
        _model(diffusion, score), DiffusionGuide(diffusion), X, method=method, **options
    )


def _grid(diffusion: Diffusion, score: Score) -> None:
    Trace_ELBO().loss(_model(diffusion, score, times=5), DiffusionGuide(diffusion, 5), X)


def _labelled(diffusion: Diffusion, score: Score) -> None:
    owner: Any = getattr(score, "denoiser", score)
    network = owner.network
    if isinstance(network, MLP):  # labels are two more inputs
        owner.network = MLP(network.features + 2, *SMALL, out_features=network.outlet.out_features)
    model = _model(diffusion, score, context=Labels(2))
    labels = torch.zeros(len(X), dtype=torch.int64)
    elbo_terms(model, DiffusionGuide(diffusion), X, labels)


def _conditioned(diffusion: Diffusion, score: Score) -> None:
    condition(_model(diffusion, score), OBSERVED, torch.zeros(SIZE))(batch_size=2)


def _imputed(diffusion: Diffusion, score: Score) -> None:
    model, incomplete = _model(diffusion, score), X.clone()
    incomplete[0, 0] = math.nan
    impute(model, incomplete, num=2)


def _measured(diffusion: Diffusion, score: Score) -> None:
    row, value = torch.ones(1, SIZE), torch.tensor([1.0])
    condition_on_measurements(_model(diffusion, score), row, value, 0.1)(batch_size=2)


def _prior(diffusion: Diffusion, score: Score) -> None:
    MDM(_model(diffusion, score)).log_prob(X)


def _auxiliary(diffusion: Diffusion, score: Score) -> None:
    auxiliary_use(_model(diffusion, score), DiffusionGuide(diffusion), X, draws=2)


def _steps(diffusion: Diffusion, score: Score) -> None:
    step_size_bias(_model(diffusion, score), DiffusionGuide(diffusion), X, draws=1)


LIKELIHOODS: Mapping[str, Callable[[], Any]] = {
    "Gaussian": Gaussian,
    "Tweedie": Tweedie,
    "JointTweedie": JointTweedie,
    "DiscretizedGaussian": lambda: DiscretizedGaussian(LEVELS),
    "NetworkPosterior": NetworkPosterior,
}
SAMPLERS: Mapping[str, Callable[[Diffusion, Score], object]] = {
    **{
        kind.__name__: _sampled(kind)
        for kind in (
            *(ExponentialIntegrator, StochasticExponentialIntegrator, Ancestral, Splitting),
            *(EulerMaruyama, StochasticHeun, ProbabilityFlow, TorchSDE),
        )
    },
    "Replacement": _replaced,
}
QUESTIONS: Mapping[str, Callable[[Diffusion, Score], object]] = {
    "bound": lambda diffusion, score: bound(
        _model(diffusion, score), DiffusionGuide(diffusion), X, draws=1
    ),
    "log_likelihood, importance": _likelihood("importance", samples=8, times=5),
    "log_likelihood, flow": _likelihood("flow", solver=Solver("euler", steps=3)),
    "paths on a grid, times=N": _grid,
    "MDM, a prior in Pyro": _prior,
    "x given its label, Labels": _labelled,
    "condition, some dimensions": _conditioned,
    "impute": _imputed,
    "condition_on_measurements": _measured,
    "auxiliary_use": _auxiliary,
    "step_size_bias": _steps,
}


# -- outcomes --------------------------------------------------------------------------------------

ROWS: Mapping[str, Mapping[str, Any]] = {
    "scores": SCORES,
    "likelihoods": LIKELIHOODS,
    "samplers": SAMPLERS,
    "questions": QUESTIONS,
}
"""The rows of each table."""


class Outcome(NamedTuple):
    """The outcome of one trial: None where the parts served, or the message of the refusal."""

    row: str
    column: str
    refused: str | None


def _try(
    table: str,
    row: str,
    make: Callable[[], Diffusion],
    make_score: Callable[[Diffusion], Score] | None,
) -> None:
    """One trial, by a score of this class or by one that serves the diffusion."""
    diffusion = make()
    score = None if make_score is None else make_score(diffusion)
    if table == "scores":
        _bound(diffusion, SCORES[row](diffusion))
    elif table == "likelihoods":
        by_levels = score is None and row == "NetworkPosterior"
        score = _discrete(diffusion) if by_levels else score or serving(diffusion)
        _bound(diffusion, score, likelihood=LIKELIHOODS[row]())
    else:
        told_maps = table == "questions"
        ROWS[table][row](diffusion, score or serving(diffusion, told_maps))


def refusal(trial: Callable[[], object]) -> str | None:
    """The message by which the library refuses a trial; None if it serves.

    Raises whatever is no refusal: an error of another kind, or one that the library's networks
    raise, since the trial has built these.
    """
    try:
        trial()
    except (TypeError, ValueError) as error:
        if not _of_the_library(error.__traceback__):
            raise
        return str(error).split("\nTrace Shapes:")[0].strip()  # Pyro adds its trace
    return None


def _of_the_library(traceback: TracebackType | None) -> bool:
    """Whether an error was raised by the library, other than by its networks."""
    file = Path()
    while traceback is not None:
        file, traceback = Path(traceback.tb_frame.f_code.co_filename), traceback.tb_next
    return file.is_relative_to(LIBRARY) and file.stem != "networks"


@cache
def outcomes(table: str, by: str) -> list[Outcome]:
    """The outcomes of all trials of a table, row by row.

    Args:
        table: a name of :data:`ROWS`.
        by: ``"diffusion"``, for a column of each kind of diffusion, or ``"score"``, for one of each
            score, under CLD.
    """
    pairs: Mapping[str, tuple[Callable[[], Diffusion], Any]]
    if by == "diffusion":
        pairs = {name: (CLASSES[name], None) for name in kinds()}
    else:
        pairs = {name: (CLASSES["CLD"], make) for name, make in SCORES.items() if name not in NONE}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # data of eight are too few for weights
        torch.manual_seed(0)
        return [
            Outcome(row, column, refusal(partial(_try, table, row, *pair)))
            for row in ROWS[table]
            for column, pair in pairs.items()
        ]
