"""The benchmark for a GPU, in the small and without one: that it runs, and what it writes."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from unittest import mock

import pytest
from lightning_fabric import Fabric

from docs._ext.measured import parse
from pyro_mdm.samplers import EulerMaruyama
from tests.benchmarks import accelerator
from tests.benchmarks.accelerator import COLUMNS, FILE, NOT_MEASURED, RECIPES, Job, little
from tests.elsewhere import CUDA, Elsewhere


def rows(path: Path) -> dict[str, dict[str, str]]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {row["recipe"]: row for row in csv.DictReader(lines)}


def test_the_file_of_the_page_is_of_this_benchmark() -> None:
    assert parse(FILE).columns == [*COLUMNS]
    assert set(RECIPES) <= set(rows(FILE))


def test_a_row_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    accelerator.write(path, [])
    assert set(rows(path)) == set(RECIPES)
    assert all(row["milliseconds"] == NOT_MEASURED for row in rows(path).values())
    for milliseconds in ("2.0", "3.0"):
        accelerator.write(path, [{"recipe": "cifar10", "milliseconds": milliseconds}])
    found = rows(path)
    assert found["cifar10"]["milliseconds"] == "3.0" and found["cifar10"]["peak_memory"] == ""
    assert found["mnist_paper"]["milliseconds"] == NOT_MEASURED and len(found) == len(RECIPES)
    assert parse(path).names == ["recipe"]


@pytest.mark.slow
@pytest.mark.without_noise  # it compiles
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_it_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.csv"
    words = [f"--out={path}", "--machine=machine X", "--accelerator=cpu", "--small"]
    words += ["--batch=4", "--steps=2", "--repeat=2"]
    monkeypatch.setattr(sys, "argv", ["accelerator", *words])
    accelerator.main()
    row = rows(path)["small"]
    assert row.pop("peak_memory") == ""
    assert NOT_MEASURED not in row.values() and all(row.values())
    assert row["machine"] == "machine X" and row["device"].startswith("CPU")
    assert all(float(row[name]) > 0 for name in COLUMNS if name.endswith(("_ratio", "seconds")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:CUDA is not available.*Disabling autocast:UserWarning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_and_samples_elsewhere(recipe: str) -> None:
    """Steps of ``inference.train``, with a learned diffusion that was looked at on the CPU."""
    fabric = Fabric(accelerator="cpu", devices=1)
    with little(), Elsewhere():
        with (
            mock.patch.object(Fabric, "device", CUDA),
            mock.patch.object(Fabric, "to_device", lambda fabric, module: module),
        ):
            job = Job(recipe, 4, fabric)
            job.step()
            job.network_alone()
            job.sampled(EulerMaruyama(3))
        assert all(p.isfinite().all() for p in job.model.parameters())
        assert all(p.is_cuda for p in job.model.score_function.parameters())
        assert not any(p.is_cuda for p in job.model.diffusion.parameters())
