"""Models in folders: every part comes back with the last bit, and nothing else is believed."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributions import Independent, StudentT

from pyro_mdm import (
    ALDA,
    CLD,
    VPSDE,
    DataDrivenDiffusion,
    Denoiser,
    Diffusion,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    EncodedDiffusion,
    HamiltonianDiffusion,
    LearnedDiffusion,
    LearnedDrift,
    LinearDiffusion,
    NoisePrediction,
    NonlinearDiffusion,
    PerDimensionDiffusion,
    RawScore,
    ResidualScore,
    Simulated,
    Simulation,
    StateDenoiser,
    elbo_terms,
)
from pyro_mdm.by_dimension import LearnedClocks
from pyro_mdm.diffusions.clocks import ConstantBeta, log_snr_times
from pyro_mdm.diffusions.linear import GaussianPrior
from pyro_mdm.levels.likelihoods import DiscretizedGaussian, NetworkPosterior
from pyro_mdm.likelihoods.base import Gaussian, JointTweedie, Likelihood, Tweedie
from pyro_mdm.networks import MLP
from pyro_mdm.pretrained import TENSORS, PretrainedError
from pyro_mdm.samplers import (
    Ancestral,
    EulerMaruyama,
    ExponentialIntegrator,
    ProbabilityFlow,
    Sampler,
    Splitting,
    StochasticExponentialIntegrator,
    StochasticHeun,
)
from pyro_mdm.seeing import ContextClocks, ContextDiffusion, DiscreteContext, GaussianContext
from pyro_mdm.simulated import TorchSDE
from pyro_mdm.simulated.priors import DistributionPrior, QuadraturePrior
from pyro_mdm.support import saved as saved_module
from tests.diffusions import DIFFUSIONS
from tests.problems import normal
from tests.saved_files import rewrite
from tests.varying.problems import less_data, more_noise, rubbing, turning

LEVELS = torch.linspace(-1.0, 1.0, 5).double()
SIMULATION = Simulation(step_size=0.25, points=2)


def data() -> Tensor:
    return LEVELS[torch.randint(5, (16, 2), generator=torch.Generator().manual_seed(3))].float()


def moved(module: nn.Module) -> Any:
    """With other parameters than it was made with, and of other seeds than it is made with."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.05 * normal(i, *p.shape).to(p))
    return module


def network(width: int, outputs: int | None = None) -> nn.Module:
    return moved(MLP(width, hidden=8, depth=1, out_features=outputs))


SCORES: dict[str, Callable[[Diffusion], Any]] = {
    "denoiser": lambda _: Denoiser.fit(network(2), data()),
    "tilt": lambda _: DiscreteDenoiser.fit(network(2, 4), data(), LEVELS, "tilt"),
    "logits": lambda _: DiscreteDenoiser.fit(network(2, 10), data(), LEVELS),
    "noise": lambda d: NoisePrediction(network(2 * d.num_variables)),
    "raw": lambda d: RawScore(network(2 * d.num_variables)),
    "residual": lambda d: ResidualScore.fit(
        network(2 * d.num_variables), d, data(), num_levels=3, num_paths=16
    ),
}


def saved_and_opened(model: DiffusionModel, folder: Path, **yours: Any) -> DiffusionModel:
    model.save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == [TENSORS]
    state = torch.get_rng_state()
    opened = DiffusionModel.from_pretrained(folder, classes=yours)
    assert torch.equal(state, torch.get_rng_state())
    assert not opened.training
    return opened


def loss(model: DiffusionModel) -> Tensor:
    torch.manual_seed(5)
    model.eval()
    terms = elbo_terms(model, DiffusionGuide(model.diffusion, model.times), data())
    return torch.stack([terms.reconstruction, terms.prior_kl, terms.diffusion]).detach()


def samples(model: DiffusionModel) -> Tensor:
    torch.manual_seed(6)
    with torch.no_grad():
        return model(batch_size=3)


def assert_same(one: DiffusionModel, other: DiffusionModel) -> None:
    mine, yours = one.state_dict(), other.state_dict()
    assert mine.keys() == yours.keys()
    assert all(torch.equal(mine[k], yours[k]) and mine[k].dtype == yours[k].dtype for k in mine)
    assert torch.equal(loss(one), loss(other))


def pairs() -> list[Any]:
    """Every diffusion with one score of six, which changes from one to the next."""
    names = list(SCORES)
    return [
        pytest.param(make, names[i % 6], id=f"{name}-{names[i % 6]}")
        for i, (name, make) in enumerate(DIFFUSIONS)
    ]


OF_TIME = {f.__name__: f for f in (turning, rubbing, less_data, more_noise)}
"""Those that the diffusions name."""


@pytest.mark.parametrize(("make", "score"), [*pairs()[::2], pairs()[-1]])
def test_losses_come_back_bit_for_bit(make: Any, score: str, tmp_path: Path) -> None:
    diffusion = make()
    if diffusion.cut_time is not None and score in ("denoiser", "tilt", "logits"):
        diffusion.max_log_snr = 9.0  # denoisers do not take one that is learned and cut in time
    function = SCORES[score](diffusion)
    likelihood = None if score in ("tilt", "logits") else Gaussian(0.1, 2.0)
    model = DiffusionModel(diffusion, function, likelihood, (2,), sampler=Splitting(4))
    opened = saved_and_opened(model, tmp_path / "model", **OF_TIME)
    assert type(opened.diffusion) is type(diffusion)
    assert type(opened.score_function) is type(function)
    assert repr(opened.sampler) == "Splitting(steps=4, order=1)"
    assert_same(model, opened)


# -- diffusions that are simulated, and their functions --------------------------------------------


class Cubic(NonlinearDiffusion):
    def __init__(self, strength: float, **options: Any) -> None:
        super().__init__(1, max_log_snr=6.0, simulation=SIMULATION, **options)
        self.strength = strength
        self.gain = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def drift(self, y: Tensor, s: Any) -> Tensor:
        return -(self.gain * self.strength * y**3).to(y)

    def dispersion(self, y: Tensor, s: Any) -> Tensor:
        return torch.eye(1, dtype=torch.float64)


class Field(nn.Module):
    """Does not remember what it was made with."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, features)

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return torch.tanh(self.layer(y))


def square(y: Tensor) -> Tensor:
    return y**2 / 2


def relativistic(y: Tensor) -> Tensor:
    return (1 + y**2).sqrt()


def friction(y: Tensor) -> Tensor:
    v = y[:, 1]
    return torch.diag_embed(torch.stack([torch.zeros_like(v), 1 + 1 / (1 + v**2)], -1))


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(1))

    def forward(self, y: Tensor) -> Tensor:
        return nn.functional.softplus(self.a) * y**2 / 4


def hamiltonian(**options: Any) -> HamiltonianDiffusion:
    given: dict[str, Any] = {"H": [square, relativistic], "D": friction, "max_log_snr": 6.0}
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    return HamiltonianDiffusion(Q=turn, simulation=SIMULATION, **(given | options))


def student() -> Independent:
    return Independent(StudentT(torch.full((1,), 5.0).double()), 1)


FUNCTIONS = {"square": square, "relativistic": relativistic, "friction": friction}

SIMULATED: list[tuple[str, Callable[[], NonlinearDiffusion], Mapping[str, Any]]] = [
    ("simulated", lambda: Simulated(CLD(max_log_snr=8.0), SIMULATION), {}),
    (
        "learned drift",
        lambda: LearnedDrift(LearnedDiffusion(2), network(4), limit=2.0, simulation=SIMULATION),
        {},
    ),
    (
        "a network of yours",
        lambda: LearnedDrift(CLD(beta=ConstantBeta(5.0)), Field(4), simulation=SIMULATION),
        {"Field": lambda: Field(4)},
    ),
    ("hamiltonian", hamiltonian, FUNCTIONS),
    (
        "energies with parameters",
        lambda: hamiltonian(H=nn.ModuleList([Energy(), Energy()]), D=torch.eye(2)),
        {"Energy": Energy},
    ),
    ("yours", lambda: Cubic(0.5, beta=ConstantBeta(2.0)), {"Cubic": Cubic}),
    (
        "gaussian prior",
        lambda: Cubic(0.5, prior=GaussianPrior(torch.eye(1).double() / 3)),
        {"Cubic": Cubic},
    ),
    (
        "distribution prior",
        lambda: Cubic(0.5, prior=DistributionPrior(student())),
        {"Cubic": Cubic, "Independent": student()},
    ),
    (
        "quadrature prior",
        lambda: Cubic(0.5, prior=QuadraturePrior([square], torch.device("cpu"))),
        {"Cubic": Cubic, "square": square},
    ),
]


@pytest.mark.parametrize(
    ("make", "yours", "score"),
    [pytest.param(*s[1:], ("raw", "residual")[i % 2], id=s[0]) for i, s in enumerate(SIMULATED)],
)
def test_simulated_ones_come_back_too(make: Any, yours: Any, score: str, tmp_path: Path) -> None:
    diffusion = moved(make())
    model = DiffusionModel(diffusion, SCORES[score](diffusion), event_shape=(2,))
    opened = saved_and_opened(model, tmp_path / "model", **yours)
    assert_same(model, opened)
    assert opened.diffusion.simulation == SIMULATION


# -- diffusions that differ between data or dimensions ---------------------------------------------

ENDS, WHERE = {"max_log_snr": 6.0}, torch.tensor([1, 0])
FOUR, TWO = (functools.partial(nn.Linear, 2, outputs) for outputs in (4, 2))


def of_context(context: GaussianContext | DiscreteContext) -> ContextDiffusion:
    return ContextDiffusion(VPSDE(**ENDS), context, ContextClocks(2, 2), WHERE)


def with_maps(width: int) -> Denoiser:
    return Denoiser.fit(network(width, 2), data(), maps=True)


OF_DATA: dict[str, tuple[Callable[[], Any], Callable[[], Any], Mapping[str, Any]]] = {
    "per dimension": (
        lambda: PerDimensionDiffusion(
            [CLD(**ENDS), LearnedDiffusion(2, **ENDS)], WHERE, LearnedClocks(2), WHERE
        ),
        lambda: with_maps(4),
        {},
    ),
    "gaussian context": (
        lambda: of_context(GaussianContext(FOUR(), 2)),
        lambda: with_maps(6),
        {"Linear": FOUR},
    ),
    "discrete context": (
        lambda: of_context(DiscreteContext(TWO(), 2)),
        lambda: with_maps(6),
        {"Linear": TWO},
    ),
    "encoded": (
        lambda: EncodedDiffusion(CLD(**ENDS), TWO()),
        lambda: StateDenoiser(Denoiser.fit(network(4), data())),
        {"Linear": TWO},
    ),
    "driven": (
        lambda: DataDrivenDiffusion(VPSDE(**ENDS), network(2, 2 * DataDrivenDiffusion.outputs())),
        lambda: SCORES["denoiser"](VPSDE()),
        {},
    ),
}


@pytest.mark.parametrize(("make", "score", "yours"), OF_DATA.values(), ids=OF_DATA)
def test_those_that_differ_between_data_come_back_too(
    make: Any, score: Any, yours: Any, tmp_path: Path
) -> None:
    model = moved(DiffusionModel(make(), score(), event_shape=(2,)))
    assert_same(model, saved_and_opened(model, tmp_path / "model", **yours))


# -- the other parts -------------------------------------------------------------------------------

LIKELIHOODS: dict[str, tuple[str, Callable[[], Likelihood]]] = {
    "gaussian": ("denoiser", lambda: Gaussian(torch.tensor([0.1, 0.2]), torch.tensor([1.0, 2.0]))),
    "flat": ("denoiser", Gaussian),
    "tweedie": ("noise", Tweedie),
    "joint": ("noise", JointTweedie),
    "levels": ("tilt", lambda: DiscretizedGaussian(5)),
    "posterior": ("logits", NetworkPosterior),
}


SAMPLERS: list[tuple[Sampler, str]] = [
    (Ancestral(3), "steps=3"),
    (EulerMaruyama(3), "steps=3"),
    (Splitting(3, order=2), "steps=3, order=2"),
    (ExponentialIntegrator(4, 3), "steps=4, order=3"),
    (StochasticExponentialIntegrator(4, grid="karras"), "steps=4, n"),
    (ProbabilityFlow(4, rtol=1e-3), "steps=4, solver=heun, rtol=0.001, atol=1e-05"),
    (TorchSDE(4), "steps=4, method=srk"),
    (StochasticHeun(4), "steps=4"),
]


@pytest.mark.parametrize(
    ("name", "sampler", "text"),
    [(list(LIKELIHOODS)[i % 6], *sampler) for i, sampler in enumerate(SAMPLERS)],
)
def test_every_likelihood_and_sampler(
    name: str, sampler: Sampler, text: str, tmp_path: Path
) -> None:
    score, likelihood = LIKELIHOODS[name]
    diffusion = CLD(max_log_snr=6.0)
    model = DiffusionModel(diffusion, SCORES[score](diffusion), likelihood(), (2,), sampler=sampler)
    opened = saved_and_opened(model, tmp_path / "model")
    assert repr(opened.sampler) == repr(sampler)
    assert repr(sampler).startswith(f"{type(sampler).__name__}({text}")
    assert opened.sampler.arguments() == sampler.arguments()
    assert_same(model, opened)
    assert torch.equal(samples(model), samples(opened))


@pytest.mark.parametrize("times", [4, log_snr_times(CLD(max_log_snr=6.0), 4)])
def test_a_chain(times: Any, tmp_path: Path) -> None:
    model = DiffusionModel(
        CLD(max_log_snr=6.0), SCORES["denoiser"](VPSDE()), event_shape=(2,), times=times
    )
    assert_same(model, saved_and_opened(model, tmp_path / "model"))


def test_what_changed_after_it_was_made(tmp_path: Path) -> None:
    """Ends, times, sampler, the network, its precision and the trained range."""
    model = DiffusionModel(CLD(), Denoiser(MLP(2)), event_shape=(2,))
    model.diffusion.max_log_snr, model.diffusion.min_log_snr = 8.0, -7.0
    model.score_function.network = network(2).double()
    model.score_function.set_trained_range(-7.0, 8.0)
    model.sampler = Ancestral(5)
    opened = saved_and_opened(model, tmp_path / "model")
    assert opened.diffusion.max_log_snr == 8.0 and opened.diffusion.min_log_snr == -7.0
    assert next(opened.score_function.network.parameters()).dtype == torch.float64
    assert repr(opened.sampler) == "Ancestral(steps=5)"
    with pytest.raises(ValueError, match="outside"):
        opened.score_function.check_log_snr(9.0)
    score = NoisePrediction(network(4))
    score.times = "vpsde"
    model = DiffusionModel(CLD(), score, event_shape=(2,))
    assert_same(model, saved_and_opened(model, tmp_path / "noise"))


def test_parameters_that_are_one_stay_one(tmp_path: Path) -> None:
    shared = Field(4)
    diffusion = LearnedDrift(CLD(), shared, simulation=SIMULATION)
    model = DiffusionModel(diffusion, RawScore(shared), event_shape=(2,))
    opened = saved_and_opened(model, tmp_path / "model", Field=Field(4))
    assert opened.diffusion.network is opened.score_function.network
    assert_same(model, opened)


class Turning(LinearDiffusion):
    def __init__(self, rate: float = 1.0, **options: Any) -> None:
        super().__init__([[0.0, -rate], [rate, 0.0]], [[0.0, 0.0], [0.0, 2 * rate]], **options)


class Half(Denoiser):
    def __init__(self, net: nn.Module, part: float) -> None:
        super().__init__(net)
        self.part = part

    def x_hat(self, z: Tensor, log_snr: Any) -> Tensor:
        return self.part * super().x_hat(z, log_snr)

    def arguments(self) -> dict[str, Any]:
        return {"net": self.network, "part": self.part}


class Mine(DiffusionModel):
    pass


def leap(diffusion: Any, score: Any, shape: Any, generator: Any = None, **options: Any) -> Tensor:
    return torch.zeros(*shape)


def test_classes_and_functions_of_your_own(tmp_path: Path) -> None:
    model = Mine(
        Turning(2.0, max_log_snr=7.0), Half(network(2), 0.5), event_shape=(2,), sampler=leap
    )
    model.save_pretrained(tmp_path)
    yours = {"Turning": Turning, "Half": Half, "leap": leap}
    opened = Mine.from_pretrained(tmp_path, classes=yours)
    assert isinstance(opened, Mine) and isinstance(opened.diffusion, Turning)
    assert opened.sampler is leap
    assert_same(model, opened)
    with pytest.raises(
        PretrainedError, match=r"names Mine at model, .*classes has Turning, Half, leap"
    ):
        DiffusionModel.from_pretrained(tmp_path, classes=yours)
    for name in yours:
        rest = {n: c for n, c in yours.items() if n != name}
        with pytest.raises(PretrainedError, match=rf"pass classes={{'{name}': {name}}}"):
            Mine.from_pretrained(tmp_path, classes=rest)


def with_a_field(folder: Path) -> DiffusionModel:
    model = DiffusionModel(CLD(), RawScore(Field(4)), event_shape=(2,))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "given",
    [lambda: Field(4), functools.partial(Field, 4), Field(4)],
    ids=["def", "partial", "one"],
)
def test_a_network_whose_arguments_are_not_known(given: Any, tmp_path: Path) -> None:
    model = with_a_field(tmp_path)
    assert_same(model, DiffusionModel.from_pretrained(tmp_path, classes={"Field": given}))


def test_a_library_class_s_name_does_not_make_one_of_yours_the_library_s(tmp_path: Path) -> None:
    model = DiffusionModel(CLD(), RawScore(type("MLP", (Field,), {})(4)), event_shape=(2,))
    model.save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match=r"names MLP at model.score.network, which is not of"):
        DiffusionModel.from_pretrained(tmp_path)
    opened = DiffusionModel.from_pretrained(tmp_path, classes={"MLP": lambda: Field(4)})
    assert_same(model, opened)
    model.diffusion = type("CLD", (Turning,), {})(2.0, max_log_snr=7.0)
    model.save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match=r"names CLD at model.diffusion, which is not of"):
        DiffusionModel.from_pretrained(tmp_path, classes={"MLP": lambda: Field(4)})


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, r"names Field at model.score.network, .* classes has nothing; pass classes={'Field'"),
        ({"Other": Field}, "classes has Other"),
        ({"Field": Field}, r"built without arguments .*'Field': lambda: Field\(…\)}"),
        ({"Field": lambda: Field(3)}, r"(?s)do not fit .*network.layer.weight"),
        ({"Field": lambda: MLP(4)}, r"(?s)do not fit .*Missing key"),
        ({"Field": 7}, r"model\.score cannot be built|7 here"),
    ],
)
def test_what_does_not_fit_is_said(given: Any, message: str, tmp_path: Path) -> None:
    with_a_field(tmp_path)
    with pytest.raises(PretrainedError, match=message):
        DiffusionModel.from_pretrained(tmp_path, classes=given)


def test_one_object_does_not_serve_two_places(tmp_path: Path) -> None:
    diffusion = LearnedDrift(CLD(), Field(4), simulation=SIMULATION)
    DiffusionModel(diffusion, RawScore(Field(4)), event_shape=(2,)).save_pretrained(tmp_path)
    with pytest.raises(
        PretrainedError, match=r"the Field in classes is used already when model.score"
    ):
        DiffusionModel.from_pretrained(tmp_path, classes={"Field": Field(4)})
    DiffusionModel.from_pretrained(tmp_path, classes={"Field": lambda: Field(4)})


class Many(LinearDiffusion):
    def __init__(self, *rates: float) -> None:
        super().__init__([[0.0]], [[rates[0]]])


def test_what_has_no_name_cannot_be_saved(tmp_path: Path) -> None:
    score = RawScore(network(4))
    for diffusion, message in (
        (hamiltonian(D=lambda y: friction(y)), r"model.diffusion.D is a lambda, .* def name"),
        (Many(1.0, 2.0), r"model.diffusion is a Many, whose constructor takes \*rates"),
    ):
        model = DiffusionModel(diffusion, score, event_shape=(2,))
        with pytest.raises(PretrainedError, match=message):
            model.save_pretrained(tmp_path / "model")
    other = type("Field", (nn.Module,), {"forward": lambda self, y, level: y})
    model = DiffusionModel(LearnedDrift(CLD(), Field(4)), RawScore(other()), event_shape=(2,))
    with pytest.raises(
        PretrainedError, match=r"score.network is called Field, as is another class"
    ):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# -- folders ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = DiffusionModel(ALDA(max_log_snr=8.0), Denoiser(network(2)), event_shape=(2,))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edited(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / TENSORS, lambda content, _: change(content))


def arguments(content: Any, part: str = "diffusion") -> Any:
    return content["model"]["arguments"][part]["arguments"]


def of_class(name: str) -> Callable[[Path], None]:
    return edited(lambda c: c["model"]["arguments"]["diffusion"].update({"class": name}))


def resaved(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / TENSORS, lambda _, tensors: change(tensors))


def as_format(number: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saved_module, "FORMAT", number)
            edited(lambda c: c)(folder)

    return damage


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: (f / TENSORS).unlink(), "model.safetensors is missing; .* save_pretrained or"),
    (as_format(9), "format 9, expected at most 2"),
    (edited(lambda c: c.pop("model")), r"is damaged \(KeyError: 'model'\)"),
    (of_class("Twisted"), "names the class Twisted at model.diffusion, which this version of"),
    (of_class("diffusions.base.Diffusion"), "names the class diffusions.base.Diffusion"),
    (of_class("os.system"), "names the class os.system"),
    (of_class("support.files.os.system"), "names the class support.files.os.system"),
    (of_class("pretrained.OpenedModel"), "names the class pretrained.OpenedModel"),
    (of_class("..models.digits.Digits"), "names the class ..models.digits.Digits"),
    (edited(lambda c: c.update(model=c["model"]["arguments"]["diffusion"])), "of the class ALDA"),
    (edited(lambda c: arguments(c).update(mass=-1.0)), "model.diffusion cannot be built of the"),
    (
        edited(lambda c: arguments(c, "score").update(data_mean={"tensor": "nowhere"})),
        "is damaged: model.score.data_mean is {'tensor': 'nowhere'}",
    ),
    (
        edited(lambda c: arguments(c).update(mass={"pickle": "gASV"})),
        "is damaged: model.diffusion.mass is {'pickle'",
    ),
    (edited(lambda c: arguments(c).update(horizon=2.0)), "horizon is 1.0 in the state dict and"),
    (resaved(lambda t: t.pop("score_function.data_mean")), "(?s)do not fit .*Missing"),
    (resaved(lambda t: t.update(x=torch.ones(1))), "(?s)fit .*Unexpected key"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message for _, message in DAMAGES])
def test_a_damaged_folder_is_an_error(damage: Any, message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(PretrainedError, match=message):
        DiffusionModel.from_pretrained(folder)


def test_what_stands_for_a_class_of_an_earlier_version(folder: Path) -> None:
    """Of a sampler that is retired; its arguments are those of then."""
    then = {"steps": 7, "corrections": 1, "strength": 0.5, "grid": None}
    retired = {"class": "PredictorCorrector", "arguments": then}
    edited(lambda c: c["model"]["arguments"].update(sampler=retired))(folder)
    with pytest.raises(PretrainedError, match=r"classes=\{'PredictorCorrector': …\}"):
        DiffusionModel.from_pretrained(folder)
    classes = {"PredictorCorrector": lambda steps, **_: Ancestral(steps)}
    opened = DiffusionModel.from_pretrained(folder, classes=classes)
    assert repr(opened.sampler) == repr(Ancestral(7))


def test_settings_have_the_last_word(folder: Path) -> None:
    """What a constructor is given does not decide the bound: a digit lost there changes none."""
    edited(lambda c: arguments(c).update(max_log_snr=7.0, mass=0.5))(folder)
    opened = DiffusionModel.from_pretrained(str(folder))
    assert opened.diffusion.max_log_snr == 8.0
    assert torch.equal(opened.diffusion.D, ALDA().D)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = DiffusionModel(CLD(), Denoiser(MLP(2)), event_shape=(2,))
    with pytest.raises(PretrainedError, match="is a file, expected a folder"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(PretrainedError, match="is missing"):
        DiffusionModel.from_pretrained(tmp_path / "file")


def test_nothing_is_pickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, refuse)
    DiffusionModel.from_pretrained(folder).save_pretrained(folder)
    header = int.from_bytes((folder / TENSORS).read_bytes()[:8], "little")
    json.loads((folder / TENSORS).read_bytes()[8 : 8 + header])


def test_other_files_stay_and_earlier_ones_are_replaced(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    model = DiffusionModel(VPSDE(), Denoiser(network(2)), event_shape=(2,))
    model.save_pretrained(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert_same(model, DiffusionModel.from_pretrained(folder))


def test_the_files_are_those_of_the_ecosystem(folder: Path) -> None:
    """The tensors alone load into a model that is built by hand."""
    other = DiffusionModel(ALDA(), Denoiser(MLP(2, hidden=8, depth=1)), event_shape=(2,))
    other.load_state_dict(safetensors.torch.load_file(folder / TENSORS))
    assert_same(DiffusionModel.from_pretrained(folder), other)
