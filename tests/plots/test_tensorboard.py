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

from pyro_mdm import ALDA, VPSDE, ELBOTerms, LearnedDiffusion
from pyro_mdm.plots import hparams, tensorboard as tb
from pyro_mdm.plots.figures import snapshot
from pyro_mdm.support.measured import student_factor


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
        tb.write_bound(writer, "test", {"bits_per_dim": (1.25, 0.1)}, 9)
        with pytest.raises(ValueError, match=r"unknown terms \['loss'\]"):
            tb.write_bound(writer, "train", {"loss": (1.0, 0.1)}, 7)
    events = read(tmp_path)
    for term, (value, error) in terms.items():
        assert last(events, f"bound/{term}/validation") == pytest.approx(value)
        if math.isnan(error):
            assert (
                f"uncertainty/standard_error/bound/{term}/validation"
                not in events.Tags()["scalars"]
            )
            continue
        for kind, expected in (
            ("standard_error", error),
            ("low", value - error),
            ("high", value + error),
        ):
            tag = f"uncertainty/{kind}/bound/{term}/validation"
            assert last(events, tag) == pytest.approx(expected)
    assert events.Scalars("bound/bits_per_dim/validation")[0].step == 7
    assert last(events, "bound/bits_per_dim/test") == 1.25
    (layout,) = events.Tensors("custom_scalars__config__")
    text = layout.tensor_proto.string_val[0].decode(errors="replace")
    assert "uncertainty/low/bound/bits_per_dim/validation" in text and "diffusion" not in text


def test_a_loop_of_one_s_own_writes_its_terms_in_one_line(tmp_path: Path) -> None:
    values = {
        "reconstruction": torch.tensor([-3.0, -1.0], requires_grad=True),
        "prior_kl": torch.tensor([0.5, 0.5]),
        "diffusion": torch.tensor([2.0, 6.0]),
        "log_snr": torch.tensor([-1.0, 1.0]),
    }
    terms, one = ELBOTerms(**values), ELBOTerms(**{name: v[:1] for name, v in values.items()})
    with SummaryWriter(str(tmp_path)) as writer:
        tb.write_terms(writer, terms, 7)
        tb.write_terms(writer, terms, 7, split="validation", num_dims=2)
        tb.write_terms(writer, one, 7, split="one")
        with pytest.raises(TypeError, match=r"terms is 1.5, expected a ELBOTerms; it is terms"):
            tb.write_terms(writer, 1.5, 7)
        with pytest.raises(ValueError, match="num_dims is 0"):
            tb.write_terms(writer, terms, 7, num_dims=0)
    events = read(tmp_path)
    # elbos -5.5 and -7.5: a standard error of √2 / √2, by Student's t
    nats = {"elbo": (-6.5, 1.0), "reconstruction": (-2.0, 1.0), "prior_kl": (0.5, 0.0)}
    nats |= {"diffusion": (4.0, 2.0)}
    bits = {"bits_per_dim": (6.5, 1.0), "reconstruction": (2.0, 1.0), "prior_kl": (0.5, 0.0)}
    bits |= {"diffusion": (4.0, 2.0)}
    in_bits = 2 * math.log(2)
    for part, group, written, unit in (
        ("train", "nats", nats, 1.0),
        ("validation", "nats", nats, 1.0),
        ("validation", "bound", bits, in_bits),
    ):
        for term, (value, error) in written.items():
            tag = f"{group}/{term}/{part}"
            assert last(events, tag) == pytest.approx(value / unit)
            assert last(events, f"uncertainty/standard_error/{tag}") == pytest.approx(
                error * student_factor(1) / unit
            )
            assert events.Scalars(tag)[0].step == 7
    assert last(events, "nats/elbo/one") == -5.5
    assert "uncertainty/standard_error/nats/elbo/one" not in events.Tags()["scalars"]


@pytest.mark.parametrize(
    ("build", "drawn"),  # one variable, and several
    [(VPSDE, True), (ALDA, False), (lambda: LearnedDiffusion(4, rank=2), True)],
)
def test_the_diffusion_is_written_entry_by_entry(tmp_path: Path, build: Any, drawn: bool) -> None:
    diffusion = build()
    K, Q, D = diffusion.num_variables, diffusion.Q.detach(), diffusion.D.detach()
    with SummaryWriter(str(tmp_path)) as writer:
        tb.write_diffusion(writer, diffusion, 1)
        if drawn:
            tb.write_curves(writer, diffusion, 1)
            tb.write_diffusion_history(writer, [{"step": 1, **snapshot(diffusion)}], diffusion, 1)
    events = read(tmp_path)
    for i in range(K):
        for j in range(i, K):
            assert last(events, f"noising/D/entry_{i}{j}") == pytest.approx(
                D[i, j].item(), abs=1e-6
            )
            if i < j:
                assert last(events, f"noising/Q/entry_{i}{j}") == pytest.approx(
                    Q[i, j].item(), abs=1e-6
                )
    # the trace of D, and of QᵀQ = Σ ω²: eigenvalues of these very matrices
    trace = sum(last(events, f"noising/D_eigenvalues/{i}") for i in range(K))
    square = sum(last(events, f"noising/Q_eigenvalues/frequency_{i}") ** 2 for i in range(K))
    assert trace == pytest.approx(D.trace().item(), abs=1e-5)
    assert square == pytest.approx(Q.square().sum().item(), abs=1e-5)
    if not drawn:
        return
    images = {f"noising/{name}" for name in ("curves", "clock")}
    images |= {"noising/eigenvalues"} if K > 1 else set()  # one variable has nothing to show
    assert set(events.Tags()["images"]) == images


def bound(step: int) -> dict[str, Any]:
    terms = dict.fromkeys(tb.TERMS, (1.0, 0.1))
    by_log_snr = {"diffusion_by_log_snr": [0.5], "diffusion_by_log_snr_error": [0.1]}
    return {"step": step, "terms": terms, "log_snr_edges": [-1.0, 1.0], **by_log_snr}


def test_the_bound_over_training_is_there_from_the_first_measurement(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        tb.write_bound_history(writer, {"train": [bound(5)]}, 5)
        tb.write_bound_history(writer, {"train": [bound(5), bound(9)]}, 9)
    events = read(tmp_path)
    for tag in ("Overview/bound", "Overview/terms", "training/diffusion_term_by_log_snr"):
        assert [image.step for image in events.Images(tag)] == [5, 9]


def table_of_runs(folder: Path) -> Any:
    """The session groups that TensorBoard's own hparams page shows."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import backend_context, list_session_groups

    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = data_provider.MultiplexerDataProvider(runs, str(folder))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    metric = api_pb2.ColParams(metric=api_pb2.MetricName(tag="bound/bits_per_dim/test"))
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
            hparams.write_settings(writer, settings, {"bound/bits_per_dim/test": "test bits/dim"})
            tb.write_bound(writer, "test", {"bits_per_dim": (9.0, 0.1)}, 1)
            tb.write_bound(writer, "test", {"bits_per_dim": (bits, 0.1)}, 2)
            if done:
                hparams.write_finished(writer)
    assert not [p for p in tmp_path.glob("*/*") if p.is_dir()]  # no run within a run
    rows = {group.hparams["00 guide"].string_value: group for group in table_of_runs(tmp_path)}
    assert set(rows) == {"one", "two"}
    for name, bits, status in (("one", 1.5, "SUCCESS"), ("two", 2.5, "UNKNOWN")):
        (session,) = rows[name].sessions
        assert session.name == name
        assert rows[name].hparams["01 steps"].number_value == 300
        assert session.metric_values[0].value == bits
        assert api_pb2.Status.Name(session.status) == f"STATUS_{status}"
