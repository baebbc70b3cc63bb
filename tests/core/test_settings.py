"""State dicts restore what decides a bound, or are refused with what differs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributions import (
    Independent,
    MultivariateNormal,
    StudentT,
)
from torch.optim.swa_utils import AveragedModel

from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    HamiltonianDiffusion,
    LearnedDiffusion,
    NonlinearDiffusion,
    RawScore,
    Simulated,
    Simulation,
    elbo_terms,
)
from pyro_mdm.diffusions.clocks import ConstantBeta, LearnedBeta, log_snr_times
from pyro_mdm.diffusions.linear import GaussianPrior
from pyro_mdm.likelihoods.base import JointTweedie, Tweedie
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.simulated.priors import DistributionPrior
from pyro_mdm.support.settings import EXTRA_STATE, Recorded, arguments_of
from tests.problems import normal


def model(diffusion: Any = None, **options: Any) -> DiffusionModel:
    diffusion = CLD(max_log_snr=9.0) if diffusion is None else diffusion
    linear = not isinstance(diffusion, NonlinearDiffusion)
    score = Denoiser(MLP(2, 8, 1)) if linear else RawScore(MLP(4, 8, 1))
    return DiffusionModel(diffusion, score, event_shape=(2,), **options)


def loss(model: DiffusionModel) -> Tensor:
    torch.manual_seed(0)
    guide = DiffusionGuide(model.diffusion, model.times)
    return elbo_terms(model, guide, normal(5, 8, 2).float()).elbo.detach()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def through_safetensors(state: dict[str, Any]) -> dict[str, Any]:
    return safetensors.torch.load(safetensors.torch.save(state))


@pytest.mark.parametrize("how", [dict, through_a_file, through_safetensors])
def test_a_state_dict_alone_restores_the_loss(how: Callable[[dict[str, Any]], dict[str, Any]]):
    saved, other = model(CLD(max_log_snr=9.0)), model(CLD(max_log_snr=13.0, min_log_snr=-5.0))
    assert not torch.equal(loss(saved), loss(other))
    other.load_state_dict(how(saved.state_dict()))
    assert other.diffusion.max_log_snr == 9.0 and other.diffusion.min_log_snr is None
    assert torch.equal(loss(saved), loss(other))


@pytest.mark.parametrize("times", [5, log_snr_times(CLD(max_log_snr=9.0), 4)])
def test_the_times_of_a_chain_are_restored(times: Any):
    saved, other = model(times=times), model()
    guide, fresh = DiffusionGuide(saved.diffusion, times), DiffusionGuide(other.diffusion)
    other.load_state_dict(saved.state_dict())
    fresh.load_state_dict(guide.state_dict())
    assert torch.equal(loss(saved), loss(other))
    assert torch.equal(torch.as_tensor(fresh.times), torch.as_tensor(times))
    simulated = DiffusionGuide(Simulated(CLD()), simulation=Simulation(step_size=0.1))
    bare = DiffusionGuide(Simulated(CLD()))
    bare.load_state_dict(simulated.state_dict())
    assert bare.simulation == simulated.simulation


class Pull(NonlinearDiffusion):
    def __init__(self, strength: float, prior: Any = None) -> None:
        super().__init__(1, initial_variance=0.02, prior=prior)
        self.strength = strength

    def drift(self, y: Tensor, s: Any) -> Tensor:
        return -self.strength * y

    def dispersion(self, y: Tensor, s: Any) -> Tensor:
        return torch.eye(1, dtype=torch.float64)


def friction(y: Tensor) -> Tensor:
    return torch.eye(2, dtype=torch.float64).expand(len(y), *y.shape[2:], 2, 2)


def square(y: Tensor) -> Tensor:
    return y**2 / 2


def quartic(y: Tensor) -> Tensor:
    return y**4 / 4


def student(freedom: float) -> DistributionPrior:
    return DistributionPrior(Independent(StudentT(torch.full((1,), freedom).double()), 1))


TURN = [[0.0, -1.0], [1.0, 0.0]]
EYE = [[1.0, 0.0], [0.0, 1.0]]

DIFFERENT: list[tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = [
    (lambda: CLD(horizon=2.0), CLD, "horizon is 2.0 in the state dict and 1.0 here"),
    (lambda: CLD(beta=ConstantBeta(4.0)), CLD, "'beta': 4.0} in the state dict and .*20"),
    (
        lambda: CLD(beta=LearnedBeta(horizon=2.0), horizon=2.0),
        lambda: CLD(beta=LearnedBeta()),
        "horizon is 2.0",
    ),
    (Tweedie, JointTweedie, "is of the class Tweedie, this is a JointTweedie"),
    (lambda: UNet(attention=(0,), heads=2), lambda: UNet(attention=(0,)), "heads is 2 in the"),
    (
        lambda: Pull(2.0, GaussianPrior(torch.eye(1))),
        lambda: Pull(2.0, GaussianPrior(2 * torch.eye(1))),
        r"'covariance': \[\[1.0\]\]} in the state dict and .*\[\[2.0\]\]",
    ),
    (lambda: Pull(2.0, student(5.0)), lambda: Pull(2.0, student(4.0)), "'class': 'StudentT', 'df'"),
    (
        lambda: HamiltonianDiffusion([square, square], TURN, EYE),
        lambda: HamiltonianDiffusion([square, quartic], TURN, EYE),
        r"H is \['square', 'square'\] in the state dict and \['square', 'quartic'\] here",
    ),
    (
        model,
        lambda: DiffusionModel(CLD(max_log_snr=9.0), Denoiser(MLP(2, 8, 1)), event_shape=(2, 1)),
        r"event_shape is \[2\] in the state dict and \[2, 1\] here",
    ),
]


@pytest.mark.parametrize(("saved", "here", "message"), DIFFERENT, ids=[d[-1] for d in DIFFERENT])
def test_what_cannot_be_restored_is_refused(saved: Any, here: Any, message: str):
    saved().load_state_dict(saved().state_dict())
    with pytest.raises(RuntimeError, match=message):
        here().load_state_dict(saved().state_dict())


def test_a_mistake_says_which_part_of_the_model_it_is_in():
    with pytest.raises(RuntimeError, match=r"\tdiffusion: horizon is 2.0 .*: build the CLD as it"):
        model(CLD()).load_state_dict(model(CLD(horizon=2.0)).state_dict())


def test_what_is_in_buffers_is_taken_over():
    one, other = CLD(), CLD(mass=0.5, friction=1.0, initial_variance=0.02)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one.start_time, other.start_time)
    here = Pull(2.0)
    here.initial_covariance.mul_(2)
    here.load_state_dict(Pull(2.0).state_dict())
    assert torch.equal(here.initial_covariance, Pull(2.0).initial_covariance)
    curved = HamiltonianDiffusion([square, square], TURN, EYE)
    curved.load_state_dict(
        HamiltonianDiffusion([square, square], TURN, [[2.0, 0.0], [0.0, 1.0]]).state_dict()
    )
    assert float(curved.D.constant[0, 0]) == 2.0


def test_a_lazy_attribute_of_a_distribution_is_no_setting():
    law = MultivariateNormal(torch.zeros(1).double(), torch.eye(1).double())
    state = Pull(2.0, DistributionPrior(law)).state_dict()
    assert "precision_matrix" not in vars(law)
    law.precision_matrix  # noqa: B018  computed now
    Pull(2.0, DistributionPrior(law)).load_state_dict(state)


def test_state_dicts_without_settings_are_refused_and_can_be_taken_as_they_are():
    saved = model()
    old = {k: t for k, t in saved.state_dict().items() if not k.endswith(EXTRA_STATE)}
    here = model(CLD(max_log_snr=13.0))
    with pytest.raises(RuntimeError, match=r'Missing key.*"diffusion._extra_state"'):
        here.load_state_dict(old)
    here.load_state_dict(old, strict=False)
    assert here.diffusion.max_log_snr == 13.0


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(3, dtype=torch.uint8), torch.ones(2), "text", torch.tensor([123, 125]).byte()],
)
def test_damaged_settings_are_refused(bad: Any):
    with pytest.raises(RuntimeError, match=r"settings in the state dict cannot be read|class None"):
        CLD().load_state_dict(CLD().state_dict() | {EXTRA_STATE: bad})


def test_settings_of_another_version_are_refused():
    state = CLD().state_dict()
    older = bytes(state[EXTRA_STATE].tolist()).replace(b', "cut_time": null', b"")
    newer = bytes(state[EXTRA_STATE].tolist()).replace(b"{", b'{"twist": 2, ', 1)
    for text, message in ((older, "another version of pyro_mdm"), (newer, "twist is 2 .* absent")):
        with pytest.raises(RuntimeError, match=message):
            CLD().load_state_dict(state | {EXTRA_STATE: torch.tensor(list(text)).byte()})


def test_averages_and_wrappers_save_and_load_them():
    """AveragedModel copies the programs, and MDM_ELBO is a module of both."""
    one = model(LearnedDiffusion(2, max_log_snr=9.0, min_log_snr=-8.0))
    average = AveragedModel(one)
    average.update_parameters(one)
    other = AveragedModel(model(LearnedDiffusion(2)))
    other.load_state_dict(through_a_file(average.state_dict()))
    averaged: Any = other.module
    assert averaged.diffusion.max_log_snr == 9.0 and averaged.diffusion.min_log_snr == -8.0
    assert torch.equal(loss(averaged), loss(one))
    objective = MDM_ELBO()(one, DiffusionGuide(one.diffusion))
    fresh = model(LearnedDiffusion(2))
    MDM_ELBO()(fresh, DiffusionGuide(fresh.diffusion)).load_state_dict(objective.state_dict())
    assert torch.equal(loss(fresh), loss(one))


# -- what an object was made of --------------------------------------------------------------------


class Made(Recorded):
    def __init__(
        self, a: int, b: float = 2.0, *rest: int, c: str = "c", d: Any = torch.relu, **others: Any
    ) -> None:
        self.b = b


def test_arguments_are_those_of_the_constructor_by_name():
    assert Made(1).arguments() == {"a": 1, "b": 2.0, "c": "c"}
    assert Made(1, 3.0, 4, 5, c="d", e=6).arguments() == {
        "a": 1,
        "b": 3.0,
        "*rest": (4, 5),
        "c": "d",
        "e": 6,
    }
    assert arguments_of(VPSDE(max_log_snr=9.0)) == {"max_log_snr": 9.0}
    with pytest.raises(TypeError, match=r"__init__\(\) missing 1 required"):
        Made()


def test_a_tensor_is_kept_without_its_graph():
    mean = torch.ones(2, requires_grad=True) * 2
    score = Denoiser(MLP(2), mean.double(), 1.0)
    assert not score.arguments()["data_mean"].requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AveragedModel(score)
