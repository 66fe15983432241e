"""How many disposables of which templates are to wait: what a person has said, else what was used lately."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

from casemate.model import preloading
from casemate.model.domain import Domain
from casemate.model.system import System

BY_USE = 2
"""Limit of the store: disposables of one template that wait though nobody has said how many are to."""
USED_SECONDS = 600.0
"""How long a use counts."""


class Wanted:
    """Owns the moments of the last uses, ``BY_USE`` for each template."""

    def __init__(self, is_warm: Callable[[str], bool]) -> None:
        """``is_warm(template)``: whether its disposables have a warm image to go on from. Others wait only when a
        person has said so: each costs a boot and the memory of a whole qube."""
        self._is_warm = is_warm
        self._moments: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=BY_USE))

    def note(self, template: str) -> None:
        """A disposable of the template is used now."""
        self._moments[template].append(time.monotonic())

    def count(self, system: System, template: Domain) -> int:
        """How many of a template are to wait."""
        said = preloading.wanted(system, template)
        if said is not None:
            return said
        return self._lately(template.name) if self._is_warm(template.name) else 0

    def templates(self, system: System) -> list[Domain]:
        """The templates of which some are to wait, or do. Those that were not used lately are forgotten."""
        for name in list(self._moments):
            if not self._lately(name):
                del self._moments[name]
        found = preloading.templates(system)
        names = {template.name for template in found}
        used = (system.domains.get(name) for name in self._moments if name not in names)
        return [*found, *(one for one in used if one is not None and getattr(one, "template_for_dispvms", False))]

    def _lately(self, template: str) -> int:
        """How many uses of a template still count."""
        since = time.monotonic() - USED_SECONDS
        return sum(moment > since for moment in self._moments.get(template, ()))

    def seconds_until_fewer(self, template: str) -> float | None:
        """When the first of them counts no more; None where none counts."""
        since = time.monotonic() - USED_SECONDS
        return min((moment - since for moment in self._moments.get(template, ()) if moment > since), default=None)
