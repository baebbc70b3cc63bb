"""Pipelines of diffusers as denoisers, and models as pipelines; what a wrapper costs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from pyro_mdm import VPSDE, Denoiser, DiffusionModel, RawScore, condition
from pyro_mdm.conditioning import Labels
from pyro_mdm.imported import (
    ImportedDenoiser,
    NoiseSchedule,
    from_diffusers,
    from_pipeline,
    to_pipeline,
)
from tests.imported.test_imported import whole
from tests.mistakes import refused

# a scheduler of diffusers makes arrays of tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPE = (1, 4, 4)
MEAN, VARIANCE = torch.linspace(0.3, 0.7, 16).reshape(SHAPE), torch.full(SHAPE, 0.01)


class Zeros(nn.Module):
    def forward(self, w: Tensor, log_snr: Tensor) -> Tensor:
        return 0 * w


def unet(**options: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=4,
        in_channels=1,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **{"out_channels": 1} | options,
    ).eval()


def transformer() -> Any:
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=4,
        in_channels=1,
        out_channels=2,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_num_groups=2,
    ).eval()


def data(n: int = 20) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_folder_of_a_pipeline_is_read_as_its_parts(tmp_path: Path) -> None:
    network, scheduler = unet(), diffusers.DDPMScheduler(prediction_type="v_prediction")
    pipeline = diffusers.DDPMPipeline(network, scheduler)
    pipeline.save_pretrained(tmp_path)
    z = data(3)
    with torch.no_grad():
        expected = from_diffusers(network, scheduler, data()).x_hat(z, 1.0)
        for of in (tmp_path, str(tmp_path), pipeline):
            assert torch.equal(from_pipeline(of, data()).x_hat(z, 1.0), expected)


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_a_network_of_classes_is_given_labels(kind: str) -> None:
    """A one-hot context is the label; one of zeros is the label for none, if there is one."""
    network = unet(num_class_embeds=3) if kind == "unet" else transformer()
    pipeline = of_parts(**{kind: network, "scheduler": diffusers.DDPMScheduler()})
    denoiser = from_pipeline(pipeline, data())
    assert denoiser.network.learned_variance == (kind == "transformer")
    model = DiffusionModel(VPSDE(**whole(denoiser)), denoiser, context=Labels(3, dropout=0.1))
    z, number = data(2), 400
    lam = denoiser.schedule.log_snr[denoiser.schedule.time == number].item()
    at = denoiser.schedule.at(torch.tensor(lam, dtype=torch.float64))
    w = at.alpha.float() * z
    labels = [1, -1] if kind == "transformer" else [1, 2]
    given = torch.tensor([label % 4 for label in labels])  # 3 is the label for none
    with torch.no_grad():
        F = network(w, torch.tensor([number, number]), class_labels=given).sample[:, :1]
        knowing: Any = condition(model, context=torch.tensor(labels)).score_function
        found = knowing.x_hat(z, lam)
    expected = (w - at.sigma.float() * F) / at.alpha.float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(F[0], F[1])


def of_parts(**parts: Any) -> SimpleNamespace:
    return SimpleNamespace(components=parts)


def test_pipelines_that_are_not_read(tmp_path: Path) -> None:
    network, scheduler = unet(), diffusers.DDPMScheduler()
    latent = of_parts(unet=network, scheduler=scheduler, vae=nn.Identity())
    refused(
        (ValueError, FileNotFoundError),
        (lambda: from_pipeline(of_parts(unet=network), data()), "has unet, expected a scheduler a"),
        (
            lambda: from_pipeline(of_parts(scheduler=None), data()),
            "expected a scheduler and one of",
        ),
        (lambda: from_pipeline(latent, data()), "sees latents of its vae, so that its likelihood"),
        (lambda: from_pipeline(tmp_path, data()), r"has no model_index\.json, expected a folder"),
    )
    assert from_pipeline(latent, data(), latents=True).event_shape == SHAPE


def test_a_network_of_texts_needs_a_call() -> None:
    class Texts(nn.Module):
        config = SimpleNamespace()

        def forward(self, w: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            return w * encoder_hidden_states

    pipeline = of_parts(unet=Texts(), scheduler=diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match="Texts is given texts, encoder_hidden_stat"):
        from_pipeline(pipeline, data())
    half = torch.tensor(0.5)
    denoiser = from_pipeline(pipeline, data(), call=lambda network, w, time: network(w, time, half))
    assert denoiser.x_hat(data(2), 0.0).shape == (2, *SHAPE)


def test_of_a_folder_only_the_network_is_opened(tmp_path: Path) -> None:
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    named = json.loads(index.read_text())
    index.write_text(json.dumps(named | {"text_encoder": ["transformers", "CLIPTextModel"]}))
    assert from_pipeline(tmp_path, data()).event_shape == SHAPE


def gaussian(max_log_snr: float = 9.0) -> DiffusionModel:
    """A model of independent pixels, whose denoiser is exact."""
    return DiffusionModel(VPSDE(max_log_snr=max_log_snr), Denoiser(Zeros(), MEAN, VARIANCE))


@pytest.mark.parametrize("max_log_snr", [9.0, 14.0])
def test_a_model_is_a_pipeline(max_log_snr: float) -> None:
    """Samples of two of their samplers have the law's moments; read back, it is the model."""
    model = gaussian(max_log_snr)
    pipeline = to_pipeline(model, 0.0, 1.0)
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    images = pipeline(batch_size=2000, num_inference_steps=50, output_type="pt").images
    solver = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    solver.set_timesteps(20)
    w = torch.randn(2000, *SHAPE)
    with torch.no_grad():
        for time in solver.timesteps:
            w = solver.step(pipeline.unet(w, time).sample, time, w).prev_sample
    for drawn in (images, w / 2 + 0.5):
        assert float((drawn.mean(0) - MEAN).abs().max()) < 6 * math.sqrt(0.01 / 2000) + 0.002
        assert 0.8 < float(drawn.var(0).mean() / 0.01) < 1.1
    back = from_diffusers(pipeline.unet, pipeline.scheduler, images, shift=0.5, scale=2.0)
    z, score = torch.rand(4, *SHAPE), model.score_function
    for lam in (-5.0, 1.0, 8.0):
        expected: Any = score.x_hat(z, lam)  # type: ignore[operator]
        torch.testing.assert_close(back.x_hat(z, lam), expected, rtol=2e-3, atol=2e-3)


def test_models_that_are_no_pipeline() -> None:
    flat = DiffusionModel(VPSDE(), Denoiser(Zeros(), torch.zeros(2)))
    raw = DiffusionModel(VPSDE(), RawScore(Zeros()), event_shape=SHAPE)
    refused(
        (ValueError, TypeError),
        (lambda: to_pipeline(gaussian(), 1.0, 1.0), r"low is 1\.0 and high 1\.0"),
        (lambda: to_pipeline(flat), r"event_shape is \(2,\), expected images, \(C, H, W\)"),
        (lambda: to_pipeline(raw), "expected a denoiser of z"),
    )


@pytest.mark.without_noise
def test_it_runs_under_autocast_and_compiles_whole() -> None:
    denoiser = from_diffusers(unet(), diffusers.DDPMScheduler(), data())
    z, lam = data(4), torch.linspace(-4, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = denoiser.x_hat(z, lam)
        compiled = torch.compile(denoiser.x_hat, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(z, lam), expected)
        denoiser.autocast_dtype = torch.bfloat16
        low = denoiser.x_hat(z, lam)
    assert low.dtype == torch.float32
    assert 0 < float((low - expected).abs().max()) < 0.2


def test_a_state_of_low_precision_has_whole_times() -> None:
    """Times beyond 256 are not whole in bfloat16."""
    seen = []

    class Seen(nn.Module):
        def forward(self, w: Tensor, time: Tensor) -> Tensor:
            seen.append(time)
            return 0 * w

    schedule = NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000))
    denoiser = ImportedDenoiser.fit(Seen(), data(), schedule, "noise")
    lam = float(schedule.log_snr[schedule.time == 513])
    found = denoiser.x_hat(data(2).bfloat16(), lam)
    assert seen[0].tolist() == [513, 513] and found.dtype == torch.bfloat16
