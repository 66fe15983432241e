"""Features and tags of a qube, as a mapping and a set; each access is one call of the Admin API."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, MutableSet

from casemate.client.qubes import Qubes as Client
from casemate.wire.errors import FeatureNotFoundError, TagNotFoundError


class Features(MutableMapping[str, str]):
    """The features of a qube: names with texts. ``qube.features["service.cups"] = True``.

    True is kept as ``1`` and False as the empty text, as in Qubes OS. A feature that is not there raises
    FeatureNotFoundError, which is a KeyError too, so that ``get`` and ``in`` work.
    """

    def __init__(self, client: Client, qube: str) -> None:
        self._client = client
        self._qube = qube

    def __getitem__(self, name: str) -> str:
        try:
            return self._client.call("admin.vm.feature.Get", name, self._qube)
        except FeatureNotFoundError as error:
            raise MissingFeatureError(str(error)) from None

    def __setitem__(self, name: str, value: str | bool) -> None:
        text = ("1" if value else "") if isinstance(value, bool) else value
        self._client.call("admin.vm.feature.Set", name, self._qube, text)

    def __delitem__(self, name: str) -> None:
        try:
            self._client.call("admin.vm.feature.Remove", name, self._qube)
        except FeatureNotFoundError as error:
            raise MissingFeatureError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._client.call("admin.vm.feature.List", "", self._qube).split())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def all(self) -> dict[str, str]:
        """All features with their values, in one call."""
        return self._client.features(self._qube)

    def effective(self, name: str, default: str | None = None) -> str | None:
        """The value that counts: the qube's own, else its template's, else ``default``."""
        try:
            return self._client.call("admin.vm.feature.CheckWithTemplate", name, self._qube)
        except FeatureNotFoundError:
            return default

    def __repr__(self) -> str:
        return f"<features of {self._qube}>"


class MissingFeatureError(FeatureNotFoundError, KeyError):
    """No such feature on this qube, raised by a mapping."""


class Tags(MutableSet[str]):
    """The tags of a qube: ``"mine" in qube.tags``, ``qube.tags.add("mine")``, ``qube.tags.discard("mine")``."""

    def __init__(self, client: Client, qube: str) -> None:
        self._client = client
        self._qube = qube

    def __contains__(self, tag: object) -> bool:
        return isinstance(tag, str) and self._client.call("admin.vm.tag.Get", tag, self._qube) == "1"

    def __iter__(self) -> Iterator[str]:
        return iter(self._client.tags(self._qube))

    def __len__(self) -> int:
        return len(self._client.tags(self._qube))

    def add(self, value: str) -> None:
        """Put a tag on the qube; one that is there is no error."""
        self._client.call("admin.vm.tag.Set", value, self._qube)

    def discard(self, value: str) -> None:
        """Take a tag off the qube; one that is not there is no error."""
        try:
            self._client.call("admin.vm.tag.Remove", value, self._qube)
        except TagNotFoundError:
            pass

    def __repr__(self) -> str:
        return f"<tags of {self._qube}>"
