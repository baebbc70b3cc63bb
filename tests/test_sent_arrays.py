"""Arrays of Zarr that somebody sent: numbers by harmless codecs are read, and nothing is run."""

from __future__ import annotations

import base64
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pyro_mdm.posteriors.stored import read_draws
from tests.mistakes import Bomb

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
PICKLE = {"id": "pickle", "protocol": 5}


def old(**changes: Any) -> dict[str, Any]:
    """The metadata of an array in format 2."""
    return {
        **{"zarr_format": 2, "shape": [3, 2], "chunks": [3, 2], "dtype": "<f8", "order": "C"},
        **{"fill_value": 0, "filters": None, "compressor": None},
    } | changes


def new(**changes: Any) -> dict[str, Any]:
    """The metadata of an array in format 3."""
    return {
        **{"zarr_format": 3, "node_type": "array", "shape": [3, 2], "data_type": "float64"},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, 2]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        **{"fill_value": 0, "codecs": [BYTES], "attributes": {}},
    } | changes


def sharded(*codecs: dict[str, Any], index: Any = BYTES) -> dict[str, Any]:
    settings = {"chunk_shape": [3, 2], "codecs": [*codecs], "index_codecs": [index]}
    return {"name": "sharding_indexed", "configuration": settings}


def write(group: Path, *metadata: dict[str, Any], chunk: bytes = b"") -> None:
    """A group with an array x of these metadata."""
    for about in metadata:
        format_2 = about.get("zarr_format", 2) == 2
        head = {"zarr_format": 2} if format_2 else {"zarr_format": 3, "node_type": "group"}
        place = group / "x" / ("0.0" if format_2 else "c/0/0")
        place.parent.mkdir(parents=True, exist_ok=True)
        (group / (".zgroup" if format_2 else "zarr.json")).write_text(json.dumps(head))
        name = ".zarray" if format_2 else "zarr.json"
        (group / "x" / name).write_text(json.dumps(about))
        place.write_bytes(chunk)


BOMB = pickle.dumps([Bomb(Path("exploded"))])  # makes this folder in the current one
UNSAFE: dict[str, list[dict[str, Any]]] = {
    "objects": [old(dtype="|O", filters=[PICKLE])],
    "objects whose fill value is a pickle": [
        old(dtype="|O", filters=[PICKLE], fill_value=base64.b64encode(BOMB).decode())
    ],
    "numbers by pickle": [old(filters=[PICKLE])],
    "numbers compressed by pickle": [old(compressor=PICKLE)],
    "a codec of two names": [old(compressor=PICKLE | {"name": "zstd"})],
    "a codec without a name": [old(compressor={"level": 3})],
    "a codec whose name is a list": [old(compressor={"id": ["zstd"]})],
    "texts of JSON": [old(filters=[{"id": "json2"}])],
    "a change of type": [old(filters=[{"id": "astype", "encode_dtype": "|O"}])],
    "text": [old(dtype="<U3")],
    "bytes": [old(dtype="|S3")],
    "times": [old(dtype="<M8[ns]")],
    "records": [old(dtype=[["a", "<f8"], ["b", "|O"]])],
    "complex numbers": [old(dtype="<c16")],
    "new: pickle": [new(codecs=[{"name": "numcodecs.pickle"}])],
    "new: pickle beside bytes": [new(codecs=[BYTES, {"name": "pickle"}])],
    "new: pickle in settings": [
        new(codecs=[BYTES, {"name": "numcodecs.zstd", "configuration": PICKLE}])
    ],
    "new: pickle in a shard": [new(codecs=[sharded(BYTES, {"name": "pickle"})])],
    "new: pickle in a shard's shard": [new(codecs=[sharded(sharded({"name": "pickle"}))])],
    "new: pickle of the index": [new(codecs=[sharded(BYTES, index={"name": "pickle"})])],
    "new: a bare name": [new(codecs=["bytes"])],
    "new: texts": [new(data_type="string", codecs=[{"name": "vlen-utf8"}])],
    "new: an object of a type": [new(data_type={"name": "numpy.datetime64"})],
    "new: a module": [new(codecs=[{"name": "os.path:join"}])],
    "new: another storage": [new(storage_transformers=[{"name": "evil"}])],
    "new: no array": [new(node_type="group")],
    "of both formats": [old(), new(codecs=[{"name": "pickle"}])],
    "without codecs": [{k: v for k, v in new().items() if k != "codecs"}],
    "far more than there is": [new(shape=[10**9, 10**9])],
    "a size that is no number": [old(shape=["many"])],
}


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zarr is never called."""
    monkeypatch.setitem(sys.modules, "zarr", SimpleNamespace())


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("metadata", UNSAFE.values(), ids=UNSAFE)
def test_zarr_is_asked_for_no_array_that_may_run_code(
    metadata: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.zarr", *metadata, chunk=BOMB)
    with pytest.raises(ValueError, match=r"a\.zarr/x is not read: .* Expected an array of num"):
        read_draws(tmp_path / "a.zarr", ["x"])
    assert not Path("exploded").exists()


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("content", ["{", "[]", "3", "[" * 10**5, '{"shape": 1' + "0" * 400 + "}"])
@pytest.mark.parametrize("name", [".zarray", "zarr.json"])
def test_metadata_of_another_form_are_refused(name: str, content: str, tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", old())
    (tmp_path / "a.zarr" / "x" / ".zarray").unlink()
    (tmp_path / "a.zarr" / "x" / name).write_text(content)
    with pytest.raises(ValueError, match=r"a\.zarr/x is not read"):
        read_draws(tmp_path / "a.zarr", ["x"])


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "|u1", "<i8", "|b1"])
@pytest.mark.parametrize("compressor", [None, "zlib", "zstd", "blosc"])
def test_numbers_by_harmless_codecs_are_read(
    dtype: str, compressor: str | None, tmp_path: Path
) -> None:
    pytest.importorskip("zarr")
    numcodecs = pytest.importorskip("numcodecs")
    values = np.arange(6).reshape(3, 2).astype(dtype)
    codec = None if compressor is None else numcodecs.get_codec({"id": compressor})
    chunk = values.tobytes() if codec is None else bytes(codec.encode(values.tobytes()))
    about = old(dtype=dtype, compressor=codec and codec.get_config())
    write(tmp_path / "a.zarr", about, chunk=chunk)
    draws = read_draws(tmp_path / "a.zarr", ["x"])
    assert torch.equal(draws["x"].double(), torch.as_tensor(values.astype(float)))


def test_what_zarr_writes_by_itself_is_read(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    values = np.random.default_rng(0).normal(size=(50, 3))
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    array = group.create_array if hasattr(group, "create_array") else group.create_dataset
    array("x", shape=values.shape, dtype="f8", chunks=(20, 3))[...] = values
    assert torch.equal(read_draws(tmp_path / "a.zarr", ["x"])["x"], torch.as_tensor(values))
