"""Arrays of numbers in groups of Zarr, which may be somebody else's.

Zarr decodes an array by whatever codecs its metadata name, and some of these, as pickle, run code.
So metadata are read here first, as JSON, and Zarr is called for arrays of plain numbers with codecs
of ``CODECS`` alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_mdm.support.files import read_json, regular
from pyro_mdm.support.places import installing

__all__ = ["arrays_in", "read_array"]

CODECS = {"bytes", "transpose", "sharding_indexed", "crc32c", "crc32", "adler32", "fletcher32"}
CODECS |= {"gzip", "zlib", "bz2", "lzma", "lz4", "zstd", "blosc", "shuffle"}
"""Codecs that take bytes to bytes, by their names in both formats."""
NUMBERS = r"bool|(?:u?int(?:8|16|32|64)|float(?:16|32|64))"
"""Types of numbers of format 3."""
OLD_NUMBERS = r"[<>|](?:b1|[iu][1248]|f[248])"
"""Types of numbers of format 2."""
RATIO = 10_000
"""The most bytes that one byte of a file stands for: draws of simulators are no constants."""


def arrays_in(group: Path) -> list[str]:
    """The names of the arrays in a group of Zarr, without what is deeper.

    Args:
        group: the folder of the group.
    """
    places = (file.parent for kind in ("zarr.json", ".zarray") for file in group.glob(f"*/{kind}"))
    return sorted({place.name for place in places})


def read_array(folder: Path) -> np.ndarray:
    """The numbers of an array.

    Args:
        folder: the folder of the array.

    Raises:
        ImportError: Zarr is not installed.
        ValueError: an array of something else than numbers, with a codec that is not one of
            ``CODECS``, with far more numbers than its files have bytes for, or damaged.
    """
    try:
        version = _check(folder)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(
            f"{folder} is not read: {error}. Expected an array of numbers of Zarr, whose codecs "
            f"are among {', '.join(sorted(CODECS))}; write it so, or read it yourself"
        ) from error
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            f"{folder} is read by zarr, which is not installed: {installing('simulators')}"
        ) from error
    options = {"zarr_format": version} if zarr.__version__[0] != "2" else {}
    try:
        values = np.asarray(zarr.open_array(str(folder), mode="r", **options)[...])
    except Exception as error:  # codecs of any kind meet bytes of any kind
        raise ValueError(f"{folder} is damaged: {error}; write it again") from error
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _check(folder: Path) -> int:
    """Raise unless an array has numbers and known codecs; the format of its metadata."""
    new, old = folder / "zarr.json", folder / ".zarray"
    if new.exists() == old.exists():
        raise ValueError("it has not one file of metadata, zarr.json or .zarray")
    about = read_json(new if new.exists() else old)
    if new.exists():
        kind, codecs, pattern = about["data_type"], about["codecs"], NUMBERS
        if about["node_type"] != "array" or about.get("storage_transformers"):
            raise ValueError(f"it is a {about['node_type']!r}, or transformed in its storage")
    else:
        kind, codecs, pattern = about["dtype"], about["filters"] or [], OLD_NUMBERS
        codecs = [*codecs, *([about["compressor"]] if about["compressor"] is not None else [])]
    if not isinstance(kind, str) or re.fullmatch(pattern, kind) is None:
        raise ValueError(f"its type is {kind!r}, no number")
    for codec in codecs:
        _check_codec(codec)
    there = sum(regular(file).stat().st_size for file in folder.rglob("*") if not file.is_dir())
    numbers = math.prod(int(n) for n in about["shape"])
    if 8 * numbers > RATIO * there:
        raise ValueError(f"its {numbers:,} numbers are in {there:,} bytes")
    return 3 if new.exists() else 2


def _check_codec(codec: Mapping[str, Any]) -> None:
    """Raise unless a codec, and those within it, are among ``CODECS``."""
    settings = codec.get("configuration", {})
    names = [about[key] for about in (codec, settings) for key in ("id", "name") if key in about]
    for name in names or [None]:
        if not isinstance(name, str) or name.removeprefix("numcodecs.") not in CODECS:
            raise ValueError(f"its codec is {name!r}")
    for inner in (*settings.get("codecs", ()), *settings.get("index_codecs", ())):
        _check_codec(inner)
