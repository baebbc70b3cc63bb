"""The conventions of scikit-learn, for classes whose settings are keywords of their constructor."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, TypeVar

from pyro_mdm.tables.frames import Frame

if TYPE_CHECKING:
    from sklearn.utils import Tags

__all__ = ["TableEstimator"]

E = TypeVar("E", bound="TableEstimator")


class TableEstimator:
    """A transformer of tables, whose entries may be missing, for pipelines of scikit-learn.

    It is no subclass of scikit-learn's classes, which take longer to load than the library.
    """

    def fit(self: E, X: Frame, y: object = None) -> E:
        raise NotImplementedError

    def transform(self, X: Frame) -> Frame:
        raise NotImplementedError

    @classmethod
    def setting_names(cls) -> list[str]:
        """The names of the settings."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def get_params(self, deep: bool = True) -> dict[str, object]:
        """All settings by name, as they were given."""
        return {name: getattr(self, name) for name in self.setting_names()}

    def set_params(self: E, **params: object) -> E:
        """The object, with settings changed by name, for the next ``fit``."""
        for name, value in params.items():
            if name not in self.setting_names():
                raise ValueError(
                    f"there is no setting {name!r}, expected one of "
                    f"{', '.join(self.setting_names())}"
                )
            setattr(self, name, value)
        return self

    def fit_transform(self, X: Frame, y: object = None) -> Frame:
        """``fit(X).transform(X)``."""
        return self.fit(X, y).transform(X)

    def __sklearn_tags__(self) -> Tags:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        inputs = InputTags(allow_nan=True, categorical=True, string=True)
        target, transformer = TargetTags(required=False), TransformerTags(preserves_dtype=[])
        return Tags(None, target, transformer, input_tags=inputs)

    def __repr__(self) -> str:
        usual = type(self)().get_params()
        settings = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if name not in usual or value != usual[name]
        ]
        return f"{type(self).__name__}({', '.join(settings)})"
