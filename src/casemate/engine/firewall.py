"""The firewall rules of qubes: whose rules apply, read and replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from casemate.engine.qube_files import QubeFiles
from casemate.model.domain import Domain
from casemate.wire import events as ev
from casemate.wire.api_event import ApiEvent
from casemate.wire.errors import StoreError
from casemate.wire.firewall import Rule

log = logging.getLogger(__name__)


class Firewalls:
    """The rules of all qubes. Owns nothing: they are files beside the collection."""

    def __init__(self, files: QubeFiles, say: Callable[[ApiEvent], None]) -> None:
        self._files = files
        self._say = say

    def _owner(self, domain: Domain) -> Domain:
        """The qube whose rules apply: a disposable without rules of its own has those of its template."""
        if domain.klass == "DispVM" and domain.template is not None and not self._files.has_rules(domain.uuid):
            return domain.template
        return domain

    def rules(self, domain: Domain) -> list[Rule]:
        """The qube's rules that have not expired; StoreError when they cannot be read."""
        return self._files.rules(self._owner(domain).uuid)

    def rules_or_none(self, domain: Domain) -> list[Rule] | None:
        """The same; None when they cannot be read, which means that nothing may pass."""
        try:
            return self.rules(domain)
        except StoreError as error:
            log.error("%s has no network until this is mended: %s", domain.name, error)
            return None

    async def write(self, domain: Domain, rules: Sequence[Rule]) -> None:
        """Replace all rules of the qube. Nobody hears of it before ``announce``."""
        await asyncio.to_thread(self._files.set_rules, domain.uuid, rules)

    def announce(self, domain: Domain) -> None:
        """Have everybody read the rules again."""
        self._say(ev.FirewallChanged(domain.name))
