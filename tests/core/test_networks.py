"""Networks: shapes, conditioning on log SNR, precision, parameter counts, errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pyro_mdm.networks import MLP, LogSNREmbedding, StridedUNet, UNet

NETWORKS = {
    "mlp": (lambda: MLP(3, hidden=16, depth=2, out_features=5), (3,), (5,)),
    "tiny": (lambda: UNet(1, 17, base=8, multipliers=(1, 2), blocks=1), (1, 8, 8), (17, 8, 8)),
    "odd": (lambda: UNet(2, base=8, multipliers=(1, 1, 2), blocks=2), (2, 7, 5), (2, 7, 5)),
    "attention": (
        lambda: UNet(1, 2, base=8, multipliers=(1, 2), attention=(0, 1), heads=2, dropout=0.1),
        (1, 6, 6),
        (2, 6, 6),
    ),
    "lean": (
        lambda: UNet(1, 2, base=8, multipliers=(1, 2, 2), lean=True, patch=2),
        (1, 28, 28),
        (2, 28, 28),
    ),
    "strided": (lambda: StridedUNet(1, 2, (8, 12, 16), 8), (1, 11, 10), (2, 11, 10)),
    "flat": (lambda: UNet(3, base=4, multipliers=(1,)), (3, 1, 1), (3, 1, 1)),
}

every_network = pytest.mark.parametrize("name", NETWORKS)


def perturbed(network: nn.Module, scale: float = 0.3) -> nn.Module:
    """``network`` away from its start, where zero layers hide most of it."""
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(parameter[0].numel(), 1)
            parameter.add_(scale / fan_in**0.5 * torch.randn_like(parameter))
    return network.eval()


def inputs(shape: tuple[int, ...], n: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(n, *shape), torch.linspace(-8.0, 12.0, n)


def num_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Seeded, and on one thread: operations this small lose by sharing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@every_network
def test_starts_at_zero_with_a_gradient(name):
    make, event, out_event = NETWORKS[name]
    network, (x, log_snr) = make(), inputs(event)
    out = network(x, log_snr)
    assert out.shape == (3, *out_event)
    assert torch.equal(out, torch.zeros_like(out))
    (out - 1.0).square().sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


@every_network
def test_every_parameter_has_a_gradient(name):
    make, event, _ = NETWORKS[name]
    network, (x, log_snr) = perturbed(make()), inputs(event)
    network(x, log_snr).square().sum().backward()
    without = [k for k, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    if name == "flat":  # one pixel: only the centre of each filter is used, which has a gradient
        assert not [k for k in without if not k.endswith("norm.weight")]
    else:
        assert without == []


@every_network
def test_a_datum_depends_on_itself_and_its_log_snr_alone(name):
    make, event, _ = NETWORKS[name]
    network, (x, log_snr) = perturbed(make()).double(), inputs(event)
    x, log_snr = x.double(), log_snr.double()
    out = network(x, log_snr)
    for i in range(len(x)):
        alone = network(x[i : i + 1], log_snr[i : i + 1])
        torch.testing.assert_close(out[i : i + 1], alone, rtol=1e-10, atol=1e-10)
    other = network(x, log_snr + torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    changed = (other - out).flatten(1).abs().amax(1) > 1e-6
    assert changed.tolist() == [False, True, False]


def embedding_features(embedding: LogSNREmbedding, log_snr: Tensor) -> Tensor:
    """What the embedding's first layer is given."""
    captured: list[Tensor] = []
    hook = embedding.layers[0].register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    embedding(log_snr)
    hook.remove()
    return captured[0]


def test_bfloat16_weights_see_log_snr_in_full():
    # At 12 bfloat16 has steps of 1/16, a phase of 0.05: a cast before the sines would lose it.
    log_snr = torch.linspace(-12.0, 16.0, 57) + 0.03
    full = embedding_features(LogSNREmbedding(8), log_snr)
    assert torch.equal(embedding_features(LogSNREmbedding(8).bfloat16(), log_snr), full.bfloat16())
    double = embedding_features(LogSNREmbedding(8).double(), log_snr.double())
    torch.testing.assert_close(full.double(), double, rtol=0.0, atol=2e-6)


def test_paper_scale():
    with torch.device("meta"):
        network = UNet(3, base=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.1)
    assert num_parameters(network) == 35_483_011
    assert abs(num_parameters(network) - 35.7e6) < 0.3e6
    assert network(torch.empty(2, 3, 32, 32, device="meta"), torch.empty(2, device="meta")).shape


def test_attention_mixes_all_pixels_and_its_absence_does_not():
    x, log_snr = torch.randn(1, 1, 16, 16, dtype=torch.float64), torch.zeros(1).double()
    reach = {}
    for attention in [(), (0,)]:
        network = UNet(1, base=4, multipliers=(1,), attention=attention, groups=1)
        for module in network.modules():  # norms see all pixels too: take them out
            for name, child in module.named_children():
                if isinstance(child, nn.GroupNorm):
                    setattr(module, name, nn.Identity())
        network = perturbed(network).double()
        moved = x.clone()
        moved[..., 0, 0] += 1.0
        reach[attention] = (network(moved, log_snr) - network(x, log_snr))[0, 0, -1, -1].abs()
    # Five residual blocks of two 3×3 convolutions, inlet and outlet reach 12 pixels of 15.
    assert reach[()] == 0.0
    assert reach[(0,)] > 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": -8}, "base is -8"),
        ({"multipliers": ()}, "multipliers is empty"),
        ({"multipliers": (1, 0)}, r"multipliers\[1\] is 0"),
        ({"attention": (2,)}, r"attention at levels \[2\].*levels 0 to 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": (0.1, 0.2, 0.3)}, r"dropout is \(0.1, 0.2, 0.3\).*each of the 2 levels"),
        ({"base": 6, "attention": (0,), "heads": 4}, "heads is 4.*6 channels"),
        ({"patch": 0}, "patch is 0"),
    ],
)
def test_impossible_unets(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**arguments)


@pytest.mark.parametrize("widths", [(), (8, 6), (2,)])
def test_impossible_widths(widths):
    with pytest.raises(ValueError, match="expected multiples of 4"):
        StridedUNet(widths=widths)


@pytest.mark.parametrize(
    ("network", "x", "log_snr", "message"),
    [
        (UNet(1, base=4), torch.zeros(2, 1, 8), torch.zeros(2), r"\(2, 1, 8\)"),
        (UNet(1, base=4), torch.zeros(2, 1, 8, 8), torch.zeros(3), r"\(3,\).*\(2,\)"),
        (UNet(1, base=4), torch.zeros(2, 1, 8, 8), torch.zeros(()), r"shape \(\)"),
        (
            StridedUNet(),
            torch.zeros(2, 1, 28, 16),
            torch.zeros(2),
            "28×16 are too small for 4.*17×17",
        ),
        (StridedUNet(2), torch.zeros(2, 1, 28, 28), torch.zeros(2), r"\(n, 2, height, width\)"),
        (UNet(1, base=4, patch=2), torch.zeros(2, 1, 8, 7), torch.zeros(2), "8×7 are not made of"),
        (MLP(2), torch.zeros(4, 2), torch.zeros(1), r"log_snr has shape \(1,\)"),
    ],
)
def test_impossible_inputs(network, x, log_snr, message):
    with pytest.raises(ValueError, match=message):
        network(x, log_snr)


def test_dropout_of_each_level():
    network = UNet(1, base=8, multipliers=(1, 2), dropout=(0.0, 0.5), lean=True)
    rates = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Dropout):
            rates[name.partition(".dropout")[0]] = module.p
    assert set(rates.values()) == {0.5}
    assert set(rates) == {"down.2", "middle.0", "middle.1", "up.0"}  # none at full resolution
