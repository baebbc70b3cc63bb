"""Estimates pooled over completed tables, by Rubin's rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_mdm.support.doors import checked_arguments

if TYPE_CHECKING:
    import pandas as pd

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
        A row for each coefficient: its estimate and standard_error, the degrees of freedom df, the
        fraction of missing information fmi, and the ends low and high of its interval, by Student's
        t.

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
    import pandas as pd
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a number between 0 and 1, such as 0.95")
    fits = [_fit_of(table, fit) for table in _each(tables)]
    m, names = len(fits), fits[0].names
    for k, (others, *numbers) in enumerate(fits):
        if others != names:
            raise ValueError(
                f"the fit to table {k} has the coefficients {others}, expected those of the first, "
                f"{names}; fit the same model to all, with categories of one set of levels"
            )
        for name, *pair in zip(names, *numbers[:2], strict=True):
            if not np.isfinite(pair).all() or pair[1] < 0:
                raise ValueError(
                    f"{name} has the estimate {pair[0]} and the standard error {pair[1]} in table "
                    f"{k}, expected numbers; fit to columns that hold no missing entries and do "
                    "not follow from each other"
                )
    Q, U = np.stack([one.estimates for one in fits]), np.stack([one.errors for one in fits]) ** 2
    complete = min(one.df for one in fits)
    between = (1 + 1 / m) * Q.var(0, ddof=1)
    T = U.mean(0) + between
    share = np.divide(between, T, out=np.zeros_like(T), where=T > 0)  # λ
    with np.errstate(divide="ignore"):
        observed = (1 + 2 / (complete + 1)) / complete / (1 - share)
        df = 1 / (share**2 / (m - 1) + observed)
    fmi = share + (1 - share) * 2 / (df + 3)
    half = stdtrit(df, (1 + level) / 2) * np.sqrt(T)
    columns = {"estimate": Q.mean(0), "standard_error": np.sqrt(T), "df": df, "fmi": fmi}
    columns |= {"low": Q.mean(0) - half, "high": Q.mean(0) + half}
    return pd.DataFrame(columns, index=pd.Index(names, name="coefficient"))


class Fit(NamedTuple):
    """A fit to one table."""

    names: list[str]
    estimates: NDArray[np.float64]
    errors: NDArray[np.float64]
    df: float  # degrees of freedom of the errors


def _each(tables: Any) -> list[pd.DataFrame]:
    """The tables, each with the index that it had before it was completed."""
    import pandas as pd

    if isinstance(tables, pd.DataFrame):
        if tables.index.nlevels < 2:
            raise ValueError(
                "tables is one DataFrame whose index has no number of a draw, expected what "
                "Table.impute returns, or a list of completed tables"
            )
        groups = tables.groupby(level=0, sort=False)
        tables = [table.droplevel(0) for _, table in groups]
    tables = [*tables]
    if len(tables) < 2:
        raise ValueError(
            f"there is a number of {len(tables)} tables, expected at least 2, whose differences "
            "are the uncertainty of what is missing; use Table.impute(num=20)"
        )
    return tables


def _fit_of(table: pd.DataFrame, fit: Callable[[pd.DataFrame], Any]) -> Fit:
    """The fit to one table."""
    result = fit(table)
    if hasattr(result, "params") and hasattr(result, "bse"):
        columns = getattr(getattr(result, "model", None), "exog_names", None)
        names, estimates = _named(result.params, columns)
        df = float(getattr(result, "df_resid", np.inf))
        return Fit(names, estimates, _named(result.bse)[1], df)
    if hasattr(result, "coef_"):
        names, estimates = _coefficients(result)
        group = np.random.default_rng(0).permutation(np.arange(len(table)) % GROUPS)
        refits = [_coefficients(fit(table[group != g]))[1] for g in range(GROUPS)]
        errors = np.sqrt((GROUPS - 1) * np.var(refits, axis=0))
        return Fit(names, estimates, errors, GROUPS - 1)
    if isinstance(result, tuple | list) and len(result) == 2:
        names, estimates = _named(result[0])
        return Fit(names, estimates, _named(result[1])[1], np.inf)
    raise TypeError(
        f"fit returned {type(result).__name__}, expected a result of statsmodels, a fitted linear "
        "model of scikit-learn, or a pair of estimates and their standard errors"
    )


def _named(values: Any, names: Any = None) -> tuple[list[str], NDArray[np.float64]]:
    """The names of values and the values: those of a Series or a dict, the given ones, or
    numbers."""
    if isinstance(values, dict):
        names, values = [*values], [*values.values()]
    elif hasattr(values, "index") and hasattr(values, "to_numpy"):
        names = [*values.index]
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1:
        raise ValueError(
            f"fit has estimates of shape {array.shape}, expected those of one response, (p,); fit "
            "one response at a time"
        )
    return [str(name) for name in (range(len(array)) if names is None else names)], array


def _coefficients(model: Any) -> tuple[list[str], NDArray[np.float64]]:
    """The names and the coefficients of a linear model of scikit-learn, its intercept first."""
    coefficients = np.asarray(model.coef_, dtype=np.float64)
    if coefficients.ndim == 2 and len(coefficients) == 1:
        coefficients = coefficients[0]
    names = getattr(model, "feature_names_in_", [f"x{j}" for j in range(coefficients.shape[-1])])
    names, values = _named(coefficients, names)
    if not getattr(model, "fit_intercept", True):
        return names, values
    return ["intercept", *names], np.append(np.ravel(model.intercept_), values)
