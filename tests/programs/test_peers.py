"""The models that diffusions are compared with, against sums over all images, and their program."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.base import ImageProblem
from models.digits import Digits
from pyro_mdm import VPSDE
from tests.benchmarks import peers
from tests.benchmarks.peer_models import VAE, Flow, Histogram, Peer, PixelCNN, dequantized_log_prob


def all_images(shape: tuple[int, ...], levels: int) -> Tensor:
    """Codes of every image, (levels^d, *shape)."""
    d = math.prod(shape)
    return torch.cartesian_prod(*[torch.arange(levels)] * d).reshape(-1, *shape)


def disturbed(peer: Peer, scale: float = 0.5) -> Peer:
    """In evaluation, with weights that nothing is zero of."""
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(scale * torch.randn_like(p))
    return peer.eval()


def flat_prior(height: int, width: int, levels: int) -> Tensor:
    return torch.full((1, height, width, levels), -math.log(levels))


@pytest.mark.parametrize("levels", [5, 40])
def test_a_pixel_cnn_sees_all_pixels_before_and_none_after(levels: int) -> None:
    peer = disturbed(PixelCNN(flat_prior(5, 5, levels), width=8, depth=3), 0.2)
    codes = torch.randint(levels, (1, 1, 5, 5))
    seen = torch.zeros(25, 25, dtype=torch.bool)  # by each pixel, of each pixel
    told = told_of(peer, codes)
    for j in range(25):
        other = codes.clone()
        other.view(-1)[j] = (other.view(-1)[j] + levels // 2) % levels
        seen[:, j] = (told_of(peer, other) != told).any(1)
    before = torch.arange(25)[:, None] > torch.arange(25)
    assert torch.equal(seen, before)


def told_of(peer: PixelCNN, codes: Tensor) -> Tensor:
    """log p of every level of every pixel, (pixels, levels)."""
    law = peer.law(codes)
    every = [law.log_prob(torch.full_like(codes, k)).flatten() for k in range(peer.levels)]
    return torch.stack(every, 1)


@pytest.mark.parametrize(("shape", "levels"), [((2, 2), 3), ((1, 2), 40)])
def test_probabilities_of_a_pixel_cnn_add_up_to_one(shape: tuple[int, int], levels: int) -> None:
    peer = disturbed(PixelCNN(flat_prior(*shape, levels), width=8, depth=1))
    total = peer.log_prob(all_images((1, *shape), levels)).logsumexp(0)
    assert total.item() == pytest.approx(0, abs=1e-5)


def assert_drawn_by(log_prob: Tensor, codes: Tensor) -> None:
    """Frequencies of black and white images within five standard errors of their probabilities."""
    place = (codes.flatten(1) * 2 ** torch.arange(codes[0].numel()).flip(0)).sum(1)
    p, n = log_prob.exp(), len(codes)
    frequency = torch.bincount(place, minlength=len(p)) / n
    assert (frequency - p).abs().le(5 * (p * (1 - p) / n).sqrt() + 1 / n).all()
    assert p.max() > 1.5 * p.min()


def mean_and_error(x: Tensor) -> tuple[float, float]:
    return x.mean().item(), x.std().item() / math.sqrt(len(x))


@torch.no_grad()
def test_the_bound_of_a_vae_is_below_its_log_probability_and_tends_to_it() -> None:
    peer = VAE((1, 1, 2), 5, latent=1, hidden=8).eval()
    for k, p in enumerate(peer.parameters()):  # not of a seed: of some it tends slowly
        p.copy_(0.4 * torch.sin(k + torch.arange(p.numel())).view_as(p))
    codes = torch.tensor([1, 4]).view(1, 1, 1, 2)
    z = torch.linspace(-8, 8, 4001)
    log_x = peer.law(z[:, None]).log_prob(codes).flatten(1).sum(1)
    log_z = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    exact = ((log_z + log_x).logsumexp(0) + math.log(16 / 4000)).item()
    many = codes.expand(4000, -1, -1, -1)
    one, error = mean_and_error(peer.log_prob(many))
    assert one < exact - 5 * error  # what is told by q(z | x), far from the posterior
    assert -2 * peer.loss(many).item() == pytest.approx(one, abs=8 * error)
    several, error = mean_and_error(peer.log_prob(many, 256))
    assert several <= exact + 5 * error
    assert several == pytest.approx(exact, abs=0.02)


def test_a_bound_by_dequantization_is_below_the_log_probability_and_tends_to_it() -> None:
    def density(w: Tensor) -> Tensor:
        return (2 * w).log().sum(1)

    codes = torch.tensor([0, 2]).view(1, 1, 1, 2).expand(2000, -1, -1, -1)
    exact = math.log((1 / 9) * (5 / 9))
    one, error = mean_and_error(dequantized_log_prob(density, codes, 3, 1))
    assert one < exact - 5 * error
    many, error = mean_and_error(dequantized_log_prob(density, codes, 3, 256))
    assert many <= exact + 5 * error
    assert many == pytest.approx(exact, abs=0.01)


@pytest.mark.slow
@torch.no_grad()
def test_the_bound_of_a_flow_is_below_its_log_probability_and_tends_to_it() -> None:
    peer = disturbed(Flow((1, 1, 2), 2, transforms=2, hidden=16, bins=4), 0.2)
    side = (torch.arange(400) + 0.5) / 400
    w = torch.cartesian_prod(side, side)
    cells = peer.log_density(w).exp().view(2, 200, 2, 200).mean((1, 3)) / 4
    assert cells.sum().item() == pytest.approx(1, abs=0.01)
    codes = all_images((1, 1, 2), 2)
    many = codes.repeat(500, 1, 1, 1)
    exact = cells.flatten().log().repeat(500)
    one, error = mean_and_error(peer.log_prob(many) - exact)
    assert one < -5 * error
    several, error = mean_and_error(peer.log_prob(many, 256) - exact)
    assert several <= 5 * error
    assert several == pytest.approx(0, abs=0.03)
    assert_drawn_by(exact[:4], peer.sample(4000))


def test_the_histogram_is_the_baseline_of_the_discrete_denoiser() -> None:
    problem = Digits(holdout=True)
    score = problem.build(VPSDE(max_log_snr=9.0)).score_function
    peer = Histogram(problem.train.long(), 17)
    expected = score.baseline_log_prob(problem.to_model_space(problem.test))
    assert torch.allclose(peer.log_prob(problem.test.long()), expected.float(), rtol=1e-5)


class Tiny(ImageProblem):
    """The middle of the first digits."""

    name, event_shape, num_levels, form = "tiny", (1, 4, 4), 17, "logits"
    max_log_snr, batch_size = 9.0, 16

    def load(self) -> Tensor:
        return Digits().train[:200, :, 2:6, 2:6]

    def network(self, inputs: int, outputs: int) -> nn.Module:
        from pyro_mdm.networks import UNet

        return UNet(inputs, outputs, base=4, multipliers=(1,))


@pytest.mark.slow
def test_the_program_trains_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"{Path(__file__)}:Tiny"
    some = ["diffusion", "pixelcnn", "vae", "mixture"]
    asked = ["--model", model, "--seconds", "0.2", "--samples", "4", "--out", str(tmp_path)]
    peers.main([*asked, "--seeds", "0", "--only", *some])
    first = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert sorted(first) == sorted(f"{name}-0.json" for name in some)

    trained: list[tuple[str, int]] = []
    run = peers.run

    def noted(task: peers.Task) -> Path:
        trained.append((task.name, task.seed))
        return run(task)

    monkeypatch.setattr(peers, "run", noted)
    capsys.readouterr()
    peers.main([*asked, "--seeds", "0", "1", "--only", "vae", "histogram"])
    assert trained == [("histogram", 0), ("vae", 1), ("histogram", 1)]
    assert all((tmp_path / name).read_text() == text for name, text in first.items())

    printed = capsys.readouterr().out
    lines = printed.partition("|---")[2].strip().splitlines()[1:]
    assert [line.split("|")[1].strip() for line in lines] == [
        peers.PEERS[name][0] for name in ("diffusion", "pixelcnn", "vae", "mixture", "histogram")
    ]
    found = json.loads(first["vae-0.json"])["bits_per_dim"]
    again = json.loads((tmp_path / "vae-1.json").read_text())["bits_per_dim"]
    assert f"{np.mean([found, again]):.3f} ± " in lines[2]
    written = (tmp_path / "table.csv").read_text().splitlines()
    assert written[0].endswith(f"--out {tmp_path} --seeds 0 1 --only vae histogram")
    rows = list(csv.DictReader(line for line in written if not line.startswith("#")))
    assert [float(row["test"]) for row in rows][2] == pytest.approx(
        np.mean([found, again]), abs=6e-5
    )
    ours = json.loads(first["diffusion-0.json"])["bits_per_dim"]
    assert [row["seeds"] for row in rows] == ["1", "1", "2", "1", "2"]
    less = float(rows[2]["less_ours"])
    assert less == pytest.approx(np.mean(found) - np.mean(ours), abs=6e-5)
    assert len(found) == 20
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="and 9; give another --out"):
        peers.main([*asked[:2], "--seconds", "9", "--out", str(tmp_path), "--seeds", "0"])


def test_intervals_are_over_images_and_seeds() -> None:
    x = np.array([[1.0, 2.0, 3.0, 6.0], [2.0, 3.0, 4.0, 7.0]])
    images = np.std([1.5, 2.5, 3.5, 6.5], ddof=1) / 2
    assert peers.mean_and_error(x) == pytest.approx((3.5, math.hypot(images, 0.5)))
    reach = math.hypot(1.959964 * images, 12.7062 * 0.5)
    assert peers.mean_and_interval(x) == pytest.approx((3.5, 3.5 - reach, 3.5 + reach), rel=1e-5)
    alone = peers.mean_and_interval(x[:1])
    assert alone[2] - alone[0] == pytest.approx(1.959964 * np.std(x[0], ddof=1) / 2)


def test_of_large_parts_the_first_images_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = peers.Data.of("digits")
    monkeypatch.setattr(peers, "MOST", 7)
    data = peers.Data.of("digits")
    assert torch.equal(data.train, whole.train)
    for part, of in ((data.validation, whole.validation), (data.test, whole.test)):
        assert torch.equal(part, of[:7]) and len(of) > 7
