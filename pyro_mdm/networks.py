"""Networks for scores: an MLP for vectors and a U-Net for images.

Any ``nn.Module`` called as ``network(x, log_snr)`` can take their place: ``x`` is (n, features) or
(n, C, H, W) of about unit variance, ``log_snr`` is (n,), and the result has the shape of ``x`` with
the number of channels that the score needs. Both networks start at zero output (last layer zero),
where a denoiser's bound is that of its baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_mdm.support.checks import Count, checked_arguments
from pyro_mdm.support.settings import Recorded, Restorable

__all__ = ["MAP_LIMIT", "MAP_UNIT", "MLP", "LogSNREmbedding", "StridedUNet", "UNet"]

_M = TypeVar("_M", bound=nn.Module)
MAP_UNIT, MAP_LIMIT = 10.0, 3.0
"""Unit of a map of log SNR as a network's input, and the limit of that input's size."""
PERIOD = 64.0  # the longest of the embedding, which is one-to-one for log SNRs in (-32, 32)


class LogSNREmbedding(Recorded, nn.Module):
    r"""Smooth features of λ = log SNR, followed by two layers.

        φ(λ) = (λ/10, sin(2πkλ/64), cos(2πkλ/64) for k = 1 … 8)

    The shortest period is 8 units of λ, so that noise levels a unit apart have similar features and
    are learned together. Features are computed in float32 at least, whatever the precision of the
    weights.

    Call: log_snr (n,) -> (n, width).

    Args:
        width: width of the embedding.
        frequencies: number of harmonics; the shortest period is 64/frequencies units of λ.
    """

    def __init__(self, width: int, frequencies: int = 8) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.layers = nn.Sequential(
            nn.Linear(1 + 2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

    def forward(self, log_snr: Tensor) -> Tensor:
        dtype = next(self.layers.parameters()).dtype
        # at λ = 13 bfloat16 has steps of 1/16, which the phases of the shortest period would show
        log_snr = log_snr.to(torch.promote_types(dtype, torch.float32)).unsqueeze(-1)
        k = torch.arange(1, self.frequencies + 1, device=log_snr.device)
        angles = log_snr * (2.0 * math.pi / PERIOD * k)
        features = torch.cat([log_snr / 10.0, angles.sin(), angles.cos()], dim=-1)
        return self.layers(features.to(dtype))


class FiLM(nn.Module):
    """h ↦ h·(1 + scale) + shift, both linear in the embedding and zero at first (FiLM)."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.linear = _zeroed(nn.Linear(embedding, 2 * channels))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.linear(embedding)[(...,) + (None,) * (h.dim() - 2)].chunk(2, dim=1)
        return torch.addcmul(shift, h, 1.0 + scale)


class MLP(Recorded, nn.Module):
    """Residual MLP for vectors: each block is h + W₂ SiLU(FiLM(W₁ SiLU(h), λ)).

    Args:
        features: number of features of the input vectors.
        hidden: width of the hidden layers.
        depth: number of residual blocks.
        out_features: number of features of the output; None: ``features``.
        dropout: probability of dropout inside the residual blocks, in [0, 1).

    Call: x (n, features), log_snr (n,) -> (n, out_features).

    Raises:
        ValueError: a size below 1, or arguments of the call of another shape.

    Example:
        >>> MLP(features=2)(torch.randn(5, 2), torch.zeros(5)).shape
        torch.Size([5, 2])
    """

    @checked_arguments
    def __init__(
        self,
        features: Count,
        hidden: Count = 128,
        depth: Count = 3,
        out_features: Count | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        out_features = features if out_features is None else out_features
        self.features = features
        self.embedding = LogSNREmbedding(hidden)
        self.inlet = nn.Linear(features, hidden)
        self.blocks = nn.ModuleList(_MLPBlock(hidden, dropout) for _ in range(depth))
        self.outlet = _zeroed(nn.Linear(hidden, out_features))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ValueError(
                f"the MLP takes vectors of shape (n, {self.features}), got {tuple(x.shape)}; "
                "flatten the data or build MLP(features=…) for its size"
            )
        if log_snr.shape != x.shape[:1]:
            raise _wrong_log_snr(x, log_snr)
        if not self.training and len(x) > 1 and log_snr.stride() == (0,):
            log_snr = log_snr[:1]  # one that is expanded, as in sampling: its embedding serves all
        embedding = self.embedding(log_snr)
        h = self.inlet(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.outlet(F.silu(h))


class _MLPBlock(nn.Module):
    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(hidden, hidden)
        self.film = FiLM(hidden, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return h + self.second(self.dropout(F.silu(self.film(self.first(F.silu(h)), embedding))))


class UNet(Restorable, nn.Module):
    """U-Net of residual blocks with group norm and SiLU, after Ho et al. 2020 (DDPM), appendix B.

    Level l works at 1/2^l of the image's size (rounded up) with base·multipliers[l] channels. The
    way down has ``blocks`` residual blocks per level and a strided convolution between levels. The
    way up has ``blocks + 1``, each with one stored output of the way down as a second input. Two
    residual blocks are in the middle. λ enters every block as scale and shift. The paper's CIFAR
    scale, 35.5 million parameters for 3×32×32, is::

        UNet(3, base=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.1)

    Args:
        channels: number of channels of the input.
        out_channels: number of channels of the output; None: ``channels``.
        base: number of channels at full resolution.
        multipliers: factors of the channels, one per level; a single one means no down-sampling.
        blocks: number of residual blocks per level on the way down.
        attention: levels (0 is full resolution) whose blocks are each followed by self-attention
            over pixels; if there are any, the middle has one too.
        heads: number of attention heads; must divide the channels where attention is used.
        groups: largest number of groups of a group norm.
        dropout: probability of dropout inside the residual blocks, in [0, 1): one for all, or one
            per level, the last of which is also that of the middle.
        embedding: width of the λ embedding; None: 2·base.
        lean: whether to store the blocks' outputs only, and have ``blocks`` per level on the way up
            too, which saves a block per level.
        patch: side, in pixels, of square patches whose pixels become channels (pixel unshuffle).
            Patches divide the work by about patch²; height and width must be multiples of it.

    Call: x (n, channels, H, W), log_snr (n,) -> (n, out_channels, H, W), for any H and W of at
    least 2^(levels - 1) patches, odd numbers included.

    Raises:
        ValueError: impossible arguments; images of another number of channels, too small for the
            number of levels, or not made of whole patches.

    Example:
        >>> UNet(1, base=8)(torch.randn(3, 1, 8, 8), torch.zeros(3)).shape
        torch.Size([3, 1, 8, 8])
    """

    @checked_arguments
    def __init__(
        self,
        channels: Count = 1,
        out_channels: Count | None = None,
        base: Count = 32,
        multipliers: Sequence[Count] = (1, 2),
        blocks: Count = 1,
        attention: Sequence[int] = (),
        *,
        heads: Count = 1,
        groups: Count = 32,
        dropout: float | Sequence[float] = 0.0,
        embedding: Count | None = None,
        lean: bool = False,
        patch: Count = 1,
    ) -> None:
        super().__init__()
        rates = _dropout_by_level(multipliers, attention, dropout)
        out_channels = channels if out_channels is None else out_channels
        embedding = 2 * base if embedding is None else embedding
        self.channels, self.levels, self.patch = channels, len(multipliers), patch
        self.heads, self.groups, self.lean = heads, groups, lean
        self.embedding = LogSNREmbedding(embedding)
        self.inlet = nn.Conv2d(channels * patch**2, base, 3, padding=1)
        widths = [base * m for m in multipliers]

        def block(inputs: int, level: int, attend: bool) -> _ResidualBlock:
            shape = inputs, widths[level], embedding, groups
            return _ResidualBlock(*shape, heads if attend else 0, rates[level])

        self._make_ways(base, widths, blocks, attention, block)
        outlet = _zeroed(nn.Conv2d(widths[0], out_channels * patch**2, 3, padding=1))
        self.outlet = nn.Sequential(group_norm(widths[0], groups), nn.SiLU(), outlet)

    def _make_ways(
        self,
        width: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        block: Callable[[int, int, bool], nn.Module],
    ) -> None:
        """Make the way down, the middle and the way up, in this order.

        Outputs on the way down are stored; ``stored`` keeps their channels for the way up.
        """
        stored = [] if self.lean else [width]
        self.down = nn.ModuleList()
        for level in range(self.levels):
            if level > 0:
                self.down.append(_Down(width))
                stored += [] if self.lean else [width]
            for _ in range(blocks):
                self.down.append(block(width, level, level in attention))
                width = widths[level]
                stored.append(width)
        self.middle = nn.ModuleList(block(width, -1, a) for a in (bool(attention), False))
        self.up = nn.ModuleList()
        for level in reversed(range(self.levels)):
            if level + 1 < self.levels:
                self.up.append(_Up(width))
            for _ in range(blocks if self.lean else blocks + 1):
                self.up.append(block(width + stored.pop(), level, level in attention))
                width = widths[level]

    def settings(self) -> dict[str, object]:
        """Settings that the shapes of weights do not determine; dropout acts in training alone."""
        names = ("channels", "heads", "groups", "patch", "lean")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        smallest = self.patch * 2 ** (self.levels - 1)
        _check_images(x, self.channels, self.levels, smallest, "UNet(channels=…, multipliers=…)")
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"images of {x.shape[2]}×{x.shape[3]} are not made of patches of {self.patch}×"
                f"{self.patch}; pad the images or build UNet(patch=…) with a common divisor of "
                "their sides"
            )
        if log_snr.shape != x.shape[:1]:
            raise _wrong_log_snr(x, log_snr)
        embedding = self.embedding(log_snr)
        h = self.inlet(F.pixel_unshuffle(x, self.patch))
        stored = [] if self.lean else [h]
        for block in self.down:
            h = block(h, embedding)
            if not (self.lean and isinstance(block, _Down)):
                stored.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block in self.up:
            if isinstance(block, _Up):
                h = block(h, stored[-1].shape[-2:])
            else:
                h = block(torch.cat([h, stored.pop()], dim=1), embedding)
        return F.pixel_shuffle(self.outlet(h), self.patch)


class StridedUNet(Recorded, nn.Module):
    """U-Net with one convolution a level, for a small part of the work of :class:`UNet`.

    Each level of the way down is a 3×3 convolution without padding, all but the first with stride
    2; the way up has their transposes, of which all but the first see the output of their level on
    the way down too. λ is added to every output but the last, before group norm and SiLU. By
    default it has 1.1 million parameters, as the network of the paper's configurations for MNIST.

    Args:
        channels: number of channels of the input.
        out_channels: number of channels of the output; None: ``channels``.
        widths: number of channels of each level, multiples of 4.
        embedding: width of the λ embedding.

    Call: x (n, channels, H, W), log_snr (n,) -> (n, out_channels, H, W).

    Raises:
        ValueError: widths that are no multiples of 4; images of another number of channels, or too
            small: four levels need 17×17.

    Example:
        >>> StridedUNet(1, widths=(8, 16))(torch.randn(3, 1, 8, 8), torch.zeros(3)).shape
        torch.Size([3, 1, 8, 8])
    """

    @checked_arguments
    def __init__(
        self,
        channels: Count = 1,
        out_channels: Count | None = None,
        widths: Sequence[Count] = (32, 64, 128, 256),
        embedding: Count = 256,
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        if not widths or any(width % 4 for width in widths):
            raise ValueError(f"widths is {tuple(widths)}, expected multiples of 4")
        self.channels = channels
        self.embedding = LogSNREmbedding(embedding)
        inputs, strides = (channels, *widths), [1] + [2] * (len(widths) - 1)
        self.down = nn.ModuleList(
            nn.Conv2d(inputs[k], widths[k], 3, stride, bias=False)
            for k, stride in enumerate(strides)
        )
        outputs = [*widths[-2::-1], out_channels]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width * (1 + (k > 0)), outputs[k], 3, stride)
            for k, (width, stride) in enumerate(
                zip(reversed(widths), reversed(strides), strict=True)
            )
        )
        _zeroed(self.up[-1])
        normed = [*widths, *outputs[:-1]]
        self.shifts = nn.ModuleList(nn.Linear(embedding, width) for width in normed)
        self.norms = nn.ModuleList(group_norm(width, min(32, width // 4)) for width in normed)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        levels = len(self.down)
        _check_images(x, self.channels, levels, 2**levels + 1, "StridedUNet(channels=…, widths=…)")
        if log_snr.shape != x.shape[:1]:
            raise _wrong_log_snr(x, log_snr)
        embedding = self.embedding(log_snr)
        added = iter(zip(self.shifts, self.norms, strict=True))

        def lit(h: Tensor) -> Tensor:
            shift, norm = next(added)
            return F.silu(norm(h + shift(embedding)[..., None, None]))

        stored, h = [x], x
        for layer in self.down:
            h = lit(layer(h))
            stored.append(h)
        stored.pop()
        for k, layer in enumerate(self.up):
            beside = stored.pop()
            h = layer(h, output_size=beside.shape[2:])
            h = torch.cat([lit(h), beside], 1) if k + 1 < levels else h
        return h


class _ResidualBlock(nn.Module):
    """h ↦ skip(h) + conv SiLU FiLM(norm(conv SiLU norm(h)), λ), then attention if it has heads."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, groups: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm = group_norm(inputs, groups)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        # No affine weights here: FiLM's bias is one.
        self.film_norm = group_norm(outputs, groups, affine=False)
        self.film = FiLM(embedding, outputs)
        self.dropout = nn.Dropout(dropout) if dropout > 0.0 else nn.Identity()
        self.second = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = _Attention(outputs, heads, groups) if heads else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        update = self.first(F.silu(self.norm(h)))
        update = F.silu(self.film(self.film_norm(update), embedding))
        return self.attention(self.skip(h) + self.second(self.dropout(update)))


class _Attention(nn.Module):
    """h ↦ h + self-attention over pixels of norm(h)."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"heads is {heads}, which does not divide the {channels} channels where attention "
                "is used; change heads or base"
            )
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.outlet = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        n, channels, height, width = h.shape
        split = self.query_key_value(self.norm(h)).view(n, 3, self.heads, -1, height * width)
        query, key, value = split.transpose(-1, -2).unbind(dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return h + self.outlet(mixed.transpose(-1, -2).reshape(n, channels, height, width))


class _Down(nn.Module):
    """A strided convolution that halves the size (rounded up), called like a block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(h)


class _Up(nn.Module):
    """Upsampling to a given size by repeated pixels.

    The convolution before it costs a quarter of one after it; the next block's convolution smooths.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(self.conv(h), size=list(size), mode="nearest")


def group_norm(channels: int, groups: int, affine: bool = True) -> nn.GroupNorm:
    """Group norm with the largest divisor of ``channels`` up to ``groups`` and channels/4 groups.

    A group of one channel would erase its mean, so a group has at least 4 channels if there are 4.
    """
    limit = min(groups, max(1, channels // 4))
    divisor = max(g for g in range(1, limit + 1) if channels % g == 0)
    return nn.GroupNorm(divisor, channels, affine=affine)


def _dropout_by_level(
    multipliers: Sequence[int], attention: Sequence[int], dropout: float | Sequence[float]
) -> Sequence[float]:
    """The dropout probability of each level of a U-Net, after a check of its levels."""
    if not multipliers:
        raise ValueError("multipliers is empty; give one factor per resolution, e.g. (1, 2)")
    levels = len(multipliers)
    if wrong := [level for level in attention if not 0 <= level < levels]:
        raise ValueError(
            f"attention at levels {wrong}, but {levels} multipliers make levels 0 to {levels - 1}"
        )
    rates = dropout if isinstance(dropout, Sequence) else [dropout] * levels
    if len(rates) != levels or not all(0.0 <= rate < 1.0 for rate in rates):
        raise ValueError(
            f"dropout is {dropout}; expected a number in [0, 1), or one for each of the {levels} "
            "levels"
        )
    return rates


def _zeroed(module: _M) -> _M:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _check_images(x: Tensor, channels: int, levels: int, smallest: int, fix: str) -> None:
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(
            f"the U-Net takes images of shape (n, {channels}, height, width), got "
            f"{tuple(x.shape)}; build {fix} for these data"
        )
    if min(x.shape[2:]) < smallest:
        raise ValueError(
            f"images of {x.shape[2]}×{x.shape[3]} are too small for {levels} levels, which need at "
            f"least {smallest}×{smallest}; build {fix} with fewer"
        )


def _wrong_log_snr(x: Tensor, log_snr: Tensor) -> ValueError:
    return ValueError(
        f"log_snr has shape {tuple(log_snr.shape)}, expected one value per datum, "
        f"({x.shape[0]},); expand a common value to the batch"
    )
