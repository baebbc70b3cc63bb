"""Models that are on another device than the CPU: no tensor of a step is left behind.

``tests.elsewhere`` is the device, so that no machine needs a GPU for these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

from docs._ext import trials
from docs._ext.trials import X
from pyro_mdm import Denoiser, DiffusionModel, Simulation
from pyro_mdm.evaluation.drawing import draw_batches
from pyro_mdm.networks import MLP
from pyro_mdm.plots.figures import paths_figure, views_figures
from pyro_mdm.plots.pictures import noising_figure
from pyro_mdm.plots.tensorboard import write_simulated
from pyro_mdm.samplers import EulerMaruyama, ExponentialIntegrator
from pyro_mdm.seeing import path_information_gap
from tests.benchmarks.operations import MODELS, STEPS, moved
from tests.elsewhere import DeviceError, Elsewhere

# -- the device ------------------------------------------------------------------------------------


def test_a_tensor_is_where_it_was_put_or_computed() -> None:
    x = torch.arange(6.0)
    with Elsewhere():
        y = x.to("cuda")
        assert y.device.type == "cuda" and y.is_cuda and x.device.type == "cpu"
        others = (y + 1, y.view(2, 3), y.new_zeros(2), torch.zeros(2, device="cuda"), y.to(x.dtype))
        assert all(other.is_cuda for other in others)
        assert torch.as_tensor([1.0], device=y.device).is_cuda and torch.zeros(2).to(y).is_cuda
        assert torch.randn(2, device="cuda", generator=torch.Generator("cuda")).is_cuda
        assert torch.func.vmap(lambda z: z.new_ones(()) * z)(y).is_cuda
        assert not any(z.is_cuda for z in (y.cpu(), torch.zeros(2), y.to(x), x.to("cpu")))
        assert nn.Linear(2, 2).to("cuda").weight.is_cuda
        with torch.device("cuda"):
            assert nn.Linear(2, 2).weight.is_cuda
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: torch.cat([y, x]),
        lambda x, y: torch.stack([x[0], y[0]]),
        lambda x, y: torch.equal(x[0], y[0]),
        lambda x, y: y.index_put_((torch.tensor([0, 1]),), x[:2]),
        lambda x, y: torch.randn(2, device="cuda", generator=torch.Generator()),
        lambda x, y: nn.Linear(6, 1)(y),
        lambda x, y: torch.func.vmap(torch.mul)(x, y),
    ],
)
def test_two_devices_in_one_operation_are_refused(mix: Callable[[Tensor, Tensor], object]) -> None:
    with Elsewhere():
        with pytest.raises(DeviceError):
            mix(torch.ones(6), torch.ones(6, device="cuda"))
        with pytest.raises(TypeError, match=r"call \.cpu"):
            torch.ones(6, device="cuda").numpy()


def test_single_numbers_join_arithmetic_and_gradients_come_back() -> None:
    with Elsewhere() as device:
        x = torch.ones(3, requires_grad=True)
        y = x.to("cuda")
        (y * torch.tensor(2.0) + torch.where(y > 0, y, torch.tensor(0.0))).sum().backward()
        assert x.grad is not None and not x.grad.is_cuda and x.grad.tolist() == [3.0] * 3
        assert [shape for shape, _ in device.sent] == [(3,)]
        y.detach()[torch.tensor([0, 1])]
        y.detach().copy_(torch.zeros(3))
        torch.tensor([1.0, 2.0], device="cuda")
        assert [shape for shape, _ in device.sent] == [(3,), (2,), (3,), (2,)]


# -- all that goes with a model --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # data of eight are too few for weights
@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (table, kind)
        for i, table in enumerate(trials.ROWS)
        for kind in [*trials.kinds()][i :: len(trials.ROWS)]
    ],
)
def test_what_serves_a_diffusion_serves_it_elsewhere(
    table: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score that was fitted on the CPU, and then moved with its diffusion."""
    model_of, data = trials._model, {name: getattr(trials, name) for name in ("X", "OBSERVED")}

    def elsewhere(*parts: Any, **options: Any) -> Any:
        for name, value in data.items():
            monkeypatch.setattr(trials, name, value.to("cuda"))
        return model_of(*parts, **options).to("cuda")

    served = 0
    for row in trials.ROWS[table]:
        trial = partial(trials._try, table, row, trials.CLASSES[kind], None)
        with monkeypatch.context() as patched, Elsewhere():
            torch.manual_seed(0)
            patched.setattr(trials, "_model", elsewhere)
            patched.setattr(trials, "STEPS", Simulation(step_size=0.5))
            refused = trials.refusal(trial)
        for name, value in data.items():
            monkeypatch.setattr(trials, name, value)
        assert "device" not in (refused or ""), (row, refused)
        served += refused is None
    assert served


def draws(model: DiffusionModel) -> None:
    model.sampler = EulerMaruyama(3)
    assert not any(x.is_cuda for _, x in draw_batches(model, 5, batch_size=3))


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        ("CLD", lambda d: draws(DiffusionModel(d, Denoiser(MLP(4), X[0], X[0].exp())).to("cuda"))),
        ("ContextDiffusion", lambda d: views_figures(d, X)),
        ("EncodedDiffusion", lambda d: noising_figure(d, X)),
        ("LearnedDrift", lambda d: paths_figure(d, X)),
        ("HamiltonianDiffusion with D(y)", lambda d: paths_figure(d, X)),
        ("LearnedDrift", lambda d: write_simulated(MagicMock(), d, X, 1)),
        ("DataDrivenDiffusion", lambda d: path_information_gap(d, X.to("cuda"), levels=4, draws=2)),
    ],
)
def test_what_is_drawn_of_a_diffusion_is_where_its_networks_are(
    kind: str, use: Callable[[Any], object]
) -> None:
    """From data on the CPU, as they are stored."""
    with Elsewhere():
        use(trials.CLASSES[kind]().to("cuda"))


# -- steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss, VPSDE", "loss, CLD"])
def test_a_denoisers_loss_sends_coefficients_alone(name: str) -> None:
    """K×K numbers at ε, and log SNRs. That other steps are on one device is seen where their
    operations are counted."""
    with Elsewhere() as device:
        with torch.device("cuda"):
            step, _, trained = STEPS[name]()
        step()
        moved(trained)
        device.sent.clear()
        step()
        sizes = [math.prod(shape) for shape, _ in device.sent]
        assert len(sizes) <= 8 and max(sizes) <= 64, device.sent


@pytest.mark.parametrize("name", ["CLD", "given a measurement, CLD"])
def test_a_call_of_a_sampler_sends_nothing(name: str) -> None:
    """More steps have no more to send, as it is all of the grid."""
    sent = []
    with Elsewhere() as device:
        with torch.device("cuda"):
            model = MODELS[name]().eval()
        for steps in (2, 2, 3):
            device.sent.clear()
            model.sampler = ExponentialIntegrator(steps)
            assert model(batch_size=2).is_cuda
            sent.append(len(device.sent))
    assert sent[1] == sent[2]
