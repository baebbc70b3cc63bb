"""Steps of samplers and the training loss, compiled whole."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func

from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    Diffusion,
    DiffusionGuide,
    DiffusionModel,
    LearnedDiffusion,
    MomentumVE,
    NoisePrediction,
    PerDimensionDiffusion,
    condition,
)
from pyro_mdm.diffusions import UnsupportedDiffusionError
from pyro_mdm.networks import MLP
from pyro_mdm.samplers import (
    Ancestral,
    EulerMaruyama,
    ExponentialIntegrator,
    ProbabilityFlow,
    StochasticExponentialIntegrator,
)
from pyro_mdm.scores import RawScore
from pyro_mdm.training import Trainer

pytestmark = [
    pytest.mark.without_noise,
    pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning"),  # of inductor
]
BACKEND = "inductor" if any(map(shutil.which, ("g++", "c++", "clang++"))) else "aot_eager"
"""The backend that needs a compiler of C++, where there is one."""
D = 3


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """The number of graphs that were compiled."""
    return int(counters["stats"]["unique_graphs"])


def filled(model: DiffusionModel) -> DiffusionModel:
    """The model with a network that is not 0."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.score_function.network.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def denoising(diffusion: Diffusion, maps: bool = False) -> DiffusionModel:
    mean, variance = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 0.5, 2.0])
    network = MLP(D * (2 if maps else 1), hidden=8, out_features=D)
    return filled(DiffusionModel(diffusion, Denoiser(network, mean, variance, maps=maps)))


def raw(diffusion: Diffusion, kind: Callable[..., Any] = NoisePrediction) -> DiffusionModel:
    network = MLP(D * diffusion.num_variables, hidden=8)
    return filled(DiffusionModel(diffusion, kind(network), event_shape=(D,)))


def given() -> DiffusionModel:
    seen, values = torch.tensor([True, False, False]), torch.tensor([0.3, 0.0, 0.0])
    return condition(denoising(CLD(max_log_snr=9.0), maps=True), seen, values)


MODELS: dict[str, Callable[[], DiffusionModel]] = {
    "vpsde": lambda: denoising(VPSDE(max_log_snr=9.0)),
    "cld": lambda: denoising(CLD(max_log_snr=9.0)),
    "maps": lambda: denoising(CLD(max_log_snr=9.0), maps=True),
    "noise": lambda: raw(CLD(max_log_snr=9.0)),
    "raw": lambda: raw(VPSDE(max_log_snr=9.0), RawScore),
    "not at rest": lambda: raw(MomentumVE(max_log_snr=9.0), RawScore),
}
SAMPLERS: dict[str, Callable[[], Any]] = {
    "exponential": lambda: ExponentialIntegrator(5),
    "exponential_3": lambda: ExponentialIntegrator(5, order=3),
    "stochastic": lambda: StochasticExponentialIntegrator(5, noise=0.5),
    "ancestral": lambda: Ancestral(5),
    "flow": lambda: ProbabilityFlow(5),
}
OTHERS = [
    ("raw", "flow", None),
    ("noise", "stochastic", None),
]
CASES = [
    *(("cld", sampler, None) for sampler in ("exponential_3", "ancestral")),
    ("given", "exponential", "aot_eager"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS),
]


def drawn(model: DiffusionModel, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(batch_size=4)


def recorded(operations: list[str], symbols: list[object]) -> Any:
    """A backend that records the operations of all graphs, and sizes that are not numbers."""

    def look(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        operations.extend(str(node.target) for node in graph.graph.nodes)
        symbols.extend(i for i in inputs if not isinstance(i, Tensor))
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=look, bw_compiler=look)


MADE_BY_THE_HOST = ("_local_scalar", "nonzero", "lift_fresh", "scalar_tensor", "_tensor_constant")
"""What a graph of a GPU cannot repeat: reads, shapes by data, and tensors of Python's numbers."""


def is_repeatable(operations: list[str], symbols: list[object]) -> bool:
    return (
        bool(operations)
        and not symbols
        and not any(name in operation for operation in operations for name in MADE_BY_THE_HOST)
    )


@pytest.mark.parametrize(("name", "sampler", "backend"), CASES)
def test_a_step_of_a_sampler_is_one_graph(name: str, sampler: str, backend: str | None) -> None:
    """For all steps, and for a second run; a graph of a GPU can be repeated."""
    operations, symbols = list[str](), list[object]()
    model = given() if name == "given" else MODELS[name]()
    model.sampler = SAMPLERS[sampler]()
    expected = [drawn(model, seed) for seed in (1, 2)]
    calls = model.sampler.calls
    assert model.sampler.compile(backend or recorded(operations, symbols)) is model.sampler
    found = [drawn(model, seed) for seed in (1, 2)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[0], found[1])
    assert model.sampler.calls == calls
    assert graphs() == 1
    assert backend or is_repeatable(operations, symbols)


class Hasty(EulerMaruyama):
    """A sampler whose step depends on more than tensors."""

    def step(self, plan: Any, i: int, y: Tensor, ask: Any, noise: Any) -> Tensor:
        return super().step(plan, i, y, ask, noise if i < 2 else lambda: torch.zeros_like(y))


def test_what_cannot_be_compiled_whole_is_refused() -> None:
    with pytest.raises(TypeError, match="Hasty has a step of its own"):
        Hasty(5).compile("aot_eager")
    with pytest.raises(TypeError, match="ProbabilityFlow has a step of its own"):
        ProbabilityFlow(5, solver="dopri5").compile("aot_eager")

    blocks = torch.zeros(D, dtype=torch.long)
    clocks = PerDimensionDiffusion([VPSDE(max_log_snr=9.0)], block_of=blocks)
    model = denoising(clocks, maps=True)
    model.sampler = Ancestral(3)
    drawn(model, 1)
    model.sampler.compile("aot_eager")
    with pytest.raises(UnsupportedDiffusionError, match="without compile"):
        drawn(model, 1)


def test_a_compiled_step_says_what_is_not_finite() -> None:
    model = MODELS["cld"]()
    model.sampler = ExponentialIntegrator(3).compile("aot_eager")
    drawn(model, 1)
    next(model.score_function.network.parameters()).data[:] = torch.nan
    with pytest.raises(ValueError, match="expected finite weights"):
        drawn(model, 1)


@pytest.mark.slow
def test_a_copy_of_a_compiled_sampler_compiles_again() -> None:
    model = MODELS["vpsde"]()
    model.sampler = Ancestral(3).compile("aot_eager")
    expected = drawn(model, 1)
    for other in (copy.deepcopy(model.sampler), pickle.loads(pickle.dumps(model.sampler))):
        model.sampler = other
        torch.testing.assert_close(drawn(model, 1), expected)


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=1)
def test_there_may_be_more_shapes_than_torch_compiles_one_code_for() -> None:
    model = MODELS["vpsde"]()
    model.sampler, objective = Ancestral(2).compile("eager"), MDM_ELBO().compile("eager")
    for n in (2, 3):
        assert model(batch_size=n).shape == (n, D)
        assert loss_of(objective, model, torch.ones(n, D), 1)[0].isfinite()
    assert graphs() == 4


# -- the loss --------------------------------------------------------------------------------------


def loss_of(objective: MDM_ELBO, model: DiffusionModel, x: Tensor, seed: int) -> list[Tensor]:
    """The loss of data, and the gradients of the network."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = objective(model, DiffusionGuide(model.diffusion))(x)
    loss.backward()
    weights = model.score_function.network.parameters()
    return [loss.detach(), *(w.grad.clone() for w in weights if w.grad is not None)]


LOSSES = [
    ("cld", True, None),
    ("not at rest", True, None),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("noise", True, None),
            ("cld", False, None),
            ("vpsde", True, BACKEND),
        )
    ),
]


@pytest.mark.parametrize(("name", "decoder", "backend"), LOSSES)
def test_the_loss_is_one_graph(name: str, decoder: bool, backend: str | None) -> None:
    operations, symbols = list[str](), list[object]()
    model, generator = MODELS[name](), torch.Generator().manual_seed(0)
    batches = [torch.randn(8, D, generator=generator) for _ in range(2)]
    expected = [loss_of(MDM_ELBO(decoder=decoder), model, x, 1) for x in batches]
    objective = MDM_ELBO(decoder=decoder).compile(backend or recorded(operations, symbols))
    found = [loss_of(objective, model, x, 1) for x in batches]
    assert len(found[0]) > 2
    for got, right in zip(chain(*found), chain(*expected), strict=True):
        # x - x̂ of the size e^{-λ/2} ≥ 0.01 is a difference of numbers of float32
        assert (got - right).abs().max() <= 1e-3 * right.abs().max()
    assert graphs() == 1
    assert backend or is_repeatable(operations, symbols)


def learned() -> DiffusionModel:
    return denoising(LearnedDiffusion(2, max_log_snr=9.0, min_log_snr=-9.0, seed=0))


@pytest.mark.parametrize("make", [learned, MODELS["maps"]])
def test_other_programs_are_left_to_pyro(make: Callable[[], DiffusionModel]) -> None:
    model, x = make(), torch.ones(4, D)
    expected = loss_of(MDM_ELBO(), model, x, 1)
    found = loss_of(MDM_ELBO().compile("aot_eager"), model, x, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not graphs()


@pytest.mark.slow
def test_a_trainer_compiles_the_whole_loss() -> None:
    model, x = MODELS["vpsde"](), torch.ones(4, D)
    loss = MDM_ELBO()(model, DiffusionGuide(model.diffusion))
    trainer = Trainer(loss, steps=2, compile="aot_eager")
    for _ in trainer:
        trainer.step(loss(x))
    assert graphs() == 1


def test_wrong_data_are_named_before_the_graph() -> None:
    model = MODELS["vpsde"]()
    with pytest.raises(ValueError, match="finite"):
        loss_of(MDM_ELBO().compile("aot_eager"), model, torch.full((4, D), torch.nan), 1)


def test_weights_that_are_not_finite_are_named() -> None:
    model = MODELS["vpsde"]()
    next(model.score_function.network.parameters()).data[:] = torch.nan
    with pytest.raises(ValueError, match="expected finite weights"):
        loss_of(MDM_ELBO().compile("aot_eager"), model, torch.ones(4, D), 1)
