"""Images that were measured, from files, and how they were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.settings.names import find, make, slug
from models import DataError
from models.images import SUFFIXES, image_files, read_pixels
from pyro_mdm.measurements import Blur, Downsample, FunctionOperator, LinearOperator, Mask
from pyro_mdm.support.files import regular

__all__ = [
    "TASKS",
    "MeasurementChoice",
    "Observation",
    "Task",
    "chosen_measurement",
    "measured_files",
    "read",
]

Shape = tuple[int, ...]
Task = Literal["deblur", "superresolve", "inpaint", "denoise"]


def half(event_shape: Shape) -> Mask:
    """A mask that sees the left half of each row."""
    seen = torch.zeros(event_shape, dtype=torch.bool)
    seen[..., : (event_shape[-1] + 1) // 2] = True
    return Mask(seen)


TASKS: dict[str, Callable[[Shape], LinearOperator]] = {
    "deblur": lambda shape: Blur(shape, 1.0),
    "superresolve": lambda shape: Downsample(shape, 2),
    "inpaint": half,
    "denoise": lambda shape: FunctionOperator(lambda x: x, shape),
}


class MeasurementChoice(NamedTuple):
    """The measurement of images: by an operator for images of any shape, or by one alone."""

    name: str
    """In names of files."""
    option: str
    """In words, such as ``--task deblur``."""
    operator: Callable[[Shape], LinearOperator]
    """The operator for images (C, H, W), or the one that there is."""

    def operator_for(self, obs: Shape, image: Shape, where: str) -> LinearOperator:
        """The operator whose observations have this shape.

        An operator for images of any shape is that of images as large as those of the network, or
        as much larger as ``obs`` is than their measurements.

        Args:
            obs: the shape of what was measured.
            image: the shape of the network's images.
            where: the file, for messages.

        Raises:
            ValueError: no such operator.
        """
        usual = self.operator(image)
        if _fits(usual, obs):
            return usual
        larger = _larger(image, usual.obs_shape, obs)
        if larger is not None and _fits(operator := self.operator(larger), obs):
            return operator
        expected = usual.event_shape if isinstance(usual, Mask) else usual.obs_shape
        raise ValueError(
            f"{where} has shape {_by(obs)}, expected {_by(expected)}, as {self.option} has it for "
            f"images of {_by(usual.event_shape)}; crop or scale one to the other"
        )


def _by(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _fits(operator: LinearOperator, obs: Shape) -> bool:
    """Whether observations have this shape; those of a mask may be the whole image."""
    return obs == operator.obs_shape or (isinstance(operator, Mask) and obs == operator.event_shape)


def _larger(image: Shape, usual: Shape, obs: Shape) -> Shape | None:
    """The shape of images as much larger as ``obs`` is than ``usual``; None if there is none."""
    if len(usual) == 1 and len(obs) == 3 and obs[0] == image[0]:  # of a mask
        return obs
    if len(usual) != 3 or len(obs) != 3 or obs[0] != usual[0]:
        return None
    sizes = [
        n * measured / at for n, measured, at in zip(image[1:], obs[1:], usual[1:], strict=True)
    ]
    whole = all(size == int(size) for size in sizes)
    return (image[0], *map(int, sizes)) if whole else None


def chosen_measurement(
    task: Task | None, mask: Path | None, operator: str | None
) -> MeasurementChoice:
    """The measurement of images, from the one option that is given.

    Raises:
        ValueError: none or several are given.
        DataError: no mask that can be read, or one that hides all or nothing.
        TypeError, NameNotFoundError: no operator, see :func:`inference.settings.names.make`.
    """
    options = {"task": task, "mask": mask, "operator": operator}
    given = [f"--{name} {value}" for name, value in options.items() if value is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} are" if given else "none of them is"
        raise ValueError(
            f"{what} given, expected one of --task, --mask and --operator: how the images were "
            "measured"
        )
    if mask is not None:
        seen = read_mask(mask)
        return MeasurementChoice("mask", given[0], lambda shape: Mask(seen.repeat(shape[0], 1, 1)))
    if operator is not None:
        named = find("operator", operator)
        return MeasurementChoice(
            slug(operator),
            given[0],
            lambda shape: make("operator", operator, named, LinearOperator, {"event_shape": shape}),
        )
    assert task is not None
    return MeasurementChoice(task, given[0], TASKS[task])


def read_mask(path: Path) -> Tensor:
    """The pixels that are seen, bool (1, H, W), from a picture where these are white.

    Raises:
        DataError: no picture, one with other colours than black and white, or of one of these
            alone.
    """
    pixels = torch.from_numpy(read_pixels(_checked(path, "mask")).copy())
    if bool((pixels != pixels[:1]).any()) or bool(((pixels > 0) & (pixels < 255)).any()):
        other = ((pixels > 0) & (pixels < 255)).any(0) | (pixels != pixels[:1]).any(0)
        raise DataError(
            f"--mask {path} has {int(other.sum())} pixels of other colours, expected white (255) "
            "where the image is seen, and black (0) where it is not; save it with these two, as a "
            ".png (a .jpg changes them)"
        )
    seen = pixels[:1] > 0
    if not bool(seen.any()):
        raise DataError(
            f"--mask {path} is black, so that nothing is seen, expected white where the image is "
            "seen; draw samples of no image with inference.sample"
        )
    if bool(seen.all()):
        raise DataError(
            f"--mask {path} is white, so that nothing is hidden, expected black where the image is "
            "not seen; use --task denoise for an image that is seen everywhere"
        )
    return seen


class Observation(NamedTuple):
    """What was measured of one image."""

    name: str
    """That of its file, without the suffix."""
    obs: Tensor
    """(*obs_shape), float64."""
    operator: LinearOperator


def measured_files(data: Path | Sequence[Path]) -> list[Path]:
    """The files of --data: those that are named, and the pictures of a folder.

    Raises:
        DataError: a file that is not there, or of another kind, a folder without pictures, two
            files of one name.
    """
    files: list[Path] = []
    for path in [data] if isinstance(data, Path) else data:
        if path.is_dir():
            inside = image_files(path)
            if not inside:
                raise DataError(
                    f"--data {path} has no pictures, expected files that end in "
                    f"{', '.join(sorted(SUFFIXES))}; name .npy files one by one"
                )
            files += inside
        else:
            files.append(_checked(path, "data", ".npy"))
    if not files:
        raise DataError("--data is empty, expected a picture, several, or a folder of them")
    stems = [path.stem for path in files]
    if twice := [path for path in files if stems.count(path.stem) > 1]:
        raise DataError(
            f"--data has {twice[0]} and {twice[1]}, whose restorations would have one name; rename "
            "one of them"
        )
    return files


def _checked(path: Path, option: str, *more: str) -> Path:
    kinds = [*more, *sorted(SUFFIXES)]
    if not path.is_file():
        raise DataError(f"--{option} {path} is not there, expected a file; check its name")
    if path.suffix.lower() not in kinds:
        raise DataError(f"--{option} is {path}, expected a file that ends in {', '.join(kinds)}")
    return path


def read(path: Path, measurement: MeasurementChoice, image: Shape) -> Observation:
    """What was measured, from a picture or a .npy file.

    Args:
        path: a picture, whose pixels from 0 to 255 become -1 to 1, or floating-point numbers in the
            units of H x.
        image: the shape of the network's images, (C, H, W).

    Raises:
        DataError: no such file, or one that cannot be read.
        ValueError: another shape, or colours other than those of the network.
    """
    usual = measurement.operator(image)
    planes = usual.obs_shape if len(usual.obs_shape) > 1 else usual.event_shape
    if path.suffix.lower() == ".npy":
        obs = _array(path)
        obs = obs.unsqueeze(0) if obs.dim() == 2 < len(planes) else obs  # (H, W) of one channel
    else:
        obs = _picture(path, planes[0])
    operator = measurement.operator_for(tuple(obs.shape), image, f"--data {path}")
    if obs.shape != operator.obs_shape:  # the image under a mask, which is not seen as a whole
        obs = operator(obs)
    if not bool(obs.isfinite().all()):
        raise DataError(
            f"--data {path} has {int((~obs.isfinite()).sum())} numbers that are not finite where "
            "it is seen, expected finite ones; hide unknown ones by a --mask"
        )
    return Observation(path.stem, obs, operator)


def _array(path: Path) -> Tensor:
    try:
        values = np.load(regular(path), allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"--data {path} cannot be read as an array of numbers: {error}") from error
    if not (isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.floating)):
        kind = getattr(values, "dtype", type(values).__name__)
        raise DataError(
            f"--data {path} has numbers of type {kind}, expected floating-point numbers in the "
            "units of H x, in which pixels go from -1 to 1: 2 * pixels / 255 - 1"
        )
    return torch.from_numpy(values.astype(np.float64))


def _picture(path: Path, channels: int) -> Tensor:
    pixels = torch.from_numpy(read_pixels(path).copy())
    if len(pixels) > channels and bool((pixels == pixels[:1]).all()):
        pixels = pixels[:1]  # grey, saved as a colour
    if len(pixels) != channels:
        kind, expected, fix = (
            ("in colour", "a grey picture", "convert it to grey")
            if channels == 1
            else (
                "grey",
                f"{channels} channels",
                "give by --operator how colours became grey",
            )
        )
        raise ValueError(
            f"--data {path} is {kind}, expected {expected}, like the run's images; {fix}, "
            "or use a run of such images"
        )
    return 2 * pixels.double() / 255 - 1
