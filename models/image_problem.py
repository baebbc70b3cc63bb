"""The base classes of image data sets, and of those read from files."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from models.checks import check_images
from models.kinds import kind_of
from models.problem import Assembly, Problem
from pyro_mdm import Diffusion, DiscreteDenoiser
from pyro_mdm.levels.denoiser import Form, outputs_of
from pyro_mdm.levels.dequantization import Dequantized, LogitDequantization
from pyro_mdm.levels.likelihoods import DiscretizedGaussian
from pyro_mdm.likelihoods.base import Gaussian, Likelihood, Tweedie
from pyro_mdm.networks import StridedUNet, UNet
from pyro_mdm.scores.base import Score

SMALL: dict[str, Any] = {"base": 32, "multipliers": (1, 2, 3), "lean": True, "patch": 2}
"""A U-Net for training on a laptop's CPU, 1.3 million parameters for 3×32×32."""

MIXTURE: dict[str, Any] = SMALL | {"form": "mixture"}
"""A small U-Net with a mixture of three tilts for each pixel."""

FINE: dict[str, Any] = {
    "base": 24,
    "multipliers": (1, 2, 4),
    "lean": True,
    "form": "mixture",
}
"""A U-Net at full resolution, without patches, 1.1 million parameters for 1×28×28."""

PAPER: dict[str, Any] = {
    "base": 128,
    "multipliers": (1, 2, 2, 2),
    "blocks": 2,
    "attention": (1,),
    "dropout": 0.1,
}
"""The U-Net of the paper's scale, 35.5 million parameters for 3×32×32; see :class:`UNet`."""

PUBLISHED: dict[str, Any] = PAPER | {"dropout": 0.0}
"""The paper's U-Net without dropout, as in the configurations released with the paper."""

PUBLISHED_SMALL: dict[str, Any] = {"base": 32, "multipliers": (1, 2, 2), "blocks": 2}
"""A U-Net of the paper's size for MNIST, 1.5 million parameters for 1×28×28 and K = 2."""

PUBLISHED_STRIDED: dict[str, Any] = {"widths": (32, 64, 128, 256)}
"""The make and the size of the network in the paper's configurations for MNIST, 1.1 million
parameters; see :class:`StridedUNet`."""


class ImageProblem(Problem):
    """Images with up to 256 levels, grey or in colour, as uint8 codes k = 0 … num_levels - 1.

    Two protocols:

    - ``discrete``: x = linspace(-1, 1, num_levels)[k], a likelihood over the levels, no noise
      added; bits per dimension are -(log p)/(d ln 2).
    - ``dequantized``, the paper's: x = logit((k + u)/num_levels), u uniform and drawn anew at each
      use (:class:`pyro_mdm.levels.LogitDequantization`), with a Tweedie decoder (the
      Gaussian one for a diffusion without a closed form, which has no denoiser); bits per dimension
      need ``transform``'s log-determinant and ``dequantized_levels``.

    A subclass needs a ``name`` and :meth:`load` (or :meth:`split`, for official parts), which
    returns uint8 (n, C, H, W) with C = 1 or 3. It may name other U-Nets in ``networks`` or define
    :meth:`network` itself.

    Args:
        protocol: ``"discrete"`` or ``"dequantized"``.
        holdout: whether to keep a validation part, see :class:`Problem`.
        network: the name of the network in ``networks``; None: the first.
        logit_margin: the margin α of the dequantized protocol, in [0, ½); None: that of
            :class:`~pyro_mdm.levels.LogitDequantization`. The paper's is 0.05.

    Raises:
        ValueError: an unknown protocol or network; a margin out of range or without the protocol;
            images that are not codes of levels, or of a size that does not suit the network.
    """

    max_log_snr: float = 13.0
    num_levels: int = 256
    form: Form = "tilt"
    """The form of a discrete denoiser's output, see :class:`~pyro_mdm.DiscreteDenoiser`."""

    networks: ClassVar[dict[str, dict[str, Any]]] = {"small": SMALL}
    """Options of :class:`UNet`, or with ``widths`` of :class:`StridedUNet`, by name; the first is
    the default. A ``form`` among them replaces the class's."""

    recipe: ClassVar[str | None] = None
    """The name in ``networks`` that ``inference.train`` takes by default; None: the first."""

    optimizer: ClassVar[Literal["adam", "muon"]] = "adam"
    """The default optimizer of ``recipe``'s network in ``inference.train``; others have Adam."""

    learning_rates: ClassVar[dict[str, float]] = {
        "paper": 2e-4,
        "published": 2e-4,
        "published_small": 2e-4,
        "published_unet": 2e-4,
    }
    """Default learning rates of networks for which ``learning_rate`` is too high."""

    def __init__(
        self,
        *,
        protocol: Literal["discrete", "dequantized"] = "discrete",
        holdout: bool = False,
        network: str | None = None,
        logit_margin: float | None = None,
    ) -> None:
        if protocol not in ("discrete", "dequantized"):
            raise ValueError(f"protocol is {protocol!r}, expected 'discrete' or 'dequantized'")
        if protocol == "discrete" and logit_margin is not None:
            raise ValueError(
                f"--logit_margin is {logit_margin}, which is for dequantized images; give "
                "--protocol dequantized too, or leave it out"
            )
        if logit_margin is not None and not 0 <= logit_margin < 0.5:
            raise ValueError(
                f"--logit_margin is {logit_margin}, expected a number in [0, 0.5), such as the "
                "paper's 0.05"
            )
        self.network_name = self._choose(network)
        if self.network_name in self.learning_rates:
            self.learning_rate = self.learning_rates[self.network_name]
        super().__init__(holdout=holdout)
        self._check_size()
        if self.network_name is not None:
            self.form = self.networks[self.network_name].get("form", self.form)
        self.levels = torch.linspace(-1.0, 1.0, self.num_levels, dtype=torch.float64)
        self.dequantization: LogitDequantization | None = None
        if protocol == "discrete":
            self.scores = ("discrete", *self.scores)
        else:
            margin = {} if logit_margin is None else {"margin": logit_margin}
            self.dequantization = LogitDequantization(self.num_levels, **margin)
            self.max_log_snr = 9.0  # of VPSDE at the paper's ε = 1e-3

    def check(self, data: Tensor, what: str) -> None:
        check_images(data, self.num_levels, what)
        super().check(data, what)

    def _check_size(self) -> None:
        if self.network_name is None:
            return
        options = self.networks[self.network_name]
        patch, levels = options.get("patch", 1), len(options.get("multipliers", (1, 2)))
        height, width = self.event_shape[1:]
        smallest = patch * 2 ** (levels - 1)
        if "widths" in options:
            smallest = 2 ** len(options["widths"]) + 1
        if height % patch or width % patch or min(height, width) < smallest:
            fitting = max(smallest, min(height, width) // patch * patch)
            others = [name for name in self.networks if name != self.network_name]
            raise ValueError(
                f"images of {height}×{width} pixels do not suit --network {self.network_name}, "
                f"which needs sides of at least {smallest} that are multiples of {patch}; "
                f"{self.resize_advice(fitting)}, or use "
                f"{' or '.join(others) or 'another U-Net, named in networks'}"
            )

    def resize_advice(self, size: int) -> str:
        """Advice on how to make images of ``size`` pixels a side."""
        return f"crop, pad or scale them to {size}×{size}"

    def _choose(self, network: str | None) -> str | None:
        """The name of the network; None where a subclass makes its own."""
        if type(self).network is not ImageProblem.network or not self.networks:
            if network is not None:
                raise ValueError(
                    f"--network is {network!r}, but {self.name} has one network, its own"
                )
            return None
        if network is not None and network not in self.networks:
            raise ValueError(
                f"--network is {network!r}, expected one of {', '.join(self.networks)} for "
                f"{self.name}"
            )
        return next(iter(self.networks)) if network is None else network

    def network(self, inputs: int, outputs: int) -> nn.Module:
        """A new U-Net, the chosen one of ``networks``."""
        if self.network_name is None:
            raise NotImplementedError(
                f"{type(self).__name__} names no U-Net in networks and has no method network; "
                "see models/digits.py"
            )
        options = dict(self.networks[self.network_name])
        options.pop("form", None)
        make = StridedUNet if "widths" in options else UNet
        return make(inputs, outputs, **options)

    @property
    def dequantized_levels(self) -> int | None:
        return None if self.dequantization is None else self.num_levels

    def transform(self, data: Tensor, generator: torch.Generator | None = None) -> Dequantized:
        if self.dequantization is not None:
            return self.dequantization(data, generator, self.dtype)
        levels = self.levels.to(data.device, self.dtype)
        return super().transform(levels[data.to(torch.int64)])

    def to_images(self, x: Tensor) -> Tensor:
        if self.dequantization is not None:
            codes = self.dequantization.levels(x)
        else:
            codes = (x.clamp(-1.0, 1.0) + 1.0) / 2.0 * (self.num_levels - 1)
        return (codes * (255.0 / (self.num_levels - 1))).round().to(torch.uint8)

    def own_score(self, kind: type[Score], assembly: Assembly) -> Score | None:
        if not issubclass(kind, DiscreteDenoiser):
            return None
        transform = assembly.diffusion_kind.coordinates
        if transform is not None:
            raise ValueError(
                f"score is {kind.__name__}, whose levels are of pixels, and "
                f"{type(assembly.diffusion).__name__} noises {transform}; use --score denoiser"
            )
        network = assembly.denoiser_network(outputs_of(self.form, self.num_levels))
        x, options = self.fit_x(), assembly.fit_options
        return assembly.wrapped(kind.fit(network, x, self.num_levels, form=self.form, **options))

    def likelihood(self, score: Score, diffusion: Diffusion) -> Likelihood | None:
        if self.dequantization is None:
            is_discrete = isinstance(getattr(score, "denoiser", score), DiscreteDenoiser)
            return None if is_discrete else DiscretizedGaussian(self.num_levels)
        return Gaussian() if kind_of(diffusion).simulated else Tweedie()


class FileImages(ImageProblem):
    """Images read from files in a folder, with official training and test parts.

    With ``holdout`` the last ``held_out`` images of the official training set are kept for
    validation. Test is always the official test set.

    Args:
        data: the folder; None: ``data`` in the working directory.
        options: protocol, holdout, network, …, see :class:`ImageProblem`.

    Raises:
        DataError: a file is missing or damaged; the message says what to run.
    """

    held_out: int = 5_000
    batch_size = 32
    optimizer = "muon"
    networks: ClassVar = {"small": SMALL, "fine": FINE, "paper": PAPER, "published": PUBLISHED}
    recipe = "fine"

    def __init__(self, *, data: Path | str | None = None, **options: Any) -> None:
        self.root = Path("data" if data is None else data).expanduser()
        super().__init__(**options)

    @abstractmethod
    def parts(self) -> tuple[Tensor, Tensor]:
        """The official training and test sets, uint8 (n, C, H, W)."""

    def labels(self) -> tuple[Tensor, Tensor]:
        """The labels 0, 1, … of both sets, (n,), where ``contexts`` names them."""
        raise NotImplementedError(f"{type(self).__name__} has no labels")

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        return self._held_out(self.parts(), holdout)

    def split_context(self, name: str, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        return self._held_out(self.labels(), holdout)

    def _held_out(
        self, parts: tuple[Tensor, Tensor], holdout: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        train, test = parts
        end = len(train) - (self.held_out if holdout else 0)
        return train[:end], train[end:], test
