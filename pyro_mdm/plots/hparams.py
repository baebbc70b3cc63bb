"""The rows of runs in TensorBoard's table of settings, for where TensorBoard is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

__all__ = ["write_finished", "write_settings"]


def write_settings(
    writer: SummaryWriter, settings: Mapping[str, str | float], metrics: Mapping[str, str]
) -> None:
    """Start the row of a run in the hparams table.

    The row belongs to the run itself (``SummaryWriter.add_hparams`` would add another run). The
    table takes its columns from one of its runs, so give every run the same names in the same
    order. It opens with five settings and five metrics.

    Args:
        writer: writer of the run.
        settings: texts or numbers by name.
        metrics: titles by tag of a scalar, whose last value the table shows.
    """
    start = plugin_data_pb2.SessionStartInfo()
    columns = []
    for i, (title, value) in enumerate(settings.items()):
        name = f"{i:02d} {title}"  # the table sorts by name
        if isinstance(value, str):
            start.hparams[name].string_value, kind = value, api_pb2.DATA_TYPE_STRING
        else:
            start.hparams[name].number_value, kind = value, api_pb2.DATA_TYPE_FLOAT64
        columns.append(api_pb2.HParamInfo(name=name, display_name=title, type=kind))
    shown = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=title)
        for tag, title in metrics.items()
    ]
    experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=shown)
    _write_hparams(writer, metadata.EXPERIMENT_TAG, experiment=experiment)
    _write_hparams(writer, metadata.SESSION_START_INFO_TAG, session_start_info=start)


def write_finished(writer: SummaryWriter) -> None:
    """Mark this run as finished in the hparams table."""
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    _write_hparams(writer, metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _write_hparams(writer: SummaryWriter, tag: str, **content: object) -> None:
    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
    )
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
    file: Any = writer.file_writer
    file.add_summary(Summary(value=[value]))
