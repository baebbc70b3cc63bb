"""Files that are not what they say: every reader × what a file of somebody else may claim.

More than it has, which is not believed before memory is taken; another format under its name, of
which no other program is started; and text that is not UTF-8. All end in a sentence with the file.
"""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inference.drawing.observations import chosen_measurement, read
from inference.drawing.pieces import read_pieces
from inference.folders.config import read_settings
from models import DataError
from models.files import idx_array
from models.images import FORMATS, Images, read_pixels
from models.tabular import read_table
from pyro_mdm import VPSDE, Denoiser, DiffusionModel, pretrained
from pyro_mdm.networks import MLP
from pyro_mdm.pretrained import TENSORS, PretrainedError
from tests.saved_files import rewrite

HUGE = 10**7
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n"
)
LATIN = "na\xefve,b\n1,2\n".encode("latin-1") * 30


def npy(shape: tuple[int, ...], numbers: int, kind: str = "|u1") -> bytes:
    """An .npy file that claims a shape, and has so many bytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + bytes(numbers)


def npz(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.npy", content)
    return file.getvalue()


def picture(side: int, mode: str = "1", form: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, form)
    return file.getvalue()


def png_that_claims(side: int) -> bytes:
    """A PNG of eight pixels a side whose header says another, with a checksum that is right."""
    import zlib

    content = bytearray(picture(8))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def idx(*sizes: int, numbers: int) -> bytes:
    head = bytes([0, 0, 8, len(sizes)])
    return head + struct.pack(f">{len(sizes)}I", *sizes) + bytes(numbers)


def images(path: Path) -> object:
    return Images(data=path)


def measured(path: Path) -> object:
    return read(path, chosen_measurement("denoise", None, None), (1, 8, 8))


def pieces(path: Path) -> object:
    return list(read_pieces(str(path), 16))


READ: dict[str, tuple[Callable[[Path], object], str, bytes, str]] = {
    # more than there is
    "npz": (images, "a.npz", npz(npy((HUGE, 28, 28), 30_000)), "claims .* bytes, and 30,000 are"),
    "npz of nothing": (images, "a.npz", npz(npy((2**40, 2**20), 0)), "and 0 are there"),
    "npz with a tail": (images, "a.npz", npz(npy((2, 3), 9)), "6 bytes, and 9 are there"),
    "npy": (measured, "a.npy", npy((HUGE, 10**5), 64, "<f8"), "claims .* and 64 are there"),
    "idx": (images, "a-idx3-ubyte", idx(HUGE, 28, 28, numbers=40), "expected an IDX file"),
    "packed idx": (
        images,
        "a-idx3-ubyte.gz",
        gzip.compress(idx(2**32 - 1, 2**32 - 1, 2**32 - 1, numbers=40)),
        "expected an IDX file",
    ),
    "packed idx with a tail": (
        images,
        "a-idx3-ubyte.gz",
        gzip.compress(idx(2, 2, 2, numbers=10**6)),
        "expected an IDX file",
    ),
    "signs of idx": (images, "a-idx3-ubyte", idx(2**32 - 1, 2**32 - 2, 8, numbers=16), "IDX file"),
    "picture": (read_pixels, "a.png", png_that_claims(8193), "8,193×8,193 pixels, expected at"),
    "picture of one bit": (read_pixels, "a.png", picture(8193), "expected at most 67,108,864"),
    # another format
    "EPS as a picture": (read_pixels, "a.png", EPS, "a.png is no image that can be read"),
    "EPS as a measurement": (measured, "a.jpg", EPS, "a.jpg is no image that can be read"),
    "text as a picture": (read_pixels, "a.jpg", LATIN, "is no image that can be read"),
    "ICO as a picture": (read_pixels, "a.bmp", picture(16, "RGB", "ico"), "is no image that"),
    "picture as npz": (images, "a.npz", picture(8), "cannot be read as arrays"),
    "text as npz": (images, "a.npz", npz(LATIN), "cannot be read as arrays"),
    "picture as npy": (measured, "a.npy", picture(8), "cannot be read as an array"),
    "picture as CSV": (read_table, "a.csv", picture(8), "a.csv"),
    "picture as pieces": (pieces, "a.csv", picture(8), "a.csv"),
    "text as parquet": (read_table, "a.parquet", LATIN, "cannot be read as a table"),
    "text as pieces of parquet": (pieces, "a.parquet", LATIN, "cannot be read as a table"),
    # not UTF-8
    "CSV": (read_table, "a.csv", LATIN, "cannot be read as a table"),
    "pieces of CSV": (pieces, "a.csv", LATIN, "cannot be read as a table"),
    "table of a run": (read_table, "a.json", LATIN, "cannot be read as a table"),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", READ)
def test_a_file_that_is_not_what_it_says_is_named(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ghostscript is started by PIL for an EPS, whatever its name."""
    reader, name, content, message = READ[case]
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("it runs a program"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it runs a program"))
    with pytest.raises(DataError, match=message) as caught:
        reader(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.quick
@pytest.mark.parametrize("form", FORMATS)
def test_pictures_of_all_formats_are_read(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(8, "L", form))  # whatever the suffix
    assert read_pixels(tmp_path / "a.png").shape[1:] == (8, 8)


@pytest.mark.quick
def test_whole_arrays_are_read(tmp_path: Path) -> None:
    whole = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    content = idx(2, 2, 2, numbers=0) + whole.tobytes()
    for packed in (content, gzip.compress(content)):
        assert (idx_array(packed, "a") == whole).all()
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", train=np.zeros((30, 8, 8), np.uint8))
        assert len(Images(data=tmp_path / "a.npz").train) == 27


def test_settings_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(LATIN)
    with pytest.raises(RuntimeError, match=r"config.yaml cannot be read as YAML"):
        read_settings(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    denoiser = Denoiser(MLP(2, hidden=8, depth=1), torch.zeros(2), torch.ones(2))
    DiffusionModel(VPSDE(max_log_snr=9.0), denoiser).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [("features", HUGE), ("hidden", HUGE), ("hidden", 2**40), ("out_features", HUGE)],
)
def test_a_configuration_of_millions_of_features_takes_no_memory(
    name: str, value: int, saved: Path, tmp_path: Path
) -> None:
    """It was built, of random numbers, before its shapes were compared with the file's."""

    def changed(node: Any) -> Any:
        if isinstance(node, dict):
            own = {key: changed(inner) for key, inner in node.items()}
            if own.get("class") == "networks.MLP":
                own["arguments"] = {**own["arguments"], name: value}
            return own
        return [changed(inner) for inner in node] if isinstance(node, list) else node

    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rewrite(tmp_path / TENSORS, lambda content, _: content.update(changed(content)))
    with pytest.raises(PretrainedError, match="far larger than what"):
        DiffusionModel.from_pretrained(tmp_path)
    DiffusionModel.from_pretrained(saved)


def test_so_many_layers_as_take_too_much_together_are_refused() -> None:
    with (
        pytest.raises(PretrainedError, match="at most 1,000 entries"),
        pretrained._AtMost(1000, 100),
    ):
        for _ in range(11):
            torch.empty(10, 10)
    with pytest.raises(PretrainedError, match="at most 99 entries"), pretrained._AtMost(99, 100):
        torch.eye(10)
    generator = torch.Generator().manual_seed(0)
    with pretrained._AtMost(1000, 100) as most:
        makers = (
            *(
                torch.zeros(2, 3),
                torch.linspace(0, 1, 6),
                torch.arange(6),
                torch.zeros(6).new_ones(6),
            ),
            *(torch.randn(6, generator=generator), torch.randperm(6, generator=generator)),
            *(torch.tril_indices(2, 2), torch.zeros_like(torch.empty(6)), torch.full((6,), 1.0)),
        )
    assert most.left == 1000 - sum(t.numel() for t in makers) - 12  # two others were made
