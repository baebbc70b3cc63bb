"""What a run writes for people: the right numbers under the right names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from torch.utils.tensorboard import SummaryWriter

from pyro_mdm import ALDA, CLD, MALDA, VPSDE, LearnedDiffusion
from pyro_mdm import tensorboard as tb
from pyro_mdm.figures import snapshot


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def last(events: EventAccumulator, tag: str) -> float:
    return events.Scalars(tag)[-1].value


def test_the_bound_is_written_with_its_terms_and_errors(tmp_path: Path) -> None:
    terms = {
        "bits_per_dim": (1.5, 0.1),
        "reconstruction": (0.2, 0.01),
        "prior_kl": (0.3, math.nan),
        "diffusion": (1.0, 0.05),
    }
    with SummaryWriter(str(tmp_path)) as writer:
        tb.write_layout(writer, ["validation"], ["bits_per_dim"])
        tb.write_bound(writer, "validation", terms, 7)
        with pytest.raises(ValueError, match=r"unknown terms \['loss'\]"):
            tb.write_bound(writer, "train", {"loss": (1.0, 0.1)}, 7)
    events = read(tmp_path)
    for term, (value, error) in terms.items():
        assert last(events, f"{term}/validation") == pytest.approx(value)
        if math.isnan(error):
            assert f"standard_error/{term}/validation" not in events.Tags()["scalars"]
            continue
        assert last(events, f"standard_error/{term}/validation") == pytest.approx(error)
        assert last(events, f"interval/{term}/validation/low") == pytest.approx(value - error)
        assert last(events, f"interval/{term}/validation/high") == pytest.approx(value + error)
    assert events.Scalars("bits_per_dim/validation")[0].step == 7
    (layout,) = events.Tensors("custom_scalars__config__")
    text = layout.tensor_proto.string_val[0].decode(errors="replace")
    assert "interval/bits_per_dim/validation/low" in text and "diffusion" not in text


@pytest.mark.parametrize("build", [VPSDE, CLD, MALDA, ALDA, lambda: LearnedDiffusion(4, rank=2)])
def test_the_diffusion_is_written_entry_by_entry(tmp_path: Path, build: Any) -> None:
    diffusion = build()
    K, Q, D = diffusion.num_variables, diffusion.Q.detach(), diffusion.D.detach()
    with SummaryWriter(str(tmp_path)) as writer:
        tb.write_diffusion(writer, diffusion, 1)
        tb.write_curves(writer, diffusion, 1)
        tb.write_diffusion_history(writer, [{"step": 1, **snapshot(diffusion)}], diffusion, 1)
        tb.write_noising(writer, diffusion, torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), 1)
    events = read(tmp_path)
    for i in range(K):
        for j in range(i, K):
            assert last(events, f"D/entry_{i}{j}") == pytest.approx(D[i, j].item(), abs=1e-6)
            if i < j:
                assert last(events, f"Q/entry_{i}{j}") == pytest.approx(Q[i, j].item(), abs=1e-6)
    # the trace of D, and of QᵀQ = Σ ω²: eigenvalues of these very matrices
    trace = sum(last(events, f"D_eigenvalues/{i}") for i in range(K))
    square = sum(last(events, f"Q_eigenvalues/frequency_{i}") ** 2 for i in range(K))
    assert trace == pytest.approx(D.trace().item(), abs=1e-5)
    assert square == pytest.approx(Q.square().sum().item(), abs=1e-5)
    images = {"curves", "noising", "training/clock"}
    images |= {"training/eigenvalues"} if K > 1 else set()  # one variable has nothing to show
    assert set(events.Tags()["images"]) == images


def bound(step: int) -> dict[str, Any]:
    terms = dict.fromkeys(tb.TERMS, (1.0, 0.1))
    by_log_snr = {"diffusion_by_log_snr": [0.5], "diffusion_by_log_snr_error": [0.1]}
    return {"step": step, "terms": terms, "log_snr_edges": [-1.0, 1.0], **by_log_snr}


def test_the_bound_over_training_waits_for_a_second_measurement(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        tb.write_bound_history(writer, {"train": [bound(5)]}, 5)
        tb.write_bound_history(writer, {"train": [bound(5), bound(9)]}, 9)
    events = read(tmp_path)
    for tag in ("training/terms", "training/diffusion_term_by_log_snr"):
        assert [image.step for image in events.Images(tag)] == [9]


# -- the table of runs -----------------------------------------------------------------------------


def table_of_runs(folder: Path) -> Any:
    """The session groups that TensorBoard's own hparams page shows."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import backend_context, list_session_groups

    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = data_provider.MultiplexerDataProvider(runs, str(folder))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    metric = api_pb2.ColParams(metric=api_pb2.MetricName(tag="bits_per_dim/test"))
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS],
        col_params=[metric],
        include_metrics=True,
    )
    request_context = context.RequestContext()
    return list_session_groups.Handler(request_context, backend, "", request).run().session_groups


def test_each_run_is_one_row_of_the_table_with_its_last_bound(tmp_path: Path) -> None:
    for name, bits, done in (("one", 1.5, True), ("two", 2.5, False)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            settings = {"guide": name, "steps": 300}
            tb.write_settings(writer, settings, {"bits_per_dim/test": "test bits/dim"})
            tb.write_bound(writer, "test", {"bits_per_dim": (9.0, 0.1)}, 1)
            tb.write_bound(writer, "test", {"bits_per_dim": (bits, 0.1)}, 2)
            if done:
                tb.write_finished(writer)
    assert not [p for p in tmp_path.glob("*/*") if p.is_dir()]  # no run within a run
    rows = {group.hparams["00 guide"].string_value: group for group in table_of_runs(tmp_path)}
    assert set(rows) == {"one", "two"}
    for name, bits, status in (("one", 1.5, "SUCCESS"), ("two", 2.5, "UNKNOWN")):
        (session,) = rows[name].sessions
        assert session.name == name
        assert rows[name].hparams["01 steps"].number_value == 300
        assert session.metric_values[0].value == bits
        assert api_pb2.Status.Name(session.status) == f"STATUS_{status}"
