"""The suite in other settings: which runs there are, and what their records say."""

from __future__ import annotations

from tests.anywhere import ENVIRONMENTS, SETTINGS, covering


def test_every_value_of_each_setting_is_in_a_run() -> None:
    few = SETTINGS | {"environment": list(ENVIRONMENTS)[:1], "instructions": ["default"]}
    for settings, number in ((SETTINGS, 3), (few, 3), ({"a": [1], "b": [2]}, 1)):
        runs = covering(settings)
        assert len(runs) == number
        for name, values in settings.items():
            assert {run[name] for run in runs} == set(values)
