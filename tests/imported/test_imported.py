"""Networks of others: every prediction, schedule and way of telling the time, by exact mixtures."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import diffusers
import pytest
import torch
from azula import denoise, noise, sample
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    MDM,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    RawScore,
    bound,
)
from pyro_mdm.conditioning import Labels
from pyro_mdm.imported import (
    EDMPreconditioned,
    ImportedDenoiser,
    NoiseSchedule,
    Prediction,
    SigmaDenoiser,
    check_import,
    from_azula,
    from_denoising_diffusion,
    from_diffusers,
    from_sigma_denoiser,
    from_velocity,
    to_azula,
)
from tests.mistakes import refused
from tests.problems import GaussianMixture

MIXTURE = GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-1.0, 0.5], [1.0, 0.2]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]]),
)
SHIFT, SCALE = torch.tensor([0.2, -0.1], dtype=torch.float64), 1.7


@dataclass
class Told:
    """How a network knows its schedule: α, σ and their rates by what it is told."""

    schedule: NoiseSchedule
    of_told: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


class Exact(nn.Module):
    """The best network for w = α x' + σ ε, x' = (x - shift) scale, x of a mixture."""

    def __init__(self, of_told: Callable[..., Any], predicts: str, shift: Any, scale: float):
        super().__init__()
        self.of_told, self.predicts, self.shift, self.scale = of_told, predicts, shift, scale

    def forward(self, w: Tensor, told: Tensor) -> Tensor:
        alpha, sigma, alpha_rate, sigma_rate = (
            torch.as_tensor(f, dtype=torch.float64).expand(len(w))[:, None]
            for f in self.of_told(told)
        )
        z = w / alpha / self.scale + self.shift
        log_snr = 2 * (alpha / sigma).log() + 2 * math.log(self.scale)
        x = self.scale * (MIXTURE.x_hat(z, log_snr[:, 0]) - self.shift)
        noise = (w - alpha * x) / sigma
        found = {
            "noise": noise,
            "data": x,
            "v": alpha * noise - sigma * x,
            "score": -noise / sigma,
            "velocity": alpha_rate * x + sigma_rate * noise,
        }
        return found[self.predicts]


def cosine(t: Tensor) -> tuple[Tensor, ...]:
    angle = math.pi / 2 * t
    return angle.cos(), angle.sin(), -math.pi / 2 * angle.sin(), math.pi / 2 * angle.cos()


BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def ddpm(number: Tensor) -> tuple[Tensor, ...]:
    assert number.dtype == torch.int64
    kept = (1 - BETAS).cumprod(0)[number]
    return kept.sqrt(), (1 - kept).sqrt(), torch.tensor(math.nan), torch.tensor(math.nan)


def continuous_vp(t: Tensor) -> tuple[Tensor, ...]:
    """Song's VPSDE with β from 0.1 to 20, told 999 t."""
    t = t / 999
    b, rate = 0.1 * t + 9.95 * t**2, 0.1 + 19.9 * t
    kept = (-b).exp()
    return (
        kept.sqrt(),
        (1 - kept).sqrt(),
        -rate * kept.sqrt() / 2,
        rate * kept / 2 / (1 - kept).sqrt(),
    )


SCHEDULES: dict[str, Told] = {
    "ddpm": Told(NoiseSchedule.from_betas(BETAS), ddpm),
    "cosine": Told(
        NoiseSchedule.from_functions(
            lambda t: (math.pi / 2 * t).cos(), lambda t: (math.pi / 2 * t).sin(), 1e-3, 0.999
        ),
        cosine,
    ),
    "vp": Told(
        NoiseSchedule.from_functions(
            lambda t: (-(0.1 * t + 9.95 * t**2) / 2).exp(),
            lambda t: (-torch.expm1(-(0.1 * t + 9.95 * t**2))).sqrt(),
            1e-3,
            time=lambda t: 999 * t,
        ),
        continuous_vp,
    ),
    "sigma": Told(
        NoiseSchedule.from_sigmas(0.01, 50.0),
        lambda s: (torch.ones_like(s), s, torch.zeros_like(s), torch.ones_like(s)),
    ),
    "log sigma": Told(
        NoiseSchedule.from_sigmas(0.01, 50.0, time=lambda s: s.log() / 4),
        lambda c: (torch.ones_like(c), (4 * c).exp(), torch.zeros_like(c), torch.ones_like(c)),
    ),
    "data at 1": Told(
        NoiseSchedule.flow(data_at=1),
        lambda t: (t, 1 - t, torch.ones_like(t), -torch.ones_like(t)),
    ),
    "data at 0": Told(
        NoiseSchedule.flow(data_at=0),
        lambda t: (1 - t, t, -torch.ones_like(t), torch.ones_like(t)),
    ),
}


def imported(
    told: Told, predicts: Prediction, shift: Any = SHIFT, scale: float = SCALE, **options: Any
) -> ImportedDenoiser:
    network = Exact(told.of_told, predicts, shift, scale)
    return ImportedDenoiser.fit(
        network,
        MIXTURE.sample(1000),
        copy.deepcopy(told.schedule),
        predicts,
        shift=shift,
        scale=scale,
        **options,
    )


def whole(denoiser: ImportedDenoiser) -> dict[str, float]:
    """The ends of a network's log SNRs."""
    return {
        "max_log_snr": denoiser.trained_max.item(),
        "min_log_snr": denoiser.trained_min.item(),
    }


CASES = [
    (name, predicts)
    for name in SCHEDULES
    for predicts in get_args(Prediction)
    if (name, predicts) != ("ddpm", "velocity")
]


@pytest.mark.parametrize(("name", "predicts"), CASES)
def test_what_is_read_is_the_denoiser(name: str, predicts: Prediction) -> None:
    """Of a discrete schedule at its own times; elsewhere the nearest is taken."""
    told = SCHEDULES[name]
    denoiser = imported(told, predicts)
    low, high = denoiser.trained_min.item(), denoiser.trained_max.item()
    if told.schedule.discrete:
        kept = (1 - BETAS).cumprod(0)
        lam = (kept / (1 - kept)).log()[[0, 10, 200, 600, 999]] + 2 * math.log(SCALE)
    else:
        lam = torch.tensor([low, low + 0.7123, (low + high) / 2, high - 1.2345, high]).double()
    x = MIXTURE.sample(5, seed=1)
    noise = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = x + torch.exp(-lam / 2)[:, None] * noise
    expected = MIXTURE.x_hat(z, lam)
    torch.testing.assert_close(denoiser.x_hat(z, lam), expected, rtol=1e-5, atol=1e-5)
    single = denoiser.x_hat(z[:1], float(lam[0]))
    torch.testing.assert_close(single, expected[:1], rtol=1e-5, atol=1e-5)


def test_of_times_that_are_whole_the_nearest_is_taken() -> None:
    denoiser = imported(SCHEDULES["ddpm"], "noise", 0.0, 1.0)
    table = denoiser.schedule.log_snr
    between = 0.4 * table[300] + 0.6 * table[301]
    at = denoiser.schedule.at(torch.stack([between, table[300], table[-1] + 1, table[0] - 1]))
    numbers = denoiser.schedule.time
    assert at.time.tolist() == [numbers[301], numbers[300], numbers[-1], numbers[0]]
    z = MIXTURE.sample(4)
    off = denoiser.x_hat(z, between) - MIXTURE.x_hat(z, between)
    assert 1e-7 < float(off.abs().max()) < 1e-2
    real = NoiseSchedule.from_functions(
        lambda t: (-(0.1 * t + 9.95 * t**2) / 2).exp(),
        lambda t: (-torch.expm1(-(0.1 * t + 9.95 * t**2))).sqrt(),
        1e-3,
        time=lambda t: 999 * t,
        points=101,
    )
    told = real.at((real.log_snr[3:5]).mean()).time
    assert float(told) == pytest.approx(float(real.time[3:5].mean()))


def test_it_answers_all_that_a_model_does() -> None:
    """The bound of an exact network is the law itself, and so is the density of its flow, with its
    gradient."""
    denoiser = imported(SCHEDULES["data at 1"], "velocity")
    diffusion = CLD(max_log_snr=12.0, min_log_snr=-10.0)
    model = DiffusionModel(diffusion, denoiser, event_shape=(2,))
    x = MIXTURE.sample(100, seed=2)
    found = bound(model, DiffusionGuide(diffusion), x, draws=32)
    expected = float(MIXTURE.log_prob(x).mean())
    assert abs(found.elbo.mean - expected) < 5 * found.monte_carlo_error + 0.01
    model = DiffusionModel(VPSDE(max_log_snr=12.0, min_log_snr=-10.0), denoiser, event_shape=(2,))
    x = x[:8].requires_grad_()
    exact = MIXTURE.log_prob(x)
    flow = MDM(model, method="flow").log_prob(x)
    torch.testing.assert_close(flow, exact, rtol=5e-2, atol=0.1)
    gradient, expected = (torch.autograd.grad(t.sum(), x)[0] for t in (flow, exact))
    assert float((gradient - expected).norm() / expected.norm()) < 0.4  # the decoder is drawn


def test_log_snrs_beyond_the_network_are_refused() -> None:
    denoiser = imported(SCHEDULES["cosine"], "v", 0.0, 1.0)
    ends = whole(denoiser)
    assert ends["max_log_snr"] == pytest.approx(2 * math.log(1 / math.tan(math.pi / 2 * 1e-3)))
    assert ends["min_log_snr"] == pytest.approx(-2 * math.log(math.tan(math.pi / 2 * 0.999)))
    with pytest.raises(ValueError, match=r"log SNR 20 is outside \["):
        denoiser.x_hat(torch.zeros(3, 2), 20.0)


def test_it_is_cast_and_its_state_is_loaded() -> None:
    denoiser = imported(SCHEDULES["vp"], "noise")
    again = imported(SCHEDULES["cosine"], "noise")
    z = MIXTURE.sample(6).float()
    assert denoiser.float().x_hat(z, 1.0).dtype == torch.float32
    torch.testing.assert_close(
        denoiser.x_hat(z, 1.0),
        MIXTURE.x_hat(z.double(), torch.tensor(1.0)).float(),
        rtol=1e-4,
        atol=1e-4,
    )
    assert denoiser.schedule.log_snr.dtype == torch.float64
    again.load_state_dict(denoiser.state_dict())
    assert torch.equal(again.schedule.time, denoiser.schedule.time)


@pytest.mark.parametrize("how", ["plain", "column", "edm"])
def test_it_is_saved_and_opens_with_the_network_named(tmp_path: Path, how: str) -> None:
    """The network is of another package, which is not imported by the folder."""
    data = MIXTURE.sample(1000)
    denoiser = {
        "plain": lambda: from_velocity(Linear(), data, shift=0.5, scale=2.0),
        "column": lambda: from_velocity(Linear(), data, time="column"),
        "edm": lambda: from_sigma_denoiser(
            EDMPreconditioned(Linear(), 0.7, sign=-1), data, 0.01, 50.0
        ),
    }[how]()
    model = DiffusionModel(VPSDE(**whole(denoiser)), denoiser, event_shape=(2,))
    model.save_pretrained(tmp_path)
    again = DiffusionModel.from_pretrained(tmp_path, classes={"Linear": Linear})
    z = MIXTURE.sample(5).float()
    found = again.score_function
    assert isinstance(found, ImportedDenoiser) and whole(found) == whole(denoiser)
    assert torch.equal(found.x_hat(z, 0.3), denoiser.x_hat(z, 0.3))
    with pytest.raises(ValueError, match="Linear"):
        DiffusionModel.from_pretrained(tmp_path)


def test_it_is_trained_further() -> None:
    denoiser = from_velocity(Linear(), MIXTURE.sample(1000).float())
    model = DiffusionModel(VPSDE(max_log_snr=9.0), denoiser, event_shape=(2,))
    loss = MDM_ELBO()(model, DiffusionGuide(model.diffusion))(MIXTURE.sample(64).float())
    loss.backward()
    assert all(bool((p.grad != 0).any()) for p in denoiser.network.network.parameters())


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 2)

    def forward(self, w: Tensor, told: Tensor | None = None) -> Tensor:
        found: Tensor = self.line(w if told is None else torch.cat([w, told[:, None]], 1))
        return found


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Embedding(3, 2)

    def forward(self, w: Tensor, told: Tensor, class_labels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.means(class_labels) + 0 * w)


def test_a_network_is_told_labels() -> None:
    denoiser = ImportedDenoiser.fit(
        Conditional(),
        MIXTURE.sample(100),
        NoiseSchedule.flow(),
        "data",
        call=lambda network, w, told, c: network(w, told, class_labels=c.argmax(1)),
        context_size=3,
    )
    model = DiffusionModel(VPSDE(max_log_snr=9.0), denoiser, event_shape=(2,), context=Labels(3))
    contexts = torch.eye(3)[[2, 0]]
    found = model.score_function.given_context(contexts).x_hat(torch.zeros(2, 2), 0.0)
    assert torch.equal(found, denoiser.network.network.means.weight[[2, 0]])


class Output(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, w: Tensor, told: Tensor) -> Any:
        return self.output(w)


def reading(output: Any, **options: Any) -> ImportedDenoiser:
    options |= {"data_mean": torch.zeros(2)}
    return ImportedDenoiser(Output(output), NoiseSchedule.flow(), "data", **options)


def test_outputs_of_several_kinds_are_read_and_others_named() -> None:
    for output in (
        lambda w: (w, 1),
        lambda w: [w],
        lambda w: SimpleNamespace(sample=w),
        lambda w: torch.distributions.Normal(w, 1.0),
    ):
        found = reading(output).x_hat(torch.ones(3, 2), 0.0)
        assert torch.equal(found, 0.5 * torch.ones(3, 2))
    learned = reading(lambda w: torch.cat([w, 9 + w], 1), learned_variance=True)
    assert torch.equal(learned.x_hat(torch.ones(3, 2), 0.0), 0.5 * torch.ones(3, 2))
    broken = reading(lambda w: w * math.nan)
    assert broken.x_hat(torch.zeros(3, 2), 0.0).isnan().all()

    def asked(output: Any) -> Callable[[], Tensor]:
        return lambda: reading(output).x_hat(torch.zeros(3, 2), 0.0)

    refused(
        (ValueError, TypeError),
        (asked(lambda w: torch.cat([w, w], 1)), "learned_variance=True"),
        (asked(lambda w: "nothing"), "returned 'nothing', expected a tensor"),
        (asked(lambda w: w[:, :1]), r"returned \(3, 1\)"),
        (asked(lambda w: w[:, 0]), r"returned \(3,\) for inputs \(3, 2\)"),
    )


class Pixels(nn.Module):
    """What knows each pixel alone, of images with twice the channels where it says a variance."""

    def __init__(self, learned_variance: bool = False) -> None:
        super().__init__()
        self.learned_variance = learned_variance
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, w: Tensor, time: Tensor) -> Tensor:
        x = self.gain * w * (1 - time[:, None, None, None])
        return torch.cat([x, 7 + x], 1) if self.learned_variance else x


def images(learned_variance: bool = False, **options: Any) -> ImportedDenoiser:
    network = Pixels(learned_variance)
    data = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    schedule = NoiseSchedule.flow(data_at=0)
    options |= {"learned_variance": learned_variance}
    return ImportedDenoiser.fit(network, data, schedule, "data", **options)


@pytest.mark.parametrize("learned_variance", [False, True])
def test_images_in_batches_of_two_dimensions(learned_variance: bool) -> None:
    shift = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    denoiser = images(learned_variance, shift=shift, scale=2.0)
    z, lam = torch.randn(5, 2, 3, 4, 4), torch.linspace(-4, 4, 10, dtype=torch.float64)
    with torch.no_grad():
        found = denoiser.x_hat(z, lam.reshape(5, 2))
        a = (lam / 2 - math.log(2)).sigmoid()[:, None, None, None].float()
        expected = a * 2 * (z.flatten(0, 1) - shift) * 0.5 * a / 2 + shift
        torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-5, atol=1e-6)
        single = denoiser.x_hat(z[0, 0], float(lam[0]))
        torch.testing.assert_close(single, expected[0], rtol=1e-5, atol=1e-6)


def test_a_network_of_low_precision() -> None:
    denoiser, half = images(), images()
    half.network.network.to(torch.bfloat16)
    z = torch.randn(6, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(half.x_hat(z, 1.0), denoiser.x_hat(z, 1.0), rtol=0.02, atol=0.02)
        assert half.x_hat(z.double(), 1.0).dtype == torch.float64


def test_data_of_double_precision_and_a_network_of_single() -> None:
    """Whose time is a column beside w, as in the networks of vectors of torchcfm."""
    denoiser = from_velocity(Linear(), MIXTURE.sample(100))
    z = MIXTURE.sample(5)
    x_hat = denoiser.x_hat(z, 0.3)
    assert x_hat.dtype == torch.float64
    torch.testing.assert_close(x_hat.float(), denoiser.x_hat(z.float(), 0.3), rtol=1e-4, atol=1e-4)


def test_a_schedule_of_cosines_ends_where_rounding_begins() -> None:
    """cos(π/2) is not quite 0, of which the log SNR would be -75."""
    schedule = NoiseSchedule.from_functions(
        lambda t: (math.pi / 2 * t).sin(), lambda t: (math.pi / 2 * t).cos()
    )
    low, high = schedule.range
    assert -40 < low < -15 and 15 < high < 40
    VPSDE(max_log_snr=high, min_log_snr=low)


def test_a_check_leaves_the_network_as_it_was() -> None:
    """With its statistics and its mode, though a new denoiser is in training mode."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, w: Tensor, time: Tensor) -> Any:
            return self.norm(w)

    network = Normed().eval()
    denoiser = from_velocity(network, MIXTURE.sample(100).float())
    check_import(denoiser, MIXTURE.sample(50).float())
    assert not network.training and not bool(network.norm.running_mean.any())


t = torch.linspace(0, 1, 5, dtype=torch.float64)


def test_mistakes() -> None:
    line, same, x = NoiseSchedule.flow(), nn.Identity(), torch.zeros(3, 2)
    no_rates: Any = NoiseSchedule(t, 1 - t, t)
    other: Any = SimpleNamespace(config=None, net=None)
    image = torch.zeros(2, 3, 4, 4)
    bent = torch.tensor([0.9, 0.1, 0.85, 0.2, 0.1])
    rates: Any = {"alpha_rate": t[:3], "sigma_rate": t}
    epsilon: Any = "epsilon"
    function: Any = lambda w, t: w  # noqa: E731
    refused(
        (ValueError, TypeError),
        (lambda: NoiseSchedule(t, 1 - t, t[:4]), "expected one length"),
        (lambda: NoiseSchedule(t, 1 - t, t, **rates), r"\(5,\), \(3,\), \(5,\), expected one len"),
        (lambda: NoiseSchedule(t, -t, t), "alpha runs from -1 to -0"),
        (lambda: NoiseSchedule(t, 1 - t, t / 0), "sigma runs from"),
        (lambda: NoiseSchedule(t, 1 - t, 0 * t), "0 of 5 times have both"),
        (lambda: NoiseSchedule(t, bent, t + 0.1), "monotone"),
        (lambda: NoiseSchedule.flow(data_at=0.5), "data_at is 0.5, expected 0 or 1"),
        (lambda: NoiseSchedule.from_sigmas(2.0, 1.0), "expected 0 < least < most"),
        (lambda: ImportedDenoiser(same, no_rates, "velocity"), "the schedule has no rates"),
        (lambda: ImportedDenoiser(same, line, epsilon), "predicts is 'epsilon', expected one of"),
        (lambda: ImportedDenoiser(same, line, "data", scale=0.0), "scale is 0.0, expected a pos"),
        (lambda: images(shift=torch.zeros(3)), r"shift has shape \(3,\), expected a number, or as"),
        (
            lambda: images(time="column").x_hat(image, 0.0),
            r"time is 'column', and w .*, expected v",
        ),
        (lambda: images().given_context(torch.ones(20, 2)), "given, and the network takes none"),
        (lambda: from_velocity(same, torch.zeros(3)), r"train_x has shape \(3,\)"),
        (lambda: from_velocity(function, x), "network is .*, expected"),
        (lambda: from_denoising_diffusion(other, x), "expected a GaussianDiffusion with betas"),
        (lambda: from_diffusers(same, other, x), "expected one with alphas_cumprod, of EDM or"),
    )


# -- whether it is read as it was trained ----------------------------------------------------------


def test_a_network_that_draws_is_named() -> None:
    """So does guidance by random directions; x̂ is then no function of z."""

    class Random(nn.Module):
        def forward(self, w: Tensor, told: Tensor) -> Tensor:
            return w + torch.randn_like(w)

    denoiser = from_velocity(Random(), MIXTURE.sample(100))
    with pytest.raises(ValueError, match="Random returned two outputs for one input and time"):
        check_import(denoiser, MIXTURE.sample(20))


def test_a_network_that_knows_nothing_is_worse_than_a_line() -> None:
    denoiser = ImportedDenoiser.fit(
        Output(lambda w: 7 + torch.sin(99 * w)),
        MIXTURE.sample(1000),
        NoiseSchedule.flow(),
        "data",
    )
    check = check_import(denoiser, MIXTURE.sample(500, seed=3))
    assert not check.is_plausible and check.likely is None
    assert "times that of a linear denoiser:" in str(check)


# -- packages --------------------------------------------------------------------------------------


def close(denoiser: ImportedDenoiser, lam: float = 1.3, tolerance: float = 1e-6) -> None:
    z = MIXTURE.sample(5, seed=4)
    expected = MIXTURE.x_hat(z, torch.tensor(lam))
    torch.testing.assert_close(denoiser.x_hat(z, lam), expected, rtol=tolerance, atol=tolerance)


def test_denoisers_of_sigma_and_velocities() -> None:
    data = MIXTURE.sample(1000)
    close(from_sigma_denoiser(Exact(SCHEDULES["sigma"].of_told, "data", 0.0, 1.0), data, 0.01, 50))
    for data_at in (0, 1):
        exact = Exact(SCHEDULES[f"data at {data_at}"].of_told, "velocity", 0.0, 1.0)
        close(from_velocity(exact, data, data_at=data_at))

        class TimeFirst(nn.Module):
            def forward(self, told: Tensor, w: Tensor, exact: Exact = exact) -> Any:
                return exact(w, told)

        close(from_velocity(TimeFirst(), data, data_at=data_at, time="first"))

        class Column(nn.Module):
            """Called as the ``MLP`` of ``torchcfm`` is: with one argument."""

            def forward(self, x: Tensor, exact: Exact = exact) -> Any:
                return exact(x[:, :-1], x[:, -1])

        close(from_velocity(Column(), data, data_at=data_at, time="column"))


class Raw(nn.Module):
    """The raw network F of EDM whose preconditioned one is exact."""

    def __init__(self, sigma_data: float, sign: int) -> None:
        super().__init__()
        self.sigma_data, self.sign = sigma_data, sign

    def forward(self, scaled: Tensor, told: Tensor) -> Tensor:
        sigma = (4 * told).exp()[:, None]
        total = sigma**2 + self.sigma_data**2
        w = scaled * total.sqrt()
        x = MIXTURE.x_hat(w, -2 * sigma[:, 0].log())
        c_out = self.sign * sigma * self.sigma_data / total.sqrt()
        return (x - self.sigma_data**2 / total * w) / c_out


@pytest.mark.parametrize("name", ["VE", "VP", "Cosine", "Rectified"])
def test_schedules_of_azula(name: str) -> None:
    kind = getattr(noise, f"{name}Schedule")

    class Best(denoise.Denoiser):  # type: ignore[misc]
        schedule = kind()

        def forward(self, w: Tensor, t: Tensor) -> Any:
            alpha, sigma = self.schedule(t)
            x = MIXTURE.x_hat(w / alpha[:, None], 2 * (alpha / sigma).log())
            return denoise.DiracPosterior(x)

    for lam in (-4.0, 0.3, 6.0):
        close(from_azula(Best(), MIXTURE.sample(1000)), lam)


class Knows(nn.Module):
    def forward(self, w: Tensor, log_snr: Tensor) -> Tensor:
        return torch.sin(w + log_snr[:, None])


def test_a_model_is_a_denoiser_of_sigma() -> None:
    model = DiffusionModel(CLD(max_log_snr=9.0), Denoiser(Knows()), event_shape=(2,))
    denoise, w = SigmaDenoiser(model), MIXTURE.sample(3)
    sigma = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    expected = model.score_function.x_hat(w, -2 * sigma.log())
    assert torch.equal(denoise(w, sigma), expected)
    assert torch.equal(denoise(w, sigma[:, None]), expected)
    torch.testing.assert_close(denoise(w[:1], 0.1), expected[:1])
    back = from_sigma_denoiser(denoise, MIXTURE.sample(1000), 0.02, 50.0)
    torch.testing.assert_close(back.x_hat(w, -2 * sigma.log()), expected, rtol=1e-6, atol=1e-6)
    raw = DiffusionModel(CLD(), RawScore(Knows()), event_shape=(2,))
    with pytest.raises(TypeError, match=r"RawScore.*expected a denoiser of z"):
        SigmaDenoiser(raw)


def test_a_model_is_a_denoiser_of_azula() -> None:
    model = DiffusionModel(CLD(max_log_snr=9.0), Denoiser(Knows()), event_shape=(2,))
    low = model.diffusion.terminal_log_snr.item()
    for schedule in (None, noise.VPSchedule(alpha_min=0.05, sigma_min=0.02)):
        theirs = to_azula(model, schedule)
        t = torch.tensor([0.1, 0.5, 0.9])
        alpha, sigma = theirs.schedule(t)
        w = MIXTURE.sample(3).float()
        x = theirs(w, t).mean
        expected = model.score_function.x_hat(
            w / alpha[:, None], 2 * (alpha / sigma).log().double()
        )
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    theirs = to_azula(model)
    assert float(theirs.schedule(torch.tensor(0.0))[1]) == pytest.approx(math.exp(-9.0 / 2))
    assert float(theirs.schedule(torch.tensor(1.0))[1]) == pytest.approx(
        math.exp(-low / 2), rel=1e-4
    )
    sampler = sample.DDIMSampler(theirs, steps=8)
    assert sampler(sampler.init((5, 2))).shape == (5, 2)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_a_diffusion_of_denoising_diffusion_pytorch(objective: str, normalized: bool) -> None:
    predicts = {"pred_noise": "noise", "pred_x0": "data", "pred_v": "v"}[objective]
    shift, scale = (0.5, 2.0) if normalized else (0.0, 1.0)
    gaussian = SimpleNamespace(
        model=Exact(ddpm, predicts, shift, scale),
        betas=BETAS.float(),
        objective=objective,
        normalize=(lambda x: 2 * x - 1) if normalized else (lambda x: x),
    )
    denoiser = from_denoising_diffusion(gaussian, MIXTURE.sample(1000))
    kept = (1 - BETAS).cumprod(0)[400]
    lam = float((kept / (1 - kept)).log()) + 2 * math.log(scale)
    close(denoiser, lam, 1e-5)


def test_a_learned_variance_of_denoising_diffusion_pytorch() -> None:
    """It predicts noise, though the objective that its class has by default says v."""

    class Twice(Exact):
        def forward(self, w: Tensor, told: Tensor) -> Tensor:
            noise = super().forward(w, told)
            return torch.cat([noise, 7 + noise], 1)

    process = SimpleNamespace(
        model=Twice(ddpm, "noise", 0.0, 1.0),
        betas=BETAS.float(),
        objective="pred_v",
        vb_loss_weight=0.001,
        normalize=lambda x: x,
    )
    kept = (1 - BETAS).cumprod(0)[400]
    denoiser = from_denoising_diffusion(process, MIXTURE.sample(1000))
    close(denoiser, float((kept / (1 - kept)).log()), 1e-5)


DIFFUSERS = ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler")


@pytest.mark.parametrize("name", DIFFUSERS)
@pytest.mark.parametrize("said", ["epsilon", "sample", "v_prediction"])
def test_schedulers_of_diffusers(name: str, said: str) -> None:
    scheduler = getattr(diffusers, name)(
        beta_start=1e-4, beta_end=0.02, prediction_type=said, num_train_timesteps=1000
    )
    predicts = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}[said]
    exact = Exact(ddpm, predicts, 0.0, 1.0)
    denoiser = from_diffusers(exact, scheduler, MIXTURE.sample(1000))
    kept = (1 - BETAS).cumprod(0)[400]
    close(denoiser, float((kept / (1 - kept)).log()), 1e-4)  # its own table is float32
    if name == "DPMSolverMultistepScheduler":
        return  # which adds noise at the times of its sampler alone
    x, number = MIXTURE.sample(3), torch.tensor([7, 300, 900])
    noise = torch.randn(3, 2, dtype=torch.float64)
    w = scheduler.add_noise(x, noise, number)
    table = denoiser.schedule
    places = (table.time[:, None] == number).double().argmax(0)
    at = table.at(table.log_snr[places])
    torch.testing.assert_close(
        at.alpha[:, None] * x + at.sigma[:, None] * noise, w, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("said", ["epsilon", "v_prediction"])
def test_a_scheduler_of_edm_reads_a_network_as_diffusers_does(said: str) -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.7, prediction_type=said)
    network = Raw(0.7, 1 if said == "epsilon" else -1)
    close(from_diffusers(network, scheduler, MIXTURE.sample(1000)))
    sigma = scheduler.sigmas[300].double()
    w = MIXTURE.sample(4) * sigma
    told = scheduler.precondition_noise(sigma).expand(4).double()
    F = network(scheduler.precondition_inputs(w, sigma), told)
    theirs = scheduler.precondition_outputs(w, F, sigma)
    torch.testing.assert_close(theirs, MIXTURE.x_hat(w, -2 * sigma.log()), rtol=1e-4, atol=1e-4)


def test_schedulers_that_are_not_read() -> None:
    def asked(name: str, **options: Any) -> Callable[[], object]:
        scheduler = getattr(diffusers, name)(**options)
        return lambda: from_diffusers(nn.Identity(), scheduler, MIXTURE.sample(10))

    flow, edm = "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"
    refused(
        (TypeError, ValueError),
        (asked("CosineDPMSolverMultistepScheduler"), "expected one with alphas_cumprod"),
        (asked("CMStochasticIterativeScheduler"), "expected one with alphas_cumprod"),
        (asked(flow, invert_sigmas=True), "expected one with alphas"),
        (asked(edm, prediction_type="sample"), "predicts 'sample', expected 'eps"),
    )


def test_a_scheduler_of_flow_matching() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    class Velocity(nn.Module):
        def forward(self, w: Tensor, told: Tensor) -> Any:
            of_told = SCHEDULES["data at 0"].of_told
            return SimpleNamespace(sample=Exact(of_told, "velocity", 0.0, 1.0)(w, told / 1000))

    close(from_diffusers(Velocity(), scheduler, MIXTURE.sample(1000)))
