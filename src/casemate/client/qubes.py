"""Qubes, as a client of the Admin API sees them: one method for each call. ``dest`` None means the system itself."""

from __future__ import annotations

from casemate.client.transport import Transport
from casemate.wire.admin import ADMIN, ListedQube, PropertyValue, parse_list, parse_properties, parse_property
from casemate.wire.errors import CasemateError, FeatureNotFoundError
from casemate.wire.names import KEPT_FEATURES, label_name, new_qube_name, pool_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


class Qubes:
    """All qubes of one daemon. Every method may raise DaemonAccessError, or the error that the daemon reports."""

    def __init__(self, transport: Transport | None = None) -> None:
        self.transport = transport if transport is not None else Transport()

    def call(self, method: str, arg: str = "", dest: str = ADMIN, payload: str | bytes = b"") -> str:
        """One call; its reply as text."""
        raw = payload.encode("utf-8") if isinstance(payload, str) else payload
        return self.transport.call(method, arg, dest, raw).decode("utf-8", "backslashreplace")

    def listed(self) -> list[ListedQube]:
        """All qubes, dom0 first."""
        return parse_list(self.call("admin.vm.List"))

    def inventory(
        self,
        properties: Iterable[str] | None = (),
        features: Iterable[str] | None = (),
        tags: bool = False,
        qubes: Iterable[str] | None = None,
    ) -> list[dict[str, Any]]:
        """All qubes with what is asked for (None: all properties, all features), in one call."""
        import json  # here: most tools do not need it

        wish: dict[str, Any] = {
            "properties": None if properties is None else sorted(set(properties)),
            "features": None if features is None else sorted(set(features)),
            "tags": tags,
        }
        if qubes is not None:
            wish["qubes"] = list(qubes)
        found: list[dict[str, Any]] = json.loads(self.call("admin.casemate.List", payload=json.dumps(wish)))
        return found

    def status(self) -> dict[str, Any]:
        """What the daemon says about its host."""
        import json

        found: dict[str, Any] = json.loads(self.call("admin.casemate.Status"))
        return found

    @staticmethod
    def _property(dest: str | None, verb: str) -> tuple[str, str]:
        return (f"admin.property.{verb}", ADMIN) if dest is None else (f"admin.vm.property.{verb}", dest)

    def properties(self, dest: str | None) -> dict[str, PropertyValue]:
        """All properties with their values."""
        method, where = self._property(dest, "GetAll")
        return parse_properties(self.call(method, "", where))

    def property_names(self, dest: str | None) -> list[str]:
        """The names of all properties."""
        method, where = self._property(dest, "List")
        return self.call(method, "", where).split()

    def get(self, dest: str | None, name: str) -> PropertyValue:
        """The value of a property."""
        method, where = self._property(dest, "Get")
        return parse_property(self.call(method, name, where))

    def set(self, dest: str | None, name: str, value: str) -> None:
        """Set a property; empty text means none."""
        method, where = self._property(dest, "Set")
        self.call(method, name, where, value)

    def reset(self, dest: str | None, name: str) -> None:
        """Give a property its default again."""
        method, where = self._property(dest, "Reset")
        self.call(method, name, where)

    def help(self, dest: str | None, name: str) -> str:
        """What a property is for."""
        method, where = self._property(dest, "Help")
        return self.call(method, name, where)

    def features(self, dest: str) -> dict[str, str]:
        """All features of a qube."""
        entry = self.inventory(features=None, qubes=[dest])[0]
        return dict(entry.get("features", {}))

    def unset_feature(self, dest: str, feature: str) -> None:
        """Take a feature away. One that is not there is no error: the result is the same."""
        try:
            self.call("admin.vm.feature.Remove", feature, dest)
        except FeatureNotFoundError:
            pass

    def tags(self, dest: str) -> list[str]:
        """All tags of a qube."""
        return self.call("admin.vm.tag.List", "", dest).split()

    def volume(self, dest: str, name: str) -> dict[str, str]:
        """The configuration of a volume."""
        lines = self.call("admin.vm.volume.Info", name, dest).split("\n")
        return {key: value for key, found, value in (line.partition("=") for line in lines) if found}

    def volumes(self, dest: str) -> list[str]:
        """The names of a qube's volumes."""
        return self.call("admin.vm.volume.List", "", dest).split()

    def create(
        self,
        klass: str,
        name: str,
        label: str,
        template: str | None = None,
        pools: dict[str, str] | None = None,
        restored_by: int = 0,
    ) -> None:
        """Create a qube. ``pools`` maps a volume to its pool, or ``""`` to the pool of all volumes.

        ``restored_by``: the process that restores it from a backup; then it is marked, and cannot be started.
        ValueInvalidError for a name that no qube, label or pool can have: blanks would part the payload's words.
        """
        payload = f"name={new_qube_name(name)} label={label_name(label)}"
        if restored_by:
            payload += f" restored-by={restored_by}"
        for pool in (pools or {}).values():
            pool_name(pool)
        if not pools:
            self.call(f"admin.vm.Create.{klass}", template or "", ADMIN, payload)
            return
        for volume, pool in pools.items():
            payload += f" pool:{volume}={pool}" if volume else f" pool={pool}"
        self.call(f"admin.vm.CreateInPool.{klass}", template or "", ADMIN, payload)

    def remove(self, dest: str) -> None:
        """Remove a halted qube."""
        self.call("admin.vm.Remove", "", dest)

    def clone(
        self,
        source: str,
        name: str,
        klass: str | None = None,
        pools: dict[str, str] | None = None,
        label: str | None = None,
        volumes: Iterable[str] | None = None,
        failed: Callable[[CasemateError], None] | None = None,
    ) -> None:
        """Make a qube like another: class, settings, features, tags, firewall, notes, kept volumes; all or nothing.

        ``volumes`` are those to be copied (None: all that are kept). ``failed`` hears of each setting that is refused,
        and the clone goes on without it; without ``failed`` the first such refusal undoes the clone and is raised.
        """
        entry = self.inventory(None, None, True, [source])[0]
        found: dict[str, dict[str, Any]] = entry["properties"]
        target = klass or str(entry["class"])
        template = found["template"]["value"] if target in ("AppVM", "DispVM") and "template" in found else None
        self.create(target, name, label or found["label"]["value"], template, pools)
        try:
            for step in self._settings(source, name, entry):
                try:
                    step()
                except CasemateError as error:
                    if failed is None:
                        raise
                    failed(error)
            theirs = set(self.volumes(source) if volumes is None else volumes)
            for volume in self.volumes(name):
                if volume in theirs and self.volume(name, volume).get("save_on_stop") == "True":
                    token = self.call("admin.vm.volume.CloneFrom", volume, source)
                    self.call("admin.vm.volume.CloneTo", volume, name, token)
        except BaseException:
            self.remove(name)
            raise

    def _settings(self, source: str, name: str, entry: dict[str, Any]) -> Iterator[Callable[[], object]]:
        """What gives a new qube the settings of another, ``entry`` being all that is known of that: a call for each."""
        found: dict[str, dict[str, Any]] = entry["properties"]
        known = set(self.property_names(name))
        for key, value in found.items():
            if key in known and not value["default"] and key not in NOT_CLONED:
                yield lambda key=key, value=value: self.set(name, key, value["value"])  # type: ignore[misc]
        for key in sorted(entry.get("features", {}).keys() - KEPT_FEATURES):
            text = entry["features"][key]
            yield lambda key=key, text=text: self.call("admin.vm.feature.Set", key, name, text)  # type: ignore[misc]
        for tag in entry.get("tags", []):
            if not tag.startswith(("created-by-", "guivm-", "audiovm-")):
                yield lambda tag=tag: self.call("admin.vm.tag.Set", tag, name)  # type: ignore[misc]
        if "netvm" in found and (rules := self.call("admin.vm.firewall.Get", "", source)) != "action=accept\n":
            yield lambda: self.call("admin.vm.firewall.Set", "", name, rules)
        if notes := self.call("admin.vm.notes.Get", "", source):
            yield lambda: self.call("admin.vm.notes.Set", "", name, notes)


NOT_CLONED = frozenset({"name", "qid", "uuid", "label", "template", "ip", "ip6", "mac", "dispid", "backup_timestamp"})
"""Properties that are unique to one qube, or are given at its creation."""
