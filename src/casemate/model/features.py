"""Features: free-form settings of a qube, names with texts. Read as a flag, ``""`` is false and any other text true."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from casemate.model.changes import FeatureRemoved, FeatureSet
from casemate.model.qube import Qube
from casemate.wire import names
from casemate.wire.errors import FeatureNotFoundError, ValueInvalidError, printable

PRELOADED = "preload-dispvm"
"""Of a disposable template: names of the disposables that wait for their first use (see ``preloading.py``)."""

MAX_FEATURES = 512
"""Limit of the store: features of a qube."""
MAX_VALUE = 4096
"""Limit of the store (bytes): value of a feature."""


def feature_value(text: str) -> str:
    """A feature's value: printable ASCII, at most 4096 characters."""
    if len(text) > MAX_VALUE or any(not " " <= c <= "~" for c in text):
        raise ValueInvalidError(f"A feature's value must be printable ASCII, at most {MAX_VALUE} characters")
    return text


class Features(MutableMapping[str, str]):
    """The features of one qube: a view of its state, through which they are changed."""

    __slots__ = ("_qube",)

    def __init__(self, qube: Qube) -> None:
        self._qube = qube

    @property
    def _values(self) -> dict[str, str]:
        return self._qube.state.features

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def find(self, name: str) -> str:
        """The value of a feature; raises FeatureNotFoundError."""
        try:
            return self._values[name]
        except KeyError:
            raise FeatureNotFoundError(f"{self._qube.name}: no feature {printable(name, 80)!r}") from None

    def set(self, name: str, value: str) -> None:
        """Give a feature a value."""
        name, value = str(names.feature_name(name)), feature_value(value)
        if name not in self._values and len(self._values) >= MAX_FEATURES:
            raise ValueInvalidError(f"{self._qube.name}: a qube has at most {MAX_FEATURES} features")
        self._qube.record(FeatureSet(self._qube.name, name, value, self._values.get(name)))
        self._values[name] = value

    def remove(self, name: str) -> None:
        """Remove a feature; raises FeatureNotFoundError."""
        old = self.find(name)
        self._qube.record(FeatureRemoved(self._qube.name, name, old))
        del self._values[name]

    def __setitem__(self, name: str, value: str) -> None:
        self.set(name, value)

    def __delitem__(self, name: str) -> None:
        self.remove(name)

    def check(self, name: str, *, template: bool = False, netvm: bool = False, admin: bool = False) -> str | None:
        """The value of the qube, else of the first of its templates (or net qubes) that has one, else of the admin
        qube.

        None where none of those that were asked for has the feature.
        """
        for qube in self._lookup(template, netvm, admin):
            value = qube.state.features.get(name)
            if value is not None:
                return value
        return None

    def _lookup(self, template: bool, netvm: bool, admin: bool) -> Iterator[Qube]:
        qube: Qube | None = self._qube
        seen = set()
        while qube is not None and qube.name not in seen:
            seen.add(qube.name)
            yield qube
            qube = qube.base() if template else qube.provider() if netvm else None
        if admin:
            yield self._qube.admin()
