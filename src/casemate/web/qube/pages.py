"""The tabs and dialogs of qubes as one page of the manager's."""

from __future__ import annotations

from starlette.routing import Route

from casemate.web.qube import console, devices, features, firewall, lifecycle, log, programs, settings, volumes
from casemate.web.site import Site

_PARTS = (settings, features, volumes, devices, firewall, programs, log, console, lifecycle)


class QubePages:
    """All that is shown and changed of single qubes."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        """The addresses of all tabs and dialogs."""
        return [route for part in _PARTS for route in part.routes(self._site)]
