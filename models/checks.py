"""Checks of data before training."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor


def as_tensor(data: object, what: str) -> Tensor:
    """A tensor or a NumPy array of numbers as a tensor, without a copy where possible."""
    if isinstance(data, Tensor):
        return data.detach()
    if not isinstance(data, np.ndarray):
        raise TypeError(
            f"{what} are a {type(data).__name__}, expected a tensor or a NumPy array "
            "(n, *event_shape), without labels"
        )
    try:
        native = np.asarray(data, data.dtype.newbyteorder("="), order="C")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return torch.from_numpy(native)
    except TypeError as error:
        raise TypeError(f"{what} are of dtype {data.dtype}, expected numbers") from error


def check_shape(data: Tensor, event_shape: tuple[int, ...], what: str) -> None:
    """Raise ValueError unless there are data, each of ``event_shape``."""
    shape = tuple(data.shape)
    if len(shape) < 2:
        raise ValueError(
            f"{what} have the shape {shape}, expected (n, *event_shape); scalars have the event "
            "shape (1,): data[:, None]"
        )
    if shape[1:] != tuple(event_shape):
        raise ValueError(
            f"{what} have the shape {shape}, expected (n, *event_shape) with event_shape = "
            f"{tuple(event_shape)}"
        )


def check_numbers(data: Tensor, what: str) -> None:
    """Raise ValueError unless data are real and finite."""
    if data.is_complex() or data.dtype == torch.bool:
        raise ValueError(f"{what} are of dtype {_dtype(data)}, expected real numbers")
    if data.is_floating_point() and (wrong := int((~data.isfinite()).sum())):
        raise ValueError(
            f"{what} have {wrong:,} numbers of {data.numel():,} that are not finite; remove or "
            "replace them"
        )


def check_images(data: Tensor, num_levels: int, what: str) -> None:
    """Raise ValueError unless data are codes (n, C, H, W) of levels 0 … ``num_levels`` - 1."""
    shape, top = tuple(data.shape), num_levels - 1
    if len(shape) != 4:
        advice = "; add the axis of channels: images[:, None]" if len(shape) == 3 else ""
        raise ValueError(f"{what} have the shape {shape}, expected (n, C, H, W){advice}")
    if shape[1] not in (1, 3):
        advice = "; move the axis of channels: images.movedim(3, 1)" if shape[3] in (1, 3) else ""
        raise ValueError(
            f"{what} have the shape {shape}, expected (n, C, H, W) with C = 1 or 3{advice}"
        )
    if data.numel() == 0 or (data.dtype == torch.uint8 and num_levels >= 256):
        return
    if data.dtype == torch.bool:
        raise ValueError(
            f"{what} are bool, expected integers 0 … {top}: images.to(torch.uint8), with "
            "num_levels = 2"
        )
    low, high = (value.item() for value in data.aminmax())
    given, expected = f"{what} are {_dtype(data)} from {low:g} to {high:g}", f"0 … {top}"
    if data.is_floating_point():
        raise ValueError(
            f"{given}, expected integers {expected}, the codes of num_levels = {num_levels} "
            f"levels: {_codes(data, low, high, top)}"
        )
    if not 0 <= low <= high <= top:
        raise ValueError(
            f"{given}, expected {expected}; set num_levels = {high + 1}, or scale the images"
            if low >= 0
            else f"{given}, expected {expected}; shift or scale the images"
        )


def _codes(data: Tensor, low: float, high: float, top: int) -> str:
    """Advice on how to turn such images into codes."""
    if low >= 0 and high <= top and bool((data == data.round()).all()) and (high > 1 or top == 1):
        return "images.to(torch.uint8)"
    if low >= 0 and high <= 1:
        return f"(images * {top}).round().to(torch.uint8)"
    if low >= -1 and high <= 1:
        return f"((images + 1) / 2 * {top}).round().to(torch.uint8)"
    return f"scale them to {top}, round and convert by .to(torch.uint8)"


def _dtype(data: Tensor) -> str:
    return str(data.dtype).removeprefix("torch.")
