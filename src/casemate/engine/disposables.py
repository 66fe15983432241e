"""Disposables: qubes with a name made up for them, which are removed when they halt."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping

from casemate.engine.create import Creator
from casemate.engine.power import Power
from casemate.engine.states import States
from casemate.host.hypervisor import PowerState
from casemate.model.domain import Domain
from casemate.store.store import Store
from casemate.wire.errors import CasemateError, NotFoundError, QubeError

log = logging.getLogger(__name__)

DISPOSABLE_NAMES = 9999
"""Limit of the store: numbers of disposables."""
QUARANTINE_SECONDS = 24 * 3600.0
"""Limit of the store (seconds): time until a disposable's name is used again."""
_ATTEMPTS = 100
"""Random names tried before giving up. With half of all names taken, all of them fail once in 10^30 times."""


class Disposables:
    """Makes disposables and removes them; owns the list of names in quarantine."""

    def __init__(self, store: Store, creator: Creator, power: Power, states: States) -> None:
        self._store = store
        self._creator = creator
        self._power = power
        self._states = states
        self._last_use: dict[str, float] = {}

    def base(self, template: str | None) -> Domain:
        """The disposable template of that name (None: the default one); QubeError for anything else."""
        system = self._store.snapshot()
        if template is None:
            default = system.default_dispvm
            if default is None:
                raise QubeError("There is no default disposable template: name one, or set default_dispvm")
            template = default.name
        base = system.domains[template]
        if not getattr(base, "template_for_dispvms", False):
            raise QubeError(f"{template} is not a template for disposables (property template_for_dispvms)")
        return base

    async def create(
        self, template: str | None, creator: str = "dom0", features: Mapping[str, str] | None = None
    ) -> str:
        """A new halted disposable of the disposable template (None: the default one); returns its name."""
        base, system = self.base(template), self._store.snapshot()
        now = time.monotonic()
        for _attempt in range(_ATTEMPTS):
            dispid = 1 + secrets.randbelow(DISPOSABLE_NAMES)
            name = f"disp{dispid}"
            if name not in system.domains and now - self._last_use.get(name, float("-inf")) > QUARANTINE_SECONDS:
                break
        else:
            raise QubeError("No free name for a disposable")
        self._last_use[name] = now
        await self._creator.create(
            "DispVM", name, base.label.name, base.name,
            dispid=dispid, creator=creator, properties={"auto_cleanup": True}, features=features,
        )  # fmt: skip
        return name

    async def end(self, name: str) -> None:
        """Kill and remove a disposable. Does nothing for one that is gone, and for any other qube."""
        domain = self._store.snapshot().domains.get(name)
        if domain is None or domain.klass != "DispVM":
            return
        try:
            if self._states.of(name) is not PowerState.HALTED:
                await self._power.kill(name)
            # Whoever hears first that the machine has ended removes the disposable: perhaps not the kill, and not yet.
            await self.remove_halted(name)
        except CasemateError as error:
            log.warning("disposable %s: %s", name, error)

    async def remove_halted(self, name: str) -> None:
        """Remove a halted qube if it is a disposable that is to be removed when it halts."""
        domain = self._store.snapshot().domains.get(name)
        if domain is not None and domain.klass == "DispVM" and getattr(domain, "auto_cleanup", False):
            try:
                await self._creator.remove(name)
            except NotFoundError:
                pass  # somebody else was first
