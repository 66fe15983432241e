"""What pages about several qubes ask for: all qubes with chosen properties and features, in one call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from casemate.web.admin_api import AdminApi


@dataclass(frozen=True, slots=True)
class Listed:
    """A qube as ``admin.casemate.List`` has it."""

    name: str
    klass: str
    state: str
    properties: dict[str, str]
    """Those that were asked for and that its class has; empty text for none."""
    features: dict[str, str]

    @property
    def runs(self) -> bool:
        """Whether it has a machine."""
        return self.state not in ("Halted", "NA")


async def inventory(api: AdminApi, properties: list[str], features: list[str]) -> list[Listed]:
    """All qubes, dom0 first."""
    wish = {"properties": sorted(properties), "features": sorted(features)}
    found: list[dict[str, Any]] = json.loads(await api.call("admin.casemate.List", payload=json.dumps(wish)))
    return [
        Listed(
            one["name"], one["class"], one["state"],
            {name: str(prop["value"]) for name, prop in one.get("properties", {}).items()},
            {name: str(text) for name, text in one.get("features", {}).items()},
        )
        for one in found
    ]  # fmt: skip
