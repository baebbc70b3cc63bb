"""Batches in pieces: the noise, the loss and the gradients are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import (
    CLD,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    DiffusionGuide,
    DiffusionModel,
    DiscreteDenoiser,
    GenerativePath,
    LearnedDiffusion,
    LinearDiffusion,
    NoisePrediction,
    RawScore,
    Simulated,
    Simulation,
    elbo_terms,
    randomness,
)
from pyro_mdm.conditioning import RandomMaps
from pyro_mdm.levels.dequantization import LogitDequantization
from pyro_mdm.networks import MLP
from tests.problems import normal

N, D = 48, 3
LEVELS = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
CPU = torch.device("cpu")


def pieces(count: int, draw: Callable[[int], Tensor], seed: int = 5) -> list[Tensor]:
    found = []
    for r in range(count):
        with randomness.piece(r, count, seed):
            found.append(draw(N // count))
    return found


def woven(parts: list[Tensor]) -> Tensor:
    """Rows r, r + S, … of the whole from piece r."""
    return torch.stack(parts, 1).flatten(0, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 16])
@pytest.mark.parametrize("kind", ["normal", "uniform", "low_discrepancy"])
def test_pieces_draw_the_rows_of_the_whole_in_whatever_order_they_come(
    count: int, kind: str
) -> None:
    def draw(n: int) -> Tensor:
        first = randomness.uniform((n, 2), torch.float32, CPU)
        if kind == "low_discrepancy":
            return randomness.low_discrepancy(n)
        found: Tensor = getattr(randomness, kind)((n, 2, D), torch.float64, CPU)
        assert found.shape == (n, 2, D) and first.shape == (n, 2)
        return found

    torch.manual_seed(5)  # without pieces: torch's own generator, and the same numbers
    whole = draw(N)
    state = torch.get_rng_state()
    assert torch.equal(woven(pieces(count, draw)), whole)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert not torch.equal(woven(pieces(count, draw, seed=6)), whole)


@pytest.mark.parametrize("count", [1, 4])
def test_log_snrs_are_spread_evenly_over_all_pieces_in_another_order_each_time(count: int) -> None:
    def twice(n: int) -> Tensor:
        return torch.stack([randomness.low_discrepancy(n) for _ in range(2)], 1)

    u = woven(pieces(count, twice))
    gaps = u.sort(0).values.diff(dim=0)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / N))
    orders = u.argsort(0)
    assert not torch.equal(*orders.unbind(1))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_a_subset_is_chosen_from_the_whole_batch(count: int) -> None:
    torch.manual_seed(5)
    with randomness.subset(N, 16, CPU) as (chosen, weight):
        whole = chosen.clone()
        rows = torch.randn(N + len(chosen), D)
    assert len(whole) == N // 16 and weight == 16
    found, noise = {}, {}
    for r in range(count):
        n = N // count
        with randomness.piece(r, count, 5), randomness.subset(n, 16, CPU) as (mine, weight):
            drawn = randomness.normal((n + len(mine), D), torch.float32, CPU)
            assert weight == 16
            assert torch.equal(drawn[:n], rows[:N][r::count])
            for j, e in zip(mine.tolist(), drawn[n:], strict=True):
                found[r + count * j] = noise[r + count * j] = e
        with randomness.piece(r, count, 5):  # after it, draws are for the piece again
            assert randomness.normal((n, D), torch.float32, CPU).shape == (n, D)
    assert sorted(found) == sorted(whole.tolist())
    for i, e in zip(whole.tolist(), rows[N:], strict=True):
        assert torch.equal(noise[i], e)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="piece 2 of 2, expected an index from 0 to 1"):
        randomness.piece(2, 2, 0).__enter__()
    with (
        randomness.piece(0, 2, 0),
        randomness.subset(8, 4, CPU) as (chosen, _),
        pytest.raises(ValueError, match=f"8 rows are drawn, expected {8 + len(chosen)} of a"),
    ):
        randomness.normal((8, 2), torch.float32, CPU)
    assert randomness.normal((8, 2), torch.float32, CPU).shape == (8, 2)


def network(inputs: int, outputs: int) -> nn.Module:
    net = MLP(inputs, hidden=8, depth=1, out_features=outputs)
    nn.init.normal_(net.outlet.weight, std=0.3)
    return net.double()


def programs(score: str, diffusion: LinearDiffusion) -> DiffusionModel:
    K = diffusion.num_variables
    x = LEVELS[torch.randint(5, (200, D))]
    likelihood = None
    if score == "discrete":
        function = DiscreteDenoiser.fit(network(D, 5 * D), x, LEVELS)
    elif score == "denoiser":
        function = Denoiser.fit(network(D, D), x)
    elif score == "noise":
        function = NoisePrediction(network(K * D, K * D))
    else:
        function = RawScore(network(K * D, K * D))
    return DiffusionModel(diffusion, function, likelihood, (D,))


DIFFUSIONS: dict[str, Callable[[], LinearDiffusion]] = {
    "vpsde": lambda: VPSDE(max_log_snr=6.0),
    "cld": lambda: CLD(max_log_snr=6.0),
    "learned": lambda: LearnedDiffusion(2, max_log_snr=6.0),  # its λ(T) moves
    "learned, ends fixed": lambda: LearnedDiffusion(2, max_log_snr=6.0, min_log_snr=-8.0),
    "learned, with its ends and law at rest": lambda: LearnedDiffusion(
        2, max_log_snr=6.0, min_log_snr=-8.0, learn_ends=(1.0, 2.0), learn_stationary=True
    ),
}


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("score", ["discrete", "denoiser", "noise", "score"])
def test_loss_and_gradients_of_the_pieces_add_up_to_those_of_the_batch(
    score: str, diffusion: str
) -> None:
    model, count = programs(score, DIFFUSIONS[diffusion]()), 3
    loss_of = MDM_ELBO()(model, DiffusionGuide(model.diffusion))
    x = LEVELS[torch.randint(5, (N, D))]
    torch.manual_seed(7)
    whole = loss_of(x)
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = 0.0
    for r in range(count):
        with randomness.piece(r, count, 7):
            loss = loss_of(x[r::count])
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-12)
    # gradients cancel where the loss, of squares, does not: it is the size of what is summed
    atol = 1000 * torch.finfo(torch.float64).eps * whole.item()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=atol, msg=name)


# -- masks and padding -----------------------------------------------------------------------------

ROWS, DRAWS = 256, 16


def row_by_row(kind: str) -> Callable[[Tensor], Tensor]:
    """Estimates (n,) of rows x (n, D), whose times are drawn in strata over the batch."""
    score, _, way = kind.partition(", ")
    diffusion = VPSDE(max_log_snr=6.0)
    if score == "maps":
        function = Denoiser.fit(network(2 * D, D), normal(3, 200, D), maps=True)
        function.training_maps = RandomMaps(levels=1.0, subsets=0.0, independent=0.0)
        model = DiffusionModel(diffusion, function, None, (D,))
    else:
        model = programs(score, diffusion)
    if way == "adaptive":
        model.score_function.times = "adaptive"
        u = torch.linspace(0, 1, 100, dtype=torch.float64)
        model.score_function.time_density.note(u, torch.exp(-7.0 * u))
    if way == "simulated":
        model = DiffusionModel(
            Simulated(diffusion, Simulation(step_size=0.25)), model.score_function, None, (D,)
        )
    guide = DiffusionGuide(model.diffusion)
    if way == "log_prob":
        law = GenerativePath(model.diffusion, model.score_function, (D,))
        return lambda x: law.log_prob(guide.law(x).rsample())
    return lambda x: elbo_terms(model, guide, x).diffusion


@torch.no_grad()
@pytest.mark.parametrize(
    "kind",
    [
        *("denoiser", "denoiser, adaptive", "maps", "discrete", "noise", "noise, log_prob"),
        *("score", "score, adaptive", "score, log_prob", "score, simulated"),
    ],
)
def test_contiguous_rows_are_like_any_others(kind: str) -> None:
    """A mask or a padding of the first half of a batch would otherwise take half of the times: the
    mean of the rest stays, and its variance grows with the number of rows.

    All rows are equal, so that under the permutations of its values each draw's difference of
    halves has a known variance, and over it a square that is near χ² with one degree of freedom,
    with lighter tails, for values with heavier ones. False alarm 1e-7 of χ² with 16.
    """
    of_rows = row_by_row(kind)
    x = LEVELS[torch.randint(5, (1, D))].expand(ROWS, D)
    values = torch.stack([of_rows(x) for _ in range(DRAWS)]).double()
    apart = values[:, : ROWS // 2].mean(1) - values[:, ROWS // 2 :].mean(1)
    variance = 4 / ROWS * values.var(1)
    assert float((apart.square() / variance).sum()) < 64.0


def test_dequantization_in_pieces_is_that_of_the_batch() -> None:
    k = torch.randint(17, (N, 1, 2, 2))
    transform = LogitDequantization(17)
    torch.manual_seed(3)
    whole = transform(k)
    parts = []
    for r in range(4):
        with randomness.piece(r, 4, 3):
            parts.append(transform(k[r::4]).x)
    assert torch.equal(woven(parts), whole.x)


class Guarded(nn.Module):
    """A network that computes in its own precision, whatever surrounds it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            out: Tensor = self.network(x, log_snr)
            return out


@torch.no_grad()
@pytest.mark.parametrize("score", ["discrete", "denoiser", "noise", "score"])
@pytest.mark.parametrize("diffusion", ["cld", "learned"])
def test_autocast_reaches_the_network_and_nothing_else(score: str, diffusion: str) -> None:
    model = programs(score, DIFFUSIONS[diffusion]())
    model.score_function.network.float()
    guide = DiffusionGuide(model.diffusion)
    x = LEVELS[torch.randint(5, (N, D))].float()

    def terms() -> list[Tensor]:
        torch.manual_seed(1)
        found = elbo_terms(model, guide, x)
        return [found.reconstruction, found.prior_kl, found.diffusion]

    exact = terms()
    model.score_function.autocast_dtype = torch.bfloat16
    rough = terms()
    assert torch.equal(exact[0], rough[0]) and torch.equal(exact[1], rough[1])
    assert not torch.equal(exact[2], rough[2])
    torch.testing.assert_close(exact[2], rough[2], rtol=0, atol=0.05 * float(exact[2].abs().max()))
    model.score_function.autocast_dtype = None
    model.score_function.network = Guarded(model.score_function.network)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a user's own, around everything
        around = terms()
        kernel = model.diffusion.marginal(0.3)
    for a, b in zip(exact, around, strict=True):
        assert torch.equal(a, b)
    assert kernel.covariance.dtype == torch.float64
    assert torch.equal(kernel.covariance, model.diffusion.marginal(0.3).covariance)
