"""Features that a qube may ask to have (``qubes.FeaturesRequest``), whose values are therefore its word; pure."""

from __future__ import annotations

ONCE = ("qrexec", "gui", "gui-emulated")
"""Features that are 0 or 1, accepted only while the qube has no such feature, so that a person's setting stays."""
FREE = ("qubes-firewall", "vmexec")
"""Features that are 0 or 1, always as the qube says."""
TEXT = ("os", "os-distribution", "os-distribution-like", "os-version", "os-eol", "qubes-agent-version")
"""Features with a text, always as the qube says."""
SUPPORTED = ("supported-service.", "supported-feature.", "supported-rpc.")
"""Prefixes of features that are 1. A request with some of one prefix removes the others that the qube has of it."""


def may_be_asked(name: str) -> bool:
    """Whether a qube may have chosen this feature, or its value."""
    return name in ONCE or name in FREE or name in TEXT or name.startswith(SUPPORTED)
