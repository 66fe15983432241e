"""What every qube is doing now: one table, written by the engine's starts and stops and by the hypervisor's events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from uuid import UUID

from casemate.host.hypervisor import MachineInfo, PowerState

STUCK = "a disk of it has no room or fails"
"""Why a machine pauses by itself: libvirt stops it at a write that fails (error_policy in host/domain_xml_disk.py)."""


class States:
    """Names to MachineInfo; a qube that is not in the table is halted."""

    def __init__(self) -> None:
        self._known: dict[str, MachineInfo] = {}
        self._stuck: dict[str, str] = {}

    def all(self) -> Mapping[str, MachineInfo]:
        """The table; a live view."""
        return MappingProxyType(self._known)

    def stuck(self) -> Mapping[str, str]:
        """Qubes that stand still though nobody paused them, and why."""
        return {name: why for name, why in self._stuck.items() if self.of(name) is PowerState.PAUSED}

    def paused_by_itself(self, name: str, why: str) -> None:
        """A machine has paused although nobody asked for it. Holds until the qube goes on or halts."""
        self._stuck[name] = why

    def of(self, name: str) -> PowerState:
        """State of one qube."""
        info = self._known.get(name)
        return PowerState.HALTED if info is None else info.state

    def put(self, name: str, uuid: UUID, state: PowerState) -> None:
        """A start or stop of the engine's own begins or ends. This overrides whatever events said."""
        if state is not PowerState.PAUSED:
            self._stuck.pop(name, None)
        if state is PowerState.HALTED:
            self._known.pop(name, None)
            return
        old = self._known.get(name)
        new = replace(old, state=state) if old is not None else MachineInfo(name=name, uuid=uuid, state=state)
        self._known[name] = new

    def set_all(self, machines: Iterable[MachineInfo]) -> None:
        """Take over fresh figures of machines. The state of a start or stop in progress stays as the engine put it.

        Those of a machine that has ended are left out: its qube is halted when the lifecycle has taken it down, and
        the lifecycle takes none down that is halted already.
        """
        for info in machines:
            old = self._known.get(info.name)
            if old is not None and info.state is not PowerState.HALTED:
                transient = old.state in (PowerState.TRANSIENT, PowerState.HALTING)
                state = old.state if transient else info.state
                self._known[info.name] = replace(info, state=state, start_time=old.start_time)

    def created(self, info: MachineInfo, start_time: str) -> None:
        """A machine was created for a qube that is starting: its figures, and when that was."""
        self.set_all([info])
        if info.name in self._known:
            self._known[info.name] = replace(self._known[info.name], start_time=start_time)

    def adopt(self, info: MachineInfo, start_time: str | None) -> None:
        """A machine that an earlier daemon started; None where that daemon did not write down when."""
        self._known[info.name] = replace(info, start_time=start_time)
