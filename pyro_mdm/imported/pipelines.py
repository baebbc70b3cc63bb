"""Pipelines of ``diffusers``, in memory or in folders, as denoisers; and models as pipelines."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pyro_mdm.diffusions.base import with_event_dims
from pyro_mdm.imported.denoiser import ImportedDenoiser, ImportOptions
from pyro_mdm.imported.doors import Labelled, from_diffusers
from pyro_mdm.imported.exporting import SigmaDenoiser
from pyro_mdm.model import DiffusionModel
from pyro_mdm.support.checks import Several, checked_arguments, describe
from pyro_mdm.support.files import read_json

__all__ = ["Pipeline", "from_pipeline", "to_pipeline"]

NETWORKS = ("unet", "transformer")
"""Names of a pipeline's network."""
AUTOENCODERS = ("vae", "vqvae", "vqgan", "movq")
"""Names of an autoencoder, whose latents the network sees."""

NETWORK_CLASSES = (
    *("DiTTransformer2DModel", "HunyuanDiT2DModel", "PixArtTransformer2DModel"),
    *("SD3Transformer2DModel", "SanaTransformer2DModel", "Transformer2DModel"),
    *("UNet1DModel", "UNet2DConditionModel", "UNet2DModel", "UNet3DConditionModel"),
)
"""Classes of networks that a folder may name: a class of diffusers that is not among them, as a
pipeline, may run code of the folder where it is opened."""
SCHEDULER_CLASSES = (
    *("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMInverseScheduler"),
    *("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
    *("DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler"),
    *("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler"),
    *("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    *("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "HeunDiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler"),
    *("LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler", "SASolverScheduler"),
    *("TCDScheduler", "UnCLIPScheduler", "UniPCMultistepScheduler"),
)
"""Classes of schedulers that a folder may name, all that :func:`from_diffusers` reads."""


class Pipeline(Protocol):
    """A ``DiffusionPipeline`` of ``diffusers``."""

    components: dict[str, object]


@checked_arguments
def from_pipeline(
    pipeline: Pipeline | Path | str,
    train_x: Tensor,
    *,
    latents: bool = False,
    **options: Unpack[ImportOptions],
) -> ImportedDenoiser:
    """A denoiser by the network and the scheduler of a pipeline of ``diffusers``.

    A network of classes takes a context of one number for each class: give the model
    ``context=Labels(n)``. One with twice the channels has a learned variance, which is ignored.
    Networks of texts need ``call``.

    Args:
        pipeline: the pipeline, or the folder of one, with safetensors; nothing is downloaded, and
            no code of the folder is run.
        train_x: data, (N, *event_shape), for the baseline, as the network sees them: pixels from -1
            to 1, or give ``shift`` and ``scale``.
        latents: whether ``train_x`` are latents of the pipeline's autoencoder; the likelihood is
            then that of latents alone.
        options: options of :func:`from_diffusers`.

    Raises:
        ImportError: a folder, and ``diffusers`` is not installed.
        FileNotFoundError: no folder of a pipeline.
        ValueError: a pipeline without a known network, or with an autoencoder; a folder that names
            a class beyond ``NETWORK_CLASSES`` and ``SCHEDULER_CLASSES``; a network of
            texts without ``call``.

    Example:
        >>> from types import SimpleNamespace  # in the place of a DiffusionPipeline
        >>> from pyro_mdm.networks import MLP
        >>> network = MLP(2)
        >>> network.config = SimpleNamespace()
        >>> config = SimpleNamespace(prediction_type="epsilon")
        >>> kept = torch.linspace(0.999, 0.001, 100)
        >>> scheduler = SimpleNamespace(config=config, alphas_cumprod=kept)
        >>> pipeline = SimpleNamespace(components={"unet": network, "scheduler": scheduler})
        >>> from_pipeline(pipeline, torch.randn(100, 2)).predicts
        'noise'
    """
    if isinstance(pipeline, Path | str):
        name, parts = f"the pipeline in {pipeline}", _parts(Path(pipeline))
    else:
        name, parts = describe(pipeline), pipeline.components
    network = next((parts[place] for place in NETWORKS if parts.get(place) is not None), None)
    if network is None or parts.get("scheduler") is None:
        raise ValueError(
            f"{name} has {', '.join(parts)}, expected a scheduler and one of "
            f"{', '.join(NETWORKS)}; take its network, and see from_diffusers"
        )
    autoencoder = next((place for place in AUTOENCODERS if parts.get(place) is not None), None)
    if autoencoder is not None and not latents:
        raise ValueError(
            f"the network of {name} sees latents of its {autoencoder}, so that its likelihood is "
            "that of latents alone, not of images; encode the data, and give them with latents=True"
        )
    return from_diffusers(_read(network, options), parts["scheduler"], train_x, **options)


def _parts(folder: Path) -> dict[str, Any]:
    """The network and the scheduler of a pipeline in a folder, and the names of the rest."""
    index = folder / "model_index.json"
    if not index.exists():
        raise FileNotFoundError(
            f"{folder} has no model_index.json, expected a folder that a pipeline of diffusers "
            "wrote by save_pretrained"
        )
    try:
        content = read_json(index)
    except ValueError as error:
        raise ValueError(f"{index} is damaged: {error}; expected names of classes") from error
    classes = {
        place: tuple(kind)
        for place, kind in (content.items() if isinstance(content, dict) else ())
        if isinstance(kind, list) and len(kind) == 2 and kind[1] is not None
    }
    places = [place for place in (*NETWORKS, "scheduler") if place in classes]
    for place in places:  # all before the first one is opened
        _check_class(folder, place, *classes[place])
    return {**classes, **{place: _opened(folder / place, classes[place][1]) for place in places}}


def _check_class(folder: Path, place: str, package: object, kind: object) -> None:
    """Raise ValueError unless a part of a pipeline is of a class that reads numbers alone."""
    allowed = SCHEDULER_CLASSES if place == "scheduler" else NETWORK_CLASSES
    if package != "diffusers" or kind not in allowed:
        raise ValueError(
            f"the {place} in {folder} is a {kind} of {package}, expected a class of diffusers "
            f"among {', '.join(allowed)}; others may run code, so that you open it yourself, and "
            "see from_diffusers"
        )


def _opened(folder: Path, kind: str) -> Any:
    """The network or the scheduler in a folder of a pipeline."""
    import diffusers

    options: dict[str, object] = {"local_files_only": True}
    if kind in NETWORK_CLASSES:
        options |= {"use_safetensors": True, "low_cpu_mem_usage": False}
    if not hasattr(diffusers, kind):
        raise ImportError(
            f"{folder} is a {kind}, which diffusers {diffusers.__version__} does not have, "
            "expected a version that does; install another one"
        )
    return getattr(diffusers, kind).from_pretrained(folder, **options)


def _read(network: nn.Module, options: ImportOptions) -> nn.Module:
    """The network, wrapped if it takes labels; options that its configuration implies are added."""
    text = inspect.signature(network.forward).parameters.get("encoder_hidden_states")
    if text is not None and text.default is text.empty and "call" not in options:
        raise ValueError(
            f"{type(network).__name__} is given texts, encoder_hidden_states, and no call is; give "
            "call=, a function of the network, w and the time that passes them"
        )
    config: Any = network.config
    channels = getattr(config, "in_channels", None)
    if channels is not None and getattr(config, "out_channels", None) == 2 * channels:
        options.setdefault("learned_variance", True)
    is_dit = getattr(config, "norm_type", None) == "ada_norm_zero"  # has a label for none
    classes = getattr(config, "num_embeds_ada_norm" if is_dit else "num_class_embeds", None)
    if classes and "call" not in options:
        options.setdefault("context_size", classes)
        network = Labelled(network, unknown=classes if is_dit else None)
    return network


@checked_arguments
def to_pipeline(
    model: DiffusionModel, low: float = -1.0, high: float = 1.0, *, steps: Several = 1000
) -> Any:
    """A model of images as a ``DDIMPipeline`` of ``diffusers``, for its schedulers and guidance.

    Its noise levels are evenly spaced in log SNR between the ends of the model's diffusion. Other
    schedulers are made by their ``from_config(pipeline.scheduler.config)``.

    Args:
        model: a model, as for :class:`SigmaDenoiser`, of data (C, H, W).
        low, high: values of x that are black and white; those of pipelines are -1 and 1.
        steps: the number of times of the scheduler.

    Returns:
        The ``DDIMPipeline``.

    Raises:
        TypeError: a score that is no denoiser of z.
        ValueError: data of another shape, an interval without a length.
        ImportError: diffusers is not installed (``pip install -e ".[imported]"``).

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser
        >>> from pyro_mdm.networks import UNet
        >>> denoiser = Denoiser.fit(UNet(1, 8), torch.randn(20, 1, 8, 8))
        >>> model = DiffusionModel(VPSDE(), denoiser)
        >>> pipeline = to_pipeline(model, steps=100)  # doctest: +SKIP
        >>> type(pipeline).__name__  # doctest: +SKIP
        'DDIMPipeline'
    """
    from diffusers import ConfigMixin, DDIMPipeline, DDIMScheduler, ModelMixin
    from diffusers.configuration_utils import register_to_config

    denoise, shape = SigmaDenoiser(model), model.event_shape
    if shape is None or len(shape) != 3:
        raise ValueError(
            f"the model's event_shape is {shape and tuple(shape)}, expected images, (C, H, W)"
        )
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"low is {low} and high {high}, expected finite numbers, low < high")
    scale = 2 / (high - low)
    diffusion = model.diffusion
    low_snr, high_snr = (e.item() for e in (diffusion.terminal_log_snr, diffusion.start_log_snr))
    level = torch.linspace(high_snr, low_snr, steps, dtype=torch.float64)
    kept = (level - 2 * math.log(scale)).sigmoid()
    betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=steps,
        trained_betas=betas.tolist(),
        clip_sample=False,
        timestep_spacing="trailing",
    )

    class ModelNetwork(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, sample_size: tuple[int, int], in_channels: int) -> None:
            super().__init__()
            self.denoise = denoise
            kept = scheduler.alphas_cumprod.double()
            self.register_buffer("kept", kept.to(denoise.denoiser.data_mean.device))

        def forward(self, sample: Tensor, timestep: Tensor | int, **_: object) -> Any:
            time = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
            kept = self.kept[time]
            alpha = with_event_dims(kept.sqrt(), sample).to(sample.dtype)
            sigma = with_event_dims((1 - kept).sqrt(), sample).to(sample.dtype)
            z = (sample / alpha + 1) / scale + low
            log_snr = kept.logit() + 2 * math.log(scale)  # of a table in float32
            x = self.denoise(z, (-log_snr.clamp(low_snr, high_snr) / 2).exp())
            return _Output((sample - alpha * ((x - low) * scale - 1)) / sigma)

    return DDIMPipeline(unet=ModelNetwork(tuple(shape[1:]), shape[0]), scheduler=scheduler)


class _Output(tuple[Tensor]):
    """The output of a network of ``diffusers``, the predicted noise."""

    def __new__(cls, sample: Tensor) -> _Output:
        return super().__new__(cls, (sample,))

    @property
    def sample(self) -> Tensor:
        return self[0]
