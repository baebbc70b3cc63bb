"""Files of data sets, checked against what was published and read without running code.

Published files have checksums (:class:`Published`). Pickles, the format of some data sets, are read
by :func:`unpickle_arrays`, which calls nothing that they name. Images that are slow to decode are
decoded once and memory-mapped from then on (:func:`cached`).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import shlex
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mdm.support.checks import DataError as DataError
from pyro_mdm.support.files import read_json, regular, replacing, temporary

CHUNK = 2**22  # bytes read at a time
LARGE = 2**28  # bytes from which reading a file shows its progress

GZIP, IDX_BYTES = b"\x1f\x8b", b"\0\0\x08"
"""The first bytes of gzipped files, and of IDX files of unsigned bytes."""

Images = NDArray[np.uint8]


# -- published files -------------------------------------------------------------------------------


class Published(NamedTuple):
    """A file as its publisher distributed it."""

    name: str
    digest: str
    algorithm: str = "MD5"
    size: int | None = None  # bytes, where known

    def check(self, source: Path | bytes, place: str, fetch: str) -> None:
        """Raise DataError unless a file, or its bytes, is the published one.

        Args:
            source: the file, or its bytes.
            place: the name of the file in messages.
            fetch: advice on how to get it, in words.
        """
        if isinstance(source, Path) and not source.is_file():
            raise DataError(f"{place} is missing; expected {self}. To fetch it: {fetch}")
        digest = checksum(source, self.algorithm)
        if digest != self.digest:
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            raise DataError(
                f"{place} is damaged or another file: found {size:,} bytes with {self.algorithm} "
                f"{digest}, expected {self}. Delete it and fetch it again: {fetch}"
            )

    def __str__(self) -> str:
        size = "" if self.size is None else f"{self.size:,} bytes with "
        return f"{size}{self.algorithm} {self.digest}"

    def description(self) -> dict[str, str]:
        """The name and checksum, for the record of a cache's sources."""
        return {"file": self.name, self.algorithm: self.digest}


def checksum(source: Path | bytes, algorithm: str) -> str:
    """The hexadecimal digest of a file or of bytes.

    Args:
        source: the file or the bytes.
        algorithm: the name of the algorithm, such as "MD5" or "SHA-256".
    """
    name = algorithm.lower().replace("-", "")
    digest = hashlib.new(name, usedforsecurity=False)
    if isinstance(source, bytes):
        digest.update(source)
        return digest.hexdigest()
    size = source.stat().st_size
    with open(source, "rb") as file, _progress(size, f"{algorithm} of {source.name}", "B") as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _progress(total: int, what: str, unit: str) -> tqdm[Any]:
    quick = unit == "B" and total < LARGE
    return tqdm(
        total=total, desc=what, unit=unit, unit_scale=True, leave=False, disable=quick or None
    )


def python_command(program: str) -> str:
    """The shell command that runs ``program`` by python -c."""
    plain = not set('"$`\\!') & set(program)
    return f'python -c "{program}"' if plain else f"python -c {shlex.quote(program)}"


# -- IDX, the format of MNIST ----------------------------------------------------------------------


def idx_images(content: bytes, place: str, shape: tuple[int, int]) -> Tensor:
    """Images (n, 1, H, W) of an IDX file, uint8 (DataError: it has none, or of another size)."""
    images = idx_array(content, place)
    if images.ndim != 3 or images.shape[1:] != shape:
        raise DataError(f"{place}: found images of {images.shape[1:]} pixels, expected {shape}")
    return torch.from_numpy(images).view(-1, 1, *shape)


def idx_labels(content: bytes, place: str) -> Tensor:
    """Labels (n,) of an IDX file, uint8 (DataError: it has none)."""
    return torch.from_numpy(idx_array(content, place, "labels"))


IDX_SIZES = {"images": (3, 4), "labels": (1,)}
"""The numbers of dimensions that an array may have, by content."""


def idx_array(content: bytes, place: str, what: Literal["images", "labels"] = "images") -> Images:
    """The array of an IDX file, gzipped or not: images or labels (DataError: it is damaged)."""
    if content[:2] == GZIP:
        content = _unzipped(content, place)
    sizes = content[3] if content[:3] == IDX_BYTES and len(content) >= 8 else 0
    whole = sizes in IDX_SIZES[what] and len(content) >= 4 + 4 * sizes
    shape = struct.unpack(f">{sizes}I", content[4 : 4 + 4 * sizes]) if whole else ()
    if not shape or len(content) != 4 + 4 * sizes + math.prod(shape):
        number = "three or four sizes" if what == "images" else "one size"
        raise DataError(f"{place}: expected an IDX file of {what}, unsigned bytes of {number}")
    return np.frombuffer(content[4 + 4 * sizes :], dtype=np.uint8).reshape(shape).copy()


def _unzipped(content: bytes, place: str) -> bytes:
    """The content of a gzipped IDX file, and a byte more than its header claims at most."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            head = file.read(4)
            head += file.read(4 * head[3] if len(head) == 4 else 0)
            sizes = struct.unpack(f">{(len(head) - 4) // 4}I", head[4:]) if len(head) > 4 else ()
            pieces, left = [head], math.prod(sizes) + 1
            while left > 0 and (piece := file.read(min(left, CHUNK))):
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{place} is damaged: {error}") from error


# -- arrays of NumPy -------------------------------------------------------------------------------


def check_npy(file: IO[bytes], size: int) -> None:
    """Raise ValueError unless an .npy file has as many bytes as its header claims.

    Memory for what it claims is taken before anything is read. The file is read from its start.

    Args:
        file: the file.
        size: the number of its bytes.
    """
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"its header has version {version}, expected (1, 0) or (2, 0)")
    shape, _, kind = read(file)
    claimed, there = math.prod(shape) * kind.itemsize, size - file.tell()
    if claimed != there and not kind.hasobject:  # which is refused when it is read
        raise ValueError(
            f"its header claims {shape} of {kind}, {claimed:,} bytes, and {there:,} are there"
        )


def check_npz(path: Path) -> None:
    """Raise ValueError unless every array of an .npz file has as many bytes as it claims."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            try:
                with archive.open(member) as file:
                    check_npy(file, member.file_size)
            except RuntimeError as error:  # it has a password, or an unknown compression
                raise ValueError(f"{member.filename}: {error}") from error


# -- pickles ---------------------------------------------------------------------------------------

# torchvision fetches CIFAR-10 as pickles, and pickle and NumPy call whatever a file names.


class _Dtype:
    """A stand-in for numpy.dtype, with its name."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and fields, which single bytes do not have."""


class _Array:
    """A stand-in for numpy.ndarray, with its pickled state."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> Images:
        _, shape, dtype, is_fortran, data = self.state
        if dtype.name not in ("u1", "|u1"):
            raise ValueError(f"an array of dtype {dtype.name!r}, expected bytes ('u1')")
        raw = np.frombuffer(data.encode("latin1"), dtype=np.uint8)  # Python 2 wrote str
        return raw.reshape(tuple(shape), order="F" if is_fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    """An unpickler of plain values and arrays of bytes that looks up no name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(
                f"it wants to call {module}.{name}, which an array of bytes does not need"
            )
        return _STAND_INS[module, name]


def unpickle_arrays(path: Path) -> dict[str, Images]:
    """The arrays of bytes in a pickled dict, by key; other values are left out.

    Lists of small whole numbers are arrays too. No function or class that the pickle names is
    called or looked up: the names that an array of bytes needs have stand-ins that keep shape and
    data, and any other name is an error.

    Raises:
        DataError: the pickle has other names, is damaged, or is no dict.
    """
    try:
        with open(regular(path), "rb") as file:
            values = _Unpickler(file, encoding="latin1").load()
        arrays = {}
        for key, value in values.items():
            name = key.decode("latin1") if isinstance(key, bytes) else key
            if isinstance(value, _Array):
                arrays[name] = value.array()
            elif isinstance(value, list) and all(type(v) is int and 0 <= v < 256 for v in value):
                arrays[name] = np.array(value, dtype=np.uint8)
        return arrays
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"{path} is not read: {error} ({type(error).__name__}). Expected a pickled dict of "
            "plain values and arrays of bytes; do not load it by other means, and fetch it again "
            "from where it was published"
        ) from error


# -- arrays on disk --------------------------------------------------------------------------------

# Memory of joblib and the like pickle whole results in memory; these are written as they are
# decoded, mapped, made by one of several processes, and made again where they were changed or cut
# short.


def cached(
    path: Path,
    about: Mapping[str, Any],
    shape: tuple[int, ...],
    make: Callable[[list[dict[str, Any]]], Iterable[Images]],
) -> Tensor:
    """Images uint8 (n, C, H, W), memory-mapped from ``path``, which the first call makes.

    One of several processes makes it. A JSON file beside it holds its sources and SHA-256. A file
    that is cut short, was changed, or has another description is made again. Writes to the tensor
    stay in memory.

    Args:
        path: the file, ending in ``.npy``.
        about: the description of the images, as JSON.
        shape: the shape of all images, (n, C, H, W).
        make: the function that returns the images in batches, (m, C, H, W), and appends their
            sources to the list that it is called with.

    Raises:
        DataError: the folder cannot be written to, or ``make`` returns another number of images.
    """
    wanted = {**about, "shape": list(shape)}
    images = _read(path, wanted)
    if isinstance(images, Tensor):
        return images
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            images = _read(path, wanted)  # another process may have made it meanwhile
            if isinstance(images, str):
                if path.exists():
                    tqdm.write(f"{path} {images}; it is made again", file=sys.stderr)
                _write(path, wanted, shape, make)
                images = _read(path, wanted)
    except OSError as error:
        raise DataError(
            f"{path}, where decoded images are kept, cannot be made: {error}. It needs "
            f"{math.prod(shape):,} free bytes in a folder that may be written to"
        ) from error
    if isinstance(images, str):
        raise DataError(f"{path} {images}, although it was just written; is the disk sound?")
    return images


def _read(path: Path, wanted: Mapping[str, Any]) -> Tensor | str:
    """The images of ``path``, or the reason why they cannot be used."""
    try:
        record = read_json(path.with_suffix(".json"))
        if record["about"] != wanted:
            return f"is about {record['about']}, expected {dict(wanted)}"
        status = path.stat()
        if status.st_size != record["bytes"]:
            return f"has {status.st_size:,} bytes, expected {record['bytes']:,}"
        if status.st_mtime_ns != record["mtime_ns"]:  # a copy, or someone changed it
            if checksum(path, "SHA-256") != record["sha256"]:
                return f"differs from what was written (SHA-256 {record['sha256']})"
            with contextlib.suppress(OSError):
                os.utime(path, ns=(status.st_atime_ns, record["mtime_ns"]))
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be used ({error})"
    return torch.from_numpy(array)


def _write(
    path: Path,
    wanted: Mapping[str, Any],
    shape: tuple[int, ...],
    make: Callable[[list[dict[str, Any]]], Iterable[Images]],
) -> None:
    sources: list[dict[str, Any]] = []
    with replacing() as write:
        digest = write(path, _npy(path.stem, shape, make(sources)))
        status = temporary(path).stat()
        body = {
            "about": dict(wanted),
            "made_from": sources,
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": digest,
        }
        write(path.with_suffix(".json"), [json.dumps(body, indent=1).encode()])


def _npy(name: str, shape: tuple[int, ...], batches: Iterable[Images]) -> Iterator[Any]:
    """The content of an .npy file of uint8 in pieces, with progress."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    yield header.getvalue()
    count = 0
    with _progress(shape[0], name, "image") as bar:
        for batch in batches:
            if batch.dtype != np.uint8 or batch.shape[1:] != shape[1:]:
                raise DataError(
                    f"{name}: found images {batch.dtype} {batch.shape[1:]}, expected "
                    f"uint8 {shape[1:]}"
                )
            yield np.ascontiguousarray(batch).data
            count += len(batch)
            bar.update(len(batch))
    if count != shape[0]:
        raise DataError(f"{name}: found {count:,} images, expected {shape[0]:,}")
