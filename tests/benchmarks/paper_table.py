"""The tables of docs/measured/paper-protocol.md, from the results of the experiment ``paper``.

    python -m inference.experiment paper --model digits --workers 2
    python -m tests.benchmarks.paper_table runs/paper-digits \\
        --command "python -m inference.experiment paper --model digits --workers 2"

``paper-<data set>.csv`` has a row for each diffusion, its bound and its difference to VPSDE's;
``paper-<data set>-learned.csv`` has learned − fixed for each pair. ``--name`` is another name than
that of the data set, for a second study of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from inference.folders.config import read_settings
from tests.benchmarks.documented import write

NOTE = (
    "± is the standard error over seeds; intervals are 95%, paired by seed, image and noise, for "
    "other seeds and other images"
)


def tables(folder: Path, command: str, out: Path, name: str | None = None) -> None:
    """Write both tables of a folder, which ``command`` has made, into another."""
    study = name or folder.name.removeprefix("paper-")
    bounds, learned = (pd.read_csv(folder / f"{name}.csv") for name in ("summary", "learned"))
    seeds = int(bounds["seeds"].iloc[0])
    config = read_settings(folder / f"noise-{bounds['guide'].iloc[0]}-0")
    renamed = f" --name {name}" if name else ""
    made_by = f'python -m tests.benchmarks.paper_table runs/{folder.name}{renamed} --command "…"'
    notes = [
        f"{config['steps']} steps of {config['batch_size']}, network {config['network']}",
        NOTE,
    ]
    of_seeds = "0" if seeds == 1 else f"0 to {seeds - 1}"
    rows = pd.DataFrame(
        {
            "diffusion": bounds["guide"],
            "min_log_snr": bounds["log_snr_min"].round(1),
            "max_log_snr": bounds["log_snr_max"].round(1),
            "test_bits_per_dim": bounds["bits_per_dim"],
            "test_bits_per_dim_se": bounds["standard_error"],
            "less_vpsde": bounds["difference"],
            "less_vpsde_low": bounds["difference_low_95"],
            "less_vpsde_high": bounds["difference_high_95"],
        }
    )
    first = rows.columns.str.startswith("less_vpsde_")
    rows.loc[rows["diffusion"] == "vpsde", first] = float("nan")
    pairs = pd.DataFrame(
        {
            "pair": learned["learned"] + " − " + learned["fixed"],
            "difference": learned["difference"],
            "difference_low": learned["difference_low_95"],
            "difference_high": learned["difference_high_95"],
        }
    )
    for file, table in ((f"paper-{study}", rows), (f"paper-{study}-learned", pairs)):
        write(out / f"{file}.csv", table, [command, made_by], of_seeds, "bits/dim", notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--command", required=True, help="that has trained and compared the runs")
    parser.add_argument("--summary", type=Path, default=Path("docs/measured/data"))
    parser.add_argument("--name", help="of the study, in the names of the files")
    arguments = parser.parse_args()
    tables(arguments.folder, arguments.command, arguments.summary, arguments.name)


if __name__ == "__main__":
    main()
