"""Estimates pooled over completed tables, by Rubin's rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_mdm.support.checks import checked_arguments, describe
from pyro_mdm.tables.columns.lazy import pd

__all__ = ["pooled"]

GROUPS = 20
"""The groups of rows of which each is left out once for the standard errors of a fit that has
none."""


@checked_arguments
def pooled(
    tables: pd.DataFrame | Iterable[pd.DataFrame],
    fit: Callable[[pd.DataFrame], Any],
    *,
    level: float = 0.95,
) -> pd.DataFrame:
    r"""The estimates of a fit to each of m completed tables as one estimate, by Rubin's rules.

    With Q the estimates and U their squared standard errors, ``T = Ū + (1 + 1/m) var Q`` is the
    squared standard error of Q̄. Degrees of freedom are those of Barnard & Rubin. Intervals have
    their level if each table is drawn under other parameters, as by ``Table.impute(proper=True)``.

    Args:
        tables: completed tables, as :meth:`Table.impute` returns them, or one after another.
        fit: the function that fits to a table. It returns a result of statsmodels, with ``params``,
            ``bse`` and ``df_resid``; a linear model of scikit-learn, with ``coef_`` and
            ``intercept_``, whose standard errors are those of refits without each of 20 groups of
            rows; or estimates, by name if they are a Series or a dict, and their standard errors.
        level: the level of the intervals, between 0 and 1.

    Returns:
        A row for each coefficient, with its estimate and standard_error, the degrees of freedom df,
        the fraction of missing information fmi, and the ends low and high of its interval, by
        Student's t.

    Raises:
        TypeError: a fit of another kind.
        ValueError: fewer than two tables; fits with other coefficients than the first, or with an
            estimate or error that is no number.

    Source: Rubin, "Multiple Imputation for Nonresponse in Surveys", 1987; Barnard & Rubin,
    "Small-sample degrees of freedom with multiple imputation", Biometrika 1999.

    Example:
        >>> import pandas as pd
        >>> tables = [pd.DataFrame({"age": [30.0, 40.0, age]}) for age in (35.0, 38.0, 50.0)]
        >>> pooled(tables, lambda table: ([table.age.mean()], [table.age.sem()])).estimate.item()
        37.0
    """
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a number between 0 and 1, such as 0.95")
    fits = [_fit_of(table, fit) for table in _checked(tables)]
    m, names = len(fits), [*fits[0].estimates.index]
    for k, (estimates, errors, _) in enumerate(fits):
        if [*estimates.index] != names:
            raise ValueError(
                f"the fit to table {k} has the coefficients {[*estimates.index]}, expected those "
                f"of the first, {names}; fit one model to all, with categories of the same levels"
            )
        for name, pair in zip(names, zip(estimates, errors, strict=True), strict=True):
            if not np.isfinite(pair).all():
                raise ValueError(
                    f"{name} has the estimate {pair[0]} and the standard error {pair[1]} in table "
                    f"{k}, expected numbers; fit to columns without missing entries, none of which "
                    "follows from others"
                )
    Q, U = np.stack([one.estimates for one in fits]), np.stack([one.errors for one in fits]) ** 2
    between, complete = (1 + 1 / m) * Q.var(0, ddof=1), min(one.df for one in fits)
    T = U.mean(0) + between
    share = np.divide(between, T, out=np.zeros_like(T), where=T > 0)  # λ
    with np.errstate(divide="ignore"):
        observed = (1 + 2 / (complete + 1)) / complete / (1 - share)  # 1/ν
        df = 1 / (share**2 / (m - 1) + observed)
    half = stdtrit(df, (1 + level) / 2) * np.sqrt(T)
    columns = {"estimate": Q.mean(0), "standard_error": np.sqrt(T), "df": df}
    columns |= {"fmi": share + (1 - share) * 2 / (df + 3)}
    columns |= {"low": Q.mean(0) - half, "high": Q.mean(0) + half}
    return pd.DataFrame(columns, pd.Index(names, name="coefficient"))


def _checked(tables: pd.DataFrame | Iterable[pd.DataFrame]) -> list[pd.DataFrame]:
    """The tables, each with the index that it had before it was completed."""
    if isinstance(tables, pd.DataFrame):
        if tables.index.nlevels < 2:
            raise ValueError(
                "tables is one DataFrame whose index has no number of a draw, expected what "
                "Table.impute returns, or a list of completed tables"
            )
        tables = [table.droplevel(0) for _, table in tables.groupby(level=0, sort=False)]
    tables = [*tables]
    for k, table in enumerate(tables):
        columns = [*getattr(table, "columns", [])]
        if not isinstance(table, pd.DataFrame) or columns != [*tables[0].columns]:
            raise TypeError(
                f"tables[{k}] is {describe(table)} of the columns {columns}, expected a DataFrame "
                "of the columns of the first"
            )
    if len(tables) < 2:
        raise ValueError(
            f"there is a number of {len(tables)} tables, expected at least 2, whose differences "
            "are the uncertainty of what is missing; use Table.impute(num=20)"
        )
    return tables


class Fit(NamedTuple):
    """A fit to one table."""

    estimates: pd.Series[float]
    errors: NDArray[np.float64]
    df: float  # degrees of freedom of the errors


def _fit_of(table: pd.DataFrame, fit: Callable[[pd.DataFrame], Any]) -> Fit:
    """The fit to one table."""
    result, df = fit(table), np.inf
    if hasattr(result, "coef_"):
        group = np.random.default_rng(0).permutation(np.arange(len(table)) % GROUPS)
        refits = [_coefficients(fit(table[group != g])) for g in range(GROUPS)]
        errors = np.sqrt((GROUPS - 1) * np.var(refits, axis=0))
        return Fit(_coefficients(result), errors, GROUPS - 1)
    if hasattr(result, "params") and hasattr(result, "bse"):
        estimates, errors, df = result.params, result.bse, getattr(result, "df_resid", df)
        if not isinstance(estimates, pd.Series):
            estimates = pd.Series(estimates, result.model.exog_names)
    elif isinstance(result, tuple | list) and len(result) == 2:
        estimates, errors = result
    else:
        raise TypeError(
            f"fit returned {describe(result)}, expected a result of statsmodels, a fitted linear "
            "model of scikit-learn, or a pair of estimates and their standard errors"
        )
    return Fit(pd.Series(estimates, dtype=float), pd.Series(errors, dtype=float).to_numpy(), df)


def _coefficients(model: Any) -> pd.Series[float]:
    """The coefficients of one response by name, the intercept first."""
    values = np.atleast_2d(model.coef_)
    if len(values) > 1:
        raise ValueError(
            f"fit has coefficients of shape {values.shape}, expected those of one response, (p,); "
            "fit one response at a time"
        )
    names = getattr(model, "feature_names_in_", [f"x{j}" for j in range(values.shape[1])])
    slopes = pd.Series(values[0], [str(name) for name in names])
    if not getattr(model, "fit_intercept", True):
        return slopes
    return pd.concat([pd.Series(np.ravel(model.intercept_), ["intercept"]), slopes])
