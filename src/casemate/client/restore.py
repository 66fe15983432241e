"""Puts qubes of a backup in place through the Admin API: what must be known before, and what is done meanwhile.

A qube is created with its settings, marked incomplete; then its volumes come in. The mark is taken away when the reader
of the backup says that the qube is whole; else the qube is removed. While it has the mark it cannot be started. So
neither a failed restore nor a killed one leaves a qube that looks as if it could be used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from casemate.backup.contents import Contents, StoredQube
from casemate.backup.reader import Report, Verdict
from casemate.backup.restored_firewall import RULES, rules_of
from casemate.client.new_qubes import NewQubes
from casemate.client.qubes import NOT_CLONED, Qubes
from casemate.client.volume_import import VolumeImport, begin_import
from casemate.wire import names
from casemate.wire.admin import NOT_RESTORED, PROHIBIT_START, RESTORE_INCOMPLETE, ListedQube
from casemate.wire.errors import CasemateError, DaemonAccessError, InUseError, NotFoundError, printable

_MAX_NAME = 31
_NOT_TAKEN = ("created-by-", "audiovm-", "guivm-", "backup-restore-")
"""How tags begin that say something about this host, and are its own to set."""
_REFERENCES = ("netvm", "default_dispvm", "management_dispvm", "audiovm", "guivm")
_PAIRED = frozenset({*NOT_CLONED, *_REFERENCES, "stubdom_mem"})
"""Properties that are not simply set: unique ones, references to other qubes, those of hardware that is not here."""


class RestoreError(CasemateError):
    """The backup cannot be restored as asked; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user decided. ``only`` None: all qubes of the backup. ``distrust``: whoever made it may be hostile."""

    only: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()
    skip_conflicting: bool = False
    rename_conflicting: bool = False
    ignore_missing: bool = False
    skip_broken: bool = False
    keep_damaged: bool = False
    distrust: bool = False


@dataclass(slots=True)
class Planned:
    """A qube that will be made. ``name`` is its new name."""

    stored: StoredQube
    name: str
    label: str
    template: str | None = None


@dataclass(slots=True)
class Plan:
    """What will be done: qubes by their name in the backup, what is left out and why, what is worth knowing."""

    qubes: dict[str, Planned] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan(contents: Contents, qubes: Qubes, options: Options) -> Plan:
    """Decide names, templates and labels. RestoreError names all that stands in the way, and what to say about it."""
    found = Plan()
    listed = {one.name: one for one in qubes.listed()}
    labels = set(qubes.call("admin.label.List").split())
    chosen = wanted(contents, options)
    problems: list[str] = []
    for stored in chosen:
        name: str | None = stored.name
        if stored.name in listed:
            name = None
            if options.rename_conflicting:
                name = free_name(stored.name, listed, found)
                found.notes.append(f"{stored.name} is there already; the restored one is called {name}")
            elif options.skip_conflicting:
                found.left_out[stored.name] = "is there already"
            else:
                problems.append(f"{stored.name} is there already (--rename-conflicting or --skip-conflicting)")
        if name is None:
            continue
        label = stored.properties.get("label", "red")
        if label not in labels:
            found.notes.append(f"{stored.name}: there is no label {printable(label, 40)!r} here; it becomes red")
            label = "red"
        found.qubes[stored.name] = Planned(stored, name, label)
    for name, planned in list(found.qubes.items()):
        why = _find_template(planned, found, listed, qubes, options)
        if why and options.skip_broken:
            del found.qubes[name]
            found.left_out[name] = why
        elif why:
            problems.append(f"{name}: {why} (--ignore-missing takes the default, --skip-broken leaves it out)")
    if options.distrust:
        for planned in found.qubes.values():
            _distrust(planned, found.notes)
    if problems:
        raise RestoreError("This cannot be restored as it is:\n" + "\n".join(f"  {one}" for one in problems))
    return found


def _distrust(planned: Planned, notes: list[str]) -> None:
    """Mark a qube for good as one of a backup that is not trusted, and tell what of it reaches beyond it."""
    stored = planned.stored
    if stored.properties.pop("autostart", "False") == "True":
        notes.append(f"{planned.name}: it would be started with this host; that is left out (property autostart)")
    if tags := [tag for tag in stored.tags if not tag.startswith(_NOT_TAKEN)]:
        shown = printable(", ".join(sorted(tags)), 300)
        notes.append(f"{planned.name}: it has the tags {shown}; rules of the policy that name them hold for it")
    stored.tags.append(f"restored-from-backup-at-{time.strftime('%Y-%m-%d')}")


def wanted(contents: Contents, options: Options) -> list[StoredQube]:
    """The qubes that are asked for; RestoreError for a name that is not in the backup."""
    for name in sorted((options.only or frozenset()) | options.exclude):
        if name not in contents.qubes:
            raise RestoreError(
                f"{printable(name, 40)} is not in the backup; there are: {', '.join(sorted(contents.qubes))}"
            )
    return [
        one
        for one in contents.qubes.values()
        if (options.only is None or one.name in options.only) and one.name not in options.exclude
    ]


def free_name(name: str, listed: Mapping[str, object], found: Plan) -> str:
    """A name like this that nobody has: with a number at its end. RestoreError after 99."""
    taken = {*listed, *(planned.name for planned in found.qubes.values())}
    for number in range(1, 100):
        candidate = f"{name[: _MAX_NAME - 3]}-{number}"
        if candidate not in taken:
            return candidate
    raise RestoreError(f"There are 99 qubes like {name} already")


def _find_template(
    planned: Planned, found: Plan, listed: Mapping[str, ListedQube], qubes: Qubes, options: Options
) -> str:
    """Set the template of a planned qube; the reason when there is none."""
    if planned.stored.klass not in ("AppVM", "DispVM"):
        return ""
    wanted = planned.stored.properties.get("template", "")
    other = found.qubes.get(wanted)
    if other is not None:
        planned.template = other.name
        return ""
    klass = "TemplateVM" if planned.stored.klass == "AppVM" else "AppVM"
    here = listed.get(wanted)
    if here is not None and here.klass == klass:
        planned.template = wanted
        return ""
    if options.ignore_missing:
        default = qubes.get(None, "default_template" if klass == "TemplateVM" else "default_dispvm").text
        if default:
            planned.template = default
            found.notes.append(
                f"{planned.stored.name}: its template {printable(wanted, 40)} is missing; {default} is taken"
            )
            return ""
    return f"its template {printable(wanted, 40) or 'has no name, and'} is neither here nor restored"


class Restore:
    """The target of the reader: creates the planned qubes, takes their data, keeps or removes them in the end.

    ``create`` first, then the reader's run, then ``settle``; ``undo`` instead of the last when the run was broken off.
    """

    def __init__(self, qubes: Qubes, planned: Plan, progress: Callable[[int], object] = lambda _count: None) -> None:
        self.progress = progress
        self.notes = planned.notes
        self._qubes = NewQubes(qubes.transport)
        self._plan = planned
        self._created: list[str] = []
        self._volume: VolumeImport | None = None

    # -- before

    def create(self) -> None:
        """Make the qubes, with their settings; all or none."""
        try:
            for planned in _in_order(self._plan.qubes.values()):
                self._create(planned)
            for planned in self._plan.qubes.values():
                self._refer(planned)
        except BaseException:
            self.undo()
            raise

    def _create(self, planned: Planned) -> None:
        stored, name = planned.stored, planned.name
        self._qubes.create(stored.klass, name, planned.label, planned.template, restored_by=os.getpid())
        self._created.append(name)
        call = self._qubes.call
        known = set(self._qubes.property_names(name))
        for key, value in stored.properties.items():
            if key in known and key not in _PAIRED and not key.startswith("backup_"):
                self._try(f"property {key}", name, partial(self._qubes.set, name, key, value))
        for key, value in stored.features.items():
            if key in names.KEPT_FEATURES or key in (RESTORE_INCOMPLETE, PROHIBIT_START):
                continue
            self._try(f"feature {printable(key, 60)}", name, partial(call, "admin.vm.feature.Set", key, name, value))
        for tag in stored.tags:
            if not tag.startswith(_NOT_TAKEN):
                self._try(f"tag {tag}", name, partial(call, "admin.vm.tag.Set", tag, name))
        if stored.devices:
            self.notes.append(f"{name}: {stored.devices} assignments of devices were left out; assign them anew")

    def _refer(self, planned: Planned) -> None:
        """Set what refers to other qubes, now that all of them are there."""
        name = planned.name
        known = set(self._qubes.property_names(name))
        for key in _REFERENCES:
            wanted = planned.stored.properties.get(key)
            if wanted is None or key not in known:
                continue
            other = self._plan.qubes.get(wanted)
            target = other.name if other is not None else wanted
            self._try(f"{key} {printable(target, 40)}", name, partial(self._qubes.set, name, key, target))

    def _try(self, what: str, name: str, action: Callable[[], object]) -> None:
        """Do what may fail here without harm to the data: the user is told."""
        try:
            action()
        except DaemonAccessError:
            raise
        except CasemateError as error:
            self.notes.append(f"{name}: {what} was not taken over: {error}")

    # -- what the reader calls

    def volume(self, qube: StoredQube, name: str) -> VolumeImport:
        """See ``Target``."""
        self._let_go()
        self._volume = begin_import(self._qubes.transport, self._qubes.check(self._plan.qubes[qube.name].name), name)
        return self._volume

    def finish_volume(self, qube: StoredQube, name: str) -> None:
        """See ``Target``."""
        assert self._volume is not None
        volume, self._volume = self._volume, None
        volume.finish()

    def file(self, qube: StoredQube, name: str, data: bytes) -> None:
        """See ``Target``."""
        target = self._plan.qubes[qube.name].name
        if name in ("firewall.xml", RULES):
            rules = rules_of(data) if name == "firewall.xml" else data.decode("utf-8", "replace")
            if not rules:
                rules = "action=drop\n"
                self.notes.append(f"{target}: its firewall rules cannot be read; until you set new ones all is dropped")
            self._qubes.call("admin.vm.firewall.Set", "", target, rules)
        elif name == "notes.txt":
            self._qubes.call("admin.vm.notes.Set", "", target, data.decode("utf-8", "replace"))

    def _let_go(self) -> None:
        if self._volume is not None:
            self._volume.close()
            self._volume = None

    # -- after

    def settle(self, report: Report, keep_damaged: bool) -> None:
        """Keep what is whole, remove the rest; with ``keep_damaged`` it stays, marked, and cannot be started."""
        self._let_go()
        broken = {name for name, verdict in report.verdicts.items() if verdict.state != "whole"}
        # A qube stands on its template's disk: without the template it is not what it was. In the order of creation, so
        # that a template of disposables is judged before them.
        for planned in _in_order(self._plan.qubes.values()):
            name, base = planned.stored.name, planned.stored.properties.get("template", "")
            if base in broken and name not in broken and planned.template == self._plan.qubes[base].name:
                report.verdicts[name] = Verdict(name, "damaged", f"its template {base} is not whole")
                broken.add(name)
        for name, planned in self._plan.qubes.items():
            if name not in broken:
                self._part_from(planned, broken)
                self._allow(planned)
                self._created.remove(planned.name)
        if keep_damaged:
            self._created.clear()
        else:
            self.undo()

    def _part_from(self, planned: Planned, broken: set[str]) -> None:
        """Take away what refers to qubes that are not kept. No network is safer than another one."""
        known = set(self._qubes.property_names(planned.name))
        for key in _REFERENCES:
            wanted = planned.stored.properties.get(key)
            if wanted in broken and key in known:
                self._try(f"{key} {wanted}", planned.name, partial(self._qubes.set, planned.name, key, ""))
                self.notes.append(f"{planned.name}: {wanted} is not whole, so its {key} is none now")

    def _allow(self, planned: Planned) -> None:
        """Let a qube be used that is whole."""
        # In this order: killed in between, a qube that is whole cannot be started, and the next restore lets it.
        self._qubes.unset_feature(planned.name, RESTORE_INCOMPLETE)
        reason = planned.stored.features.get(PROHIBIT_START)
        if reason is None:
            self._qubes.unset_feature(planned.name, PROHIBIT_START)
        else:
            self._qubes.call("admin.vm.feature.Set", PROHIBIT_START, planned.name, reason)

    def undo(self) -> None:
        """Remove the qubes that were made and are not whole, users before what they use.

        What cannot be removed, because another qube has come to use it meanwhile, stays marked.
        """
        self._let_go()
        created, self._created = self._created, []
        _remove(self._qubes, created)


def _in_order(planned: Iterable[Planned]) -> list[Planned]:
    """Templates, then templates of disposables, then the rest: each finds what it is based on."""

    def rank(one: Planned) -> int:
        if one.stored.klass in ("TemplateVM", "StandaloneVM"):
            return 0
        return 2 if one.stored.klass == "DispVM" else 1

    return sorted(planned, key=rank)


def clear_up(qubes: Qubes) -> list[str]:
    """Remove qubes that a killed restore has left incomplete, and let those be started that it had completed. The names
    of the removed."""
    removed = []
    for one in qubes.inventory(features=(RESTORE_INCOMPLETE, PROHIBIT_START)):
        name, features = str(one["name"]), dict(one.get("features", {}))
        value = features.get(RESTORE_INCOMPLETE)
        if value is None:
            if features.get(PROHIBIT_START) == NOT_RESTORED:
                qubes.unset_feature(name, PROHIBIT_START)
        elif not _restores(names.number(value, "process") if str(value).isdecimal() else 0):
            removed.append(name)
    _remove(qubes, list(removed))
    return removed


def _remove(qubes: Qubes, doomed: list[str]) -> None:
    """Remove qubes, users before what they use; the last made first. What others use is left."""
    removed = True
    while removed and doomed:
        removed = False
        for name in reversed(doomed):
            try:
                qubes.remove(name)
            except InUseError:
                continue  # perhaps by one that goes in this round
            except NotFoundError:
                pass
            doomed.remove(name)
            removed = True
            break


def _restores(pid: int) -> bool:
    """Whether a process is a restore that goes on."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"backup-restore" in file.read()
    except OSError:
        return False


__all__ = ["Options", "Plan", "Restore", "RestoreError", "clear_up", "plan", "wanted"]
