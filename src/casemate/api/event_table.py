"""Every event that subscribers can get: about what, with which details, when. The reference page is written from this.

Names and details are upstream's (protocol page, sections 3.4 and 7.5). ``*`` in a name stands for what its details say.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventDoc:
    """One event, or some that come one after the other with the same details."""

    names: tuple[str, ...]
    about: str
    """``qube``, ``system`` (empty subject), or both."""
    details: tuple[str, ...]
    """Keys; one in brackets is there only where it applies."""
    when: str


def _doc(names: str, about: str, details: str, when: str) -> EventDoc:
    return EventDoc(tuple(names.split()), about, tuple(details.split()), when)


EVENTS: dict[str, tuple[EventDoc, ...]] = {
    "Subscription": (
        _doc("connection-established", "system", "", "first of all, also after the daemon was replaced: what was "
             "known before may be stale"),
    ),
    "Settings": (
        _doc("property-pre-set:* property-set:*", "qube or system", "name newvalue [oldvalue]", "a property was set"),
        _doc("property-pre-reset:* property-pre-del:* property-reset:* property-del:*", "qube or system",
             "name [oldvalue]", "a property has its default again"),
        _doc("property-reset:*", "qube", "name", "a property has another value because what it depends on changed: "
             "icon with label, a default with the system's, xid, stubdom_xid and start_time at start and stop"),
        _doc("domain-feature-pre-set:* domain-feature-set:*", "qube", "feature value [oldvalue]", "a feature was set"),
        _doc("domain-feature-pre-delete:* domain-feature-delete:*", "qube", "feature", "a feature was taken away"),
        _doc("domain-tag-add:*", "qube", "tag", "a tag was put on"),
        _doc("domain-tag-delete:*", "qube", "tag", "a tag was taken off"),
        _doc("firewall-changed", "qube", "", "the firewall's rules were set, or are to be read again"),
    ),
    "Life of a qube": (
        _doc("domain-add", "system", "vm", "a qube was made"),
        _doc("domain-create-on-disk", "qube", "", "its volumes are there too"),
        _doc("domain-pre-delete domain-delete", "system", "vm", "a qube is being removed; it was"),
        _doc("domain-pre-start", "qube", "start_guid mem_required", "a start begins (mem_required in bytes)"),
        _doc("domain-pre-spawn domain-spawn", "qube", "start_guid", "its machine is about to be made; it was, and is "
             "still paused"),
        _doc("domain-qdb-create", "qube", "", "its database is there"),
        _doc("domain-start", "qube", "start_guid", "its agent answers: it can be used"),
        _doc("domain-start-failed", "qube", "reason", "a start was given up; all of it was taken back"),
        _doc("domain-pre-paused domain-paused", "qube", "", "its time is about to be stopped; it was"),
        _doc("domain-pre-unpaused domain-unpaused", "qube", "", "it goes on; also within a start"),
        _doc("domain-pre-shutdown", "qube", "force", "it is asked to stop"),
        _doc("domain-shutdown-failed", "qube", "reason", "it did not stop"),
        _doc("domain-stopped domain-shutdown", "qube", "", "its machine has ended; all that belonged to it is cleared"),
    ),
    "Volumes and pools": (
        _doc("domain-volume-import-begin", "qube", "volume size", "data for a volume comes in"),
        _doc("domain-volume-import-end", "qube", "volume success", "it was put in place (True), or dropped"),
        _doc("pool-add", "system", "pool", "a pool was added"),
        _doc("pool-pre-delete pool-delete", "system", "pool", "a pool was removed"),
    ),
    "Devices": (
        _doc("device-added:*", "qube", "device", "the qube (dom0: this host) offers a device more"),
        _doc("device-removed:*", "qube", "port", "it offers a device less"),
        _doc("device-list-change:*", "qube", "", "what it offers is another"),
        _doc("device-pre-assign:* device-assign:*", "qube", "device options", "the qube is to get a device"),
        _doc("device-assignment-changed:*", "qube", "device", "it is to get it in another way"),
        _doc("device-unassign:*", "qube", "device", "it is no more to get it"),
        _doc("device-pre-attach:* device-attach:*", "qube", "device options", "it gets a device; it has it"),
        _doc("device-pre-detach:* device-detach:*", "qube", "port", "a device is taken from it; it was"),
    ),
    "What a qube says of itself": (
        _doc("features-request", "qube", "untrusted_features", "it asks for features; those taken are events of their "
             "own"),
        _doc("template-postinstall", "qube", "", "it has said for the first time that it can be called"),
    ),
    "Statistics": (
        _doc("vm-stats", "qube", "memory_kb memory_assigned_total memory_assigned_usable memory_with_swap_used "
             "cpu_time cpu_usage online_vcpus", "every `stats_interval` seconds, on the stream of `admin.vm.Stats` "
             "alone (KiB, ms, per cent of one processor)"),
    ),
}  # fmt: skip
"""By subject, in the order in which they come."""


def documented(name: str) -> bool:
    """Whether an event's name is in the table."""
    pattern = name.partition(":")[0] + ":*" if ":" in name else name
    return pattern in _NAMES


_NAMES = frozenset(name for docs in EVENTS.values() for doc in docs for name in doc.names)
