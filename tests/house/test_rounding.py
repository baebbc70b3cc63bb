"""The processor that rounds otherwise: what it moves, how far, and what it leaves."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.rounding import RoundingNoise

pytestmark = pytest.mark.without_noise  # they make noise of their own
DTYPES = (torch.float32, torch.float64)


def results(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of several kinds of operations, on a square matrix and a layer."""
    layer = torch.nn.Linear(x.shape[1], 3, dtype=x.dtype)
    torch.nn.init.constant_(layer.weight, 0.3)
    torch.nn.init.constant_(layer.bias, 0.1)
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
    definite = x.detach() @ x.detach().mT + torch.eye(len(x), dtype=x.dtype)
    return {
        "product": x.detach() @ x.detach(),
        "layer": layer(x).detach(),
        "gradient": gradient,
        "exponential": x.detach().exp(),
        "mean": x.detach().mean(0),
        "softmax": x.detach().softmax(1),
        "cholesky": torch.linalg.cholesky(definite),
        "under vmap": torch.func.vmap(lambda row: (row @ row / 100).tanh())(x.detach()),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_move_by_a_unit_in_the_last_place(dtype: torch.dtype) -> None:
    x = torch.randn(17, 17, dtype=dtype)
    plain = results(x)
    with RoundingNoise():
        noisy = results(x)
    for name, value in plain.items():
        apart = (noisy[name] - value).abs()
        assert bool((apart > 0).any()), name
        # products before it add their noise, times the condition of what is computed
        few = 40 if name in ("gradient", "cholesky", "under vmap") else 2
        scale = value.abs().clamp_min(0.1 * float(value.abs().max()))
        assert float((apart / scale).max()) < few * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_one_processor(dtype: torch.dtype) -> None:
    """What was computed has the same bits again; in another batch, or by another seed, others."""
    x = torch.randn(64, 8, dtype=dtype)
    with RoundingNoise():
        first, again, batch = x.exp(), copy.deepcopy(x).exp(), x[1:].exp()
    with RoundingNoise(1):
        other = x.exp()
    assert torch.equal(first, again)
    assert not torch.equal(first[1:], batch) and not torch.equal(first, other)


def test_whole_numbers_shapes_and_the_exact_are_left() -> None:
    x = torch.randn(4, 6, 5).transpose(1, 2)
    ones = torch.ones(3, 4)
    with RoundingNoise():
        assert (ones @ ones.mT).tolist() == [[4.0] * 3] * 3
        assert torch.zeros(3).exp().tolist() == [1.0] * 3
        assert (x > 0).float().sum() == int((x > 0).sum())
        assert torch.equal((x * x + x) / 3, (x * x + x).div(3))
        assert x.exp().stride() == x.stride()
        assert torch.empty(0, 3).exp().shape == (0, 3)
        assert torch.arange(3).sum() == 3
        assert x.half().exp().dtype == torch.float16
        assert float(torch.tensor(-torch.inf).exp()) == 0.0
