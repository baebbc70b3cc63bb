"""Images of your own: a folder of PNG, JPEG, WebP or BMP files, or an .npz file."""

from __future__ import annotations

import itertools
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from models.base import FINE, PAPER, PUBLISHED, SMALL, ImageProblem
from models.data import SHOWN_CLASSES
from pyro_mdm.support.checks import DataError
from pyro_mdm.support.files import regular

FEWEST = 20
"""The fewest images that a model is trained on."""

SUFFIXES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that files are read as, whatever their suffix: PIL reads others, some by programs
such as Ghostscript."""
MOST_PIXELS = 2**26
"""The most pixels of a file that is decoded: a few kilobytes may claim any number."""

PARTS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
"""The names of subfolders and arrays that hold parts of the data."""

GREY = frozenset(["1", "L", "LA", "La"])
COLOUR = frozenset(["P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
TRANSPARENT = frozenset(["LA", "La", "PA", "RGBA", "RGBa"])

Pixels = NDArray[np.uint8]
T = TypeVar("T")
U = TypeVar("U")


class Images(ImageProblem):
    """Your own images, x_j ∈ linspace(-1, 1, 256), with tilts of a pixel's histogram and a U-Net.

    ``data`` is a folder or an .npz file. In a folder, images are
    searched for at any depth and taken in the order of their paths, without hidden files and files
    with other suffixes. Images are turned upright by their EXIF data, transparent ones are put on
    white, and of an animation the first frame is taken. All have one channel if all files are grey
    (palettes are colours), else three.

    An .npz file has arrays of uint8, (n, H, W), (n, H, W, C) or (n, C, H, W) with C = 1 or 3.

    Subfolders or arrays named ``train``, ``validation`` (or ``val``, ``valid``) and
    ``test`` are the parts.
    Without ``test``, a tenth of the training images, drawn by ``split_seed``, is test; without
    ``validation``, ``holdout`` keeps another tenth. They are drawn evenly from the subfolders,
    which may be classes. Without ``holdout`` a ``validation`` part is trained on.

    ``labels`` are the names of the folders, one for each class, that all images of a folder, or of
    each of its parts, lie in; they are numbered in the order of their names.

    Args:
        data: the folder or the file.
        image_size: the side of the middle square of each image after scaling (Lanczos,
            antialiased), in pixels; None: no scaling.
        options: protocol, holdout, network, …, see :class:`ImageProblem`.

    Raises:
        ValueError: no ``data``; an image size that is not positive; images of a size that does not
            suit the network.
        DataError: fewer than 20 images, images of different sizes (without ``image_size``), or
            files that cannot be read; labels of images that do not lie in folders of classes.
    """

    name = "images"
    steps = 10_000
    batch_size = 32
    optimizer = "muon"
    networks: ClassVar = {"small": SMALL, "fine": FINE, "paper": PAPER, "published": PUBLISHED}
    recipe = "fine"
    strata: ClassVar = "folders"
    contexts = ("labels",)

    def __init__(
        self,
        *,
        data: Path | str | None = None,
        image_size: int | None = None,
        **options: Any,
    ) -> None:
        if data is None:
            raise ValueError(
                "--model images needs --data PATH: a folder of images (PNG, JPEG, WebP, BMP, …), "
                "or an .npz file with arrays of uint8"
            )
        if image_size is not None and image_size < 1:
            raise ValueError(f"--image_size is {image_size}, expected a number of pixels")
        self.root, self.image_size = Path(data).expanduser(), image_size
        super().__init__(**options)

    def split(self, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        folders = self._files = None
        if self.root.is_dir():
            parts, self._files = _from_folder(self.root, self.image_size)
            folders = _numbered([path.parent for path in self._files["train"]])
        elif self.root.is_file() and self.root.suffix == ".npz":
            parts = _from_npz(self.root, self.image_size)
        else:
            reason = "is neither a folder nor an .npz file"
            raise DataError(
                f"--data {self.root} {reason if self.root.exists() else 'is not there'}; expected "
                "a folder of images, or an .npz file with arrays of uint8"
            )
        if (count := sum(map(len, parts.values()))) < FEWEST:
            what = f" ({', '.join(sorted(SUFFIXES))})" if self.root.is_dir() else ""
            raise DataError(f"{self.root} has {count} images{what}, expected at least {FEWEST}")
        if empty := [name for name, images in parts.items() if len(images) == 0]:
            raise DataError(f"{self.root} has no images for {', '.join(empty)}")
        train, kept = parts["train"], torch.ones(len(parts["train"]), dtype=torch.bool)
        missing = [name for name in ("validation", "test") if name not in parts]
        if not holdout:
            missing = [name for name in missing if name == "test"]
        if missing:
            rows = self.divide(len(train), "validation" in missing, folders)
            if "test" not in missing:  # test is official: rows drawn for it are trained on
                rows = rows._replace(test=rows.test[:0])
            for name in missing:
                kept[getattr(rows, name)] = False
            self.rows = rows._replace(train=kept.nonzero()[:, 0])
        return self._divided(parts, holdout)

    def _divided(self, parts: Mapping[str, Tensor], holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Training, validation and test values of images, from values of each part, (n, …)."""
        train, rows = parts["train"], self.rows
        rest = train if rows is None else train[rows.train]
        validation, test = (
            parts[name] if name in parts else train[getattr(rows, name) if rows else slice(0)]
            for name in ("validation", "test")
        )
        if holdout:
            return rest, validation, test
        if "validation" in parts:
            rest = torch.cat([rest, validation])
        return rest, train[:0], test

    @property
    def split_in_words(self) -> str:
        said, context = super().split_in_words, self.part("test").context
        if self.class_names is None or context is None:
            return said
        counts = context.bincount(minlength=len(self.class_names)).tolist()
        number = [f"{name} {count}" for name, count in zip(self.class_names, counts, strict=True)]
        more = len(number) - SHOWN_CLASSES
        shown = ", ".join(number[:SHOWN_CLASSES]) + (f" and {more} classes more" * (more > 0))
        return f"{said}; test data of {len(number)} classes: {shown}"

    def split_context(self, name: str, holdout: bool) -> tuple[Tensor, Tensor, Tensor]:
        if self._files is None:
            raise DataError(
                f"--condition {name} are the names of folders of images, and {self.root} is no "
                "folder of images; give one with a folder for each class, or leave it out"
            )
        classes = {
            part_name: [_class_of(path, part_name, self.root) for path in paths]
            for part_name, paths in self._files.items()
        }
        names = sorted(set(itertools.chain(*classes.values())))
        if len(names) < 2:
            raise DataError(
                f"{self.root} has images of a single class, {names[0]}, expected two classes at "
                "least, each in a folder; leave out --condition labels"
            )
        labels = {
            part_name: torch.tensor([names.index(folder) for folder in folders])
            for part_name, folders in classes.items()
        }
        divided = self._divided(labels, holdout)
        counts = divided[0].bincount(minlength=len(names)).tolist()
        if absent := [folder for folder, count in zip(names, counts, strict=True) if count == 0]:
            raise DataError(
                f"{self.root} has no training images of the class {absent[0]}, whose images are "
                "all validation or test; add images of it, remove its folder, or split others by "
                "another --split_seed"
            )
        self.class_names = names
        return divided

    def resize_advice(self, size: int) -> str:
        return f"use --image_size {size}"


# -- files of both kinds ---------------------------------------------------------------------------


def _scaled(image: Image.Image, size: int | None) -> Image.Image:
    """The middle square, ``size`` pixels a side."""
    if size is None or image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize(
        (size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side)
    )


def _other_size(first: str, shape: Sequence[int], name: str, other: Sequence[int]) -> DataError:
    (h, w), (other_h, other_w) = shape, other
    return DataError(
        f"images have different sizes: {first} is {h}×{w} (height × width) and {name} "
        f"{other_h}×{other_w}. --image_size N (such as {min(h, w, other_h, other_w)}) cuts out the "
        "middle square of each and scales it to N×N"
    )


def _named_parts(names: Iterable[str], place: Path) -> dict[str, str]:
    """The names of the parts among those of subfolders or arrays, by part."""
    parts: dict[str, str] = {}
    for name in names:
        if name in PARTS:
            if (part_name := PARTS[name]) in parts:
                raise DataError(f"{place} has both {parts[part_name]} and {name}; keep one of them")
            parts[part_name] = name
    return parts


def _in_threads(function: Callable[[T], U], items: Sequence[T], what: str) -> Iterable[U]:
    """function(item) for each item, in order, with a progress bar."""
    pool = ThreadPoolExecutor()
    try:
        results = pool.map(function, items)
        yield from tqdm(results, what, len(items), unit="image", leave=False, disable=None)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the rest is not needed


# -- folders ---------------------------------------------------------------------------------------


def _from_folder(
    root: Path, image_size: int | None
) -> tuple[dict[str, Tensor], dict[str, list[Path]]]:
    """The images of each part, and their files below the part's folder."""
    files = image_files(root)
    tops = [path.relative_to(root).parts[0] for path in files]
    named = _named_parts(sorted(set(tops)), root)
    if "train" in named:
        for path, top in zip(files, tops, strict=True):
            if top not in named.values():
                raise DataError(
                    f"{root} has the parts {', '.join(named.values())}, but {path} is in none of "
                    "them; move it to one, or rename the folders if they are no parts"
                )
    elif named:
        raise DataError(
            f"{root} has {' and '.join(named.values())} but no train; call the folder of training "
            f"images {root / 'train'}, or rename the folders if they are no parts of the data"
        )
    images = torch.from_numpy(_decode(files, image_size))
    below = [path.relative_to(root) for path in files]
    if not named:
        return {"train": images}, {"train": below}
    start = {
        part_name: tops.index(top) for part_name, top in named.items()
    }  # sorted: a part is in one piece
    rows = {
        part_name: slice(start[part_name], start[part_name] + tops.count(named[part_name]))
        for part_name in named
    }
    return {part_name: images[span] for part_name, span in rows.items()}, {
        part_name: below[span] for part_name, span in rows.items()
    }


def _class_of(path: Path, part_name: str, root: Path) -> str:
    """The folder of a class, in that of a part if there is one, that an image below root lies in
    (DataError: in none, or deeper)."""
    top = int(PARTS.get(path.parts[0]) == part_name)
    place, names = root.joinpath(*path.parts[:top]), path.parts[top:-1]
    if len(names) == 1:
        return names[0]
    if not names:
        raise DataError(
            f"{root / path} lies in no folder of a class; move it into one, {place / 'NAME'}, or "
            "leave out --condition labels"
        )
    raise DataError(
        f"{root / path} lies {len(names)} folders deep in {place}, expected one folder for each "
        f"class, with its images; move them into {place / names[0]}, give the folder that has the "
        "classes as --data, or leave out --condition labels"
    )


def _numbered(values: Iterable[Path]) -> Tensor:
    """The number of each value among those that differ, in the order of their first ones, (n,)."""
    values = list(values)
    numbers = {value: k for k, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([numbers[value] for value in values])


def image_files(root: Path) -> list[Path]:
    """Image files at any depth, in the order of their paths below ``root``."""
    paths, seen = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()  # a link to one of its parents
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths += [
            Path(folder) / name
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _decode(files: Sequence[Path], image_size: int | None) -> Pixels:
    """Pixels (n, C, H, W) of files, with one channel if all are grey."""
    result: Pixels = np.empty((0, 1, 1, 1), np.uint8)
    decoded = _in_threads(lambda path: read_pixels(path, image_size), files, "decoding")
    for i, (path, image) in enumerate(zip(files, decoded, strict=True)):
        if i == 0:
            result = np.empty((len(files), *image.shape), np.uint8)
        if image.shape[1:] != result.shape[2:]:
            raise _other_size(str(files[0]), result.shape[2:], str(path), image.shape[1:])
        if len(image) > result.shape[1]:
            result = np.repeat(result, 3, axis=1)
        result[i] = image
    return result


def read_pixels(path: Path, image_size: int | None = None) -> Pixels:
    """Pixels (1, H, W) of a grey file, (3, H, W) of any other; see :class:`Images`.

    Raises:
        DataError: no image that can be read, or one that has not 8 bits per channel.
    """
    try:
        with Image.open(regular(path), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{path} has {image.width:,}×{image.height:,} pixels, expected at most "
                    f"{MOST_PIXELS:,} in all; scale it down"
                )
            grey = image.mode in GREY
            if not grey and image.mode not in COLOUR:
                raise DataError(
                    f"{path} has pixels of mode {image.mode!r}, expected 8 bits per channel; save "
                    "it as 8-bit grey or RGB"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode in TRANSPARENT or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright)
            values = np.asarray(_scaled(upright.convert("L" if grey else "RGB"), image_size))
    except DataError:
        raise
    except Exception as error:  # a damaged image can raise anything
        raise DataError(f"{path} is no image that can be read: {error}") from error
    return values[None] if grey else values.transpose(2, 0, 1)


# -- arrays ----------------------------------------------------------------------------------------


def _from_npz(path: Path, image_size: int | None) -> dict[str, Tensor]:
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            names = list(file.files)
            named = _named_parts(names, path)
            if "train" not in named:
                if len(names) != 1:
                    raise DataError(
                        f"{path} has arrays {', '.join(names) or '(none)'}; expected train and, if "
                        "there are, validation and test, or a single one. Save them under these "
                        "names: np.savez('own.npz', train=…, test=…)"
                    )
                named = {"train": names[0]}
            unknown = [name for name in names if name not in named.values()]
            if images := [name for name in unknown if file[name].ndim > 2]:  # labels may be there
                raise DataError(
                    f"{path} has arrays {', '.join(names)}, and {', '.join(images)} may be images "
                    "of no known part; expected train, validation (or val, valid) and test"
                )
            arrays = {
                part_name: _planes(np.asarray(file[name]), path, name)
                for part_name, name in named.items()
            }
    except (
        ValueError,
        OSError,
        EOFError,
        MemoryError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"{path} cannot be read as arrays of numbers: {error}") from error
    return _sized(arrays, path, image_size)


def _sized(arrays: dict[str, Pixels], path: Path, image_size: int | None) -> dict[str, Tensor]:
    """The parts as (n, C, H, W) of one size."""
    channels = {name: array.shape[1] for name, array in arrays.items()}
    if len(set(channels.values())) > 1:
        raise DataError(f"{path} has arrays of different channels: {channels}")
    arrays = {part_name: _resize(array, image_size) for part_name, array in arrays.items()}
    train = arrays["train"].shape[2:]
    for part_name, array in arrays.items():
        if array.shape[2:] != train:
            raise _other_size(f"train in {path}", train, f"{part_name} in {path}", array.shape[2:])
    return {part_name: torch.from_numpy(array) for part_name, array in arrays.items()}


def _planes(array: NDArray[Any], path: Path, name: str) -> Pixels:
    """A contiguous array (n, C, H, W) from any accepted layout."""
    expected = "expected uint8 (n, H, W), (n, H, W, C) or (n, C, H, W) with C = 1 or 3"
    holds = f"{path}: found {name} {array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        raise DataError(f"{holds}, {expected}; values are 0 … 255")
    if array.ndim == 3:
        return array[:, None]
    first, last = (array.ndim == 4 and array.shape[axis] in (1, 3) for axis in (1, -1))
    if first == last:
        why = "; it could be both of the last two" if first else ""
        raise DataError(f"{holds}, {expected}{why}")
    return array if first else np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def _resize(images: Pixels, size: int | None) -> Pixels:
    if size is None or images.shape[2:] == (size, size):
        return images

    def scaled(image: Pixels) -> Pixels:
        return np.stack([np.asarray(_scaled(Image.fromarray(plane), size)) for plane in image])

    result = np.empty((*images.shape[:2], size, size), np.uint8)
    for target, values in zip(result, _in_threads(scaled, list(images), "scaling"), strict=True):
        target[:] = values
    return result
