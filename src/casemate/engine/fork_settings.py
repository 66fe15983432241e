"""What forks take over from the qube that they are made of, besides its memory and disks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casemate.model import preloading
from casemate.model.domain import Domain
from casemate.wire.firewall import Rule, format_rules, parse_rules

_AS_IS = (
    "memory", "vcpus", "kernel", "kernelopts", "netvm", "mac", "default_user", "qrexec_timeout", "shutdown_timeout",
    "default_dispvm", "guivm", "audiovm",
)  # fmt: skip
"""Properties of the qube that its forks have too: their machine must be the same, and they must reach no more."""


@dataclass(frozen=True, slots=True)
class ForkSettings:
    """Settings of a qube at the moment of its copy. ``base``: the disposable template that its forks are based on."""

    qube: str
    base: str
    properties: Mapping[str, str]
    features: Mapping[str, str]
    tags: Sequence[str]
    rules: Sequence[Rule]

    @classmethod
    def of(cls, domain: Domain, base: str, rules: Sequence[Rule]) -> ForkSettings:
        """Those that a qube has now; ``rules``: those of its firewall."""
        return cls(
            qube=domain.name,
            base=base,
            properties={name: domain.text(name) for name in _AS_IS if domain.has(name)},
            features={
                name: value for name, value in domain.features.items() if not preloading.is_of_one_that_waits(name)
            },
            tags=sorted(domain.tags),
            rules=list(rules),
        )

    def give(self, domain: Domain) -> None:
        """Set properties and tags of a new disposable, within a transaction; PropertyValueError for one that cannot be
        set any more, as when its net qube is gone."""
        for name, text in self.properties.items():
            if domain.has(name) and domain.text(name) != text:
                domain.set_text(name, text)
        for tag in self.tags:
            domain.tags.add(tag)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "qube": self.qube,
            "base": self.base,
            "properties": dict(self.properties),
            "features": dict(self.features),
            "tags": list(self.tags),
            "firewall": format_rules(self.rules),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ForkSettings:
        """From ``to_json``; KeyError, TypeError, ValueError or ProtocolError for anything else."""
        return cls(
            qube=str(data["qube"]),
            base=str(data["base"]),
            properties={str(name): str(text) for name, text in data["properties"].items()},
            features={str(name): str(text) for name, text in data["features"].items()},
            tags=[str(tag) for tag in data["tags"]],
            rules=parse_rules(str(data["firewall"])),
        )
