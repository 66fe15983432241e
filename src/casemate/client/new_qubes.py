"""The Admin API for a restore: no call but about qubes that it has made itself.

A backup says how its qubes are called. Whatever it says, and whatever a mistake in a restore makes of that, no qube
that was there before is touched, and nothing of the host is set.
"""

from __future__ import annotations

from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.wire.admin import ADMIN
from casemate.wire.errors import PermissionDeniedError

_CREATES = "admin.vm.Create."


class NotOursError(PermissionDeniedError):
    """A restore would have changed a qube that it has not made."""


class NewQubes(Qubes):
    """As ``Qubes``, to write to. One restore has one; ``made`` are the names of what it has created."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.made: set[str] = set()

    def call(self, method: str, arg: str = "", dest: str = ADMIN, payload: str | bytes = b"") -> str:
        """See ``Qubes``; NotOursError for one about anything else."""
        if not (method.startswith(_CREATES) and dest == ADMIN):
            self.check(dest)
        return super().call(method, arg, dest, payload)

    def check(self, name: str) -> str:
        """The name of a qube that was made here; NotOursError for any other."""
        if name not in self.made:
            raise NotOursError(f"{name} was not made by this restore, so it is not changed")
        return name

    def create(
        self,
        klass: str,
        name: str,
        label: str,
        template: str | None = None,
        pools: dict[str, str] | None = None,
        restored_by: int = 0,
    ) -> None:
        """See ``Qubes``. What the daemon does not create, because it is there, does not become ours."""
        super().create(klass, name, label, template, pools, restored_by)
        self.made.add(name)

    def remove(self, dest: str) -> None:
        """See ``Qubes``."""
        super().remove(dest)
        self.made.discard(dest)
