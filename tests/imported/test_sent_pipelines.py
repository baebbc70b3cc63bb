"""A folder of a pipeline that somebody sent: it opens no class that could run its code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from pyro_mdm.imported import from_diffusers, from_pipeline
from pyro_mdm.imported.pipelines import NETWORK_CLASSES, SCHEDULER_CLASSES
from tests.imported.test_imported_pipelines import data, diffusers, unet

EVIL = "import pathlib\npathlib.Path({marker!r}).touch()\n"
PARTS = {
    "unet": "UNet2DModel",
    "transformer": "DiTTransformer2DModel",
    "scheduler": "DDPMScheduler",
}
CLASSES: list[Any] = [
    ["diffusers", "DiffusionPipeline"],  # the pipeline of all
    ["diffusers", "DDPMPipeline"],  # a pipeline
    ["diffusers", "AutoModel"],  # a class that chooses
    ["diffusers", "ModelMixin"],  # a base of networks
    ["diffusers", "utils"],  # a module
    ["diffusers", "__loader__"],  # an attribute
    ["transformers", "CLIPTextModel"],  # a class of another package
    ["mine", "Network"],  # a file beside it
    [None, "UNet2DModel"],  # no package
    ["diffusers", ["UNet2DModel"]],  # a list
]
"""What an index may not name."""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A whole pipeline; of each part there is a nested index too, which names a Python file."""
    folder = tmp_path / "pipeline"
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(folder)
    for place in ("unet", "transformer", "scheduler"):
        (folder / place).mkdir(exist_ok=True)
        nested = {"_class_name": ["evil", "Evil"], "scheduler": ["evil", "Evil"]}
        (folder / place / "model_index.json").write_text(json.dumps(nested))
        code = EVIL.format(marker=str(tmp_path / "ran"))
        for file in ("evil.py", "scheduler/evil.py"):
            (folder / place / file).parent.mkdir(exist_ok=True)
            (folder / place / file).write_text(code)
    return folder


def rename(folder: Path, **kinds: Any) -> None:
    """Name other classes in a pipeline's index."""
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | kinds))


@pytest.mark.parametrize("place", PARTS)
def test_no_class_opens_a_part_but_those_of_the_list(
    place: str, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    for name in ("ConfigMixin", "ModelMixin", "DiffusionPipeline"):
        loading = {"load_config", "from_pretrained"} & vars(getattr(diffusers, name)).keys()
        for method in loading:
            monkeypatch.setattr(
                getattr(diffusers, name), method, lambda *_, **__: opened.append("")
            )
    words = f"the {place} in .* expected a class of diffusers among"
    for kind in CLASSES:
        rename(pipeline, **{place: kind})
        with pytest.raises(ValueError, match=words):
            from_pipeline(pipeline, data())
    assert not opened and not (pipeline.parent / "ran").exists()


@pytest.mark.parametrize("name", NETWORK_CLASSES)
def test_networks_of_the_list_are_networks(name: str) -> None:
    kind = getattr(diffusers, name)
    assert issubclass(kind, diffusers.ModelMixin) and issubclass(kind, nn.Module)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_schedulers_of_the_list_are_read(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    assert isinstance(scheduler, diffusers.SchedulerMixin)
    assert from_diffusers(nn.Identity(), scheduler, data()).event_shape == data().shape[1:]


@pytest.mark.parametrize("index", ["[]", "3", '{"unet": 3}', "{", "[" * 10**5, '"scheduler"'])
def test_an_index_of_another_form_is_refused(index: str, pipeline: Path) -> None:
    (pipeline / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match="expected"):
        from_pipeline(pipeline, data())


def test_a_version_that_lacks_a_class_is_named(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(__version__="0.1"))
    with pytest.raises(ImportError, match=r"diffusers 0\.1 does not have, expected a version"):
        from_pipeline(pipeline, data())
