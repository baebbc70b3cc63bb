"""Checks of the options of inference.evaluate that do not go together, or have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.commands.cli import check_positive
from inference.folders.output import check_out
from inference.folders.runs import RunError
from pyro_mdm.evaluation.estimates import FEWEST

OF_TEST_DATA = (
    *("reuse", "guide", "max_log_snr", "min_log_snr", "half_width", "samples", "times", "probes"),
    *("rtol", "test_size", "classify", "method", "precision", "calibration"),
)
"""The options that --data goes without."""
USUAL = {"classify": False, "method": "elbo", "precision": "32-true"}
"""Their defaults, where these are not None."""
OF_METHOD = {"half_width": "elbo", "times": "importance", "probes": "flow", "rtol": "flow"}
"""The options of one method alone."""


def check_evaluation(options: Mapping[str, Any]) -> None:
    """Raise unless a run can be evaluated as ``options``, all of them by name, say.

    Raises:
        RunError: a file is in the way, or there is no run for --data.
        ValueError: options that do not go together, or numbers out of their range.
    """
    out, overwrite, calibration = (options[name] for name in ("out", "overwrite", "calibration"))
    calls = {name: options[name] for name in ("draws", "batch_size")}
    if options["data"] is not None:
        if others := [f"--{n}" for n in OF_TEST_DATA if options[n] != USUAL.get(n)]:
            raise ValueError(
                f"--data asks for bounds on new rows of a table, which no other option but --draws "
                f"changes; leave out {', '.join(others)}"
            )
        check_positive(**calls)
    else:
        check_positive(**calls, **{n: options[n] for n in ("half_width", "samples", "rtol")})
        size = options["test_size"]
        if size is not None and size < FEWEST:
            raise ValueError(f"--test_size is {size}, expected at least {FEWEST}")
        _check_method(options)
        if calibration is not None:
            check_out(calibration, (".png",), overwrite=overwrite, option="calibration")
    if out is not None:
        check_out(out, (".csv",), overwrite=overwrite)
    elif overwrite and calibration is None:
        raise ValueError("--overwrite is for --out and --calibration, which are not given")
    if options["data"] is not None and options["run"] is None:
        raise RunError("--data is of rows for a run, which is missing; give its folder")


def _check_method(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of another method than the one that is asked for."""
    method = options["method"]
    for name, owner in OF_METHOD.items():
        if options[name] is not None and method not in (owner, "all"):
            raise ValueError(f"--{name} is for --method {owner}, not {method}; leave it out")
    if method == "elbo" and options["samples"] is not None:
        raise ValueError("--samples is for --method importance and flow, not elbo; leave it out")
    for name, given, word in (
        ("classify", options["classify"], "by"),
        ("out", options["out"] is not None, "for"),
    ):
        if given and method != "elbo":
            raise ValueError(
                f"--{name} is {word} bounds, and --method is {method}; leave one of them out"
            )
