"""What the host writes into a qube's database, at its start and when it changes (pure).

Keys: protocol page, QubesDB section 4.5.
"""

from __future__ import annotations

import base64

from casemate.engine.warm_image import is_being_made, mounts_later
from casemate.model.domain import Domain
from casemate.network.keys import Rules, network_keys
from casemate.wire.link import IMAGE_KEY, PRIVATE_SIZE_KEY

_SERVICE = "service."
_CONFIG = "vm-config."


def persistence(domain: Domain) -> str:
    """What of the qube outlives its stop: ``full``, ``rw-only`` (the private volume) or ``none``."""
    kept = {name for name, volume in domain.volumes.items() if volume is not None and volume.save_on_stop}
    if "root" in kept:
        return "full"
    return "rw-only" if "private" in kept else "none"


def machine_type(domain: Domain) -> str:
    """The value of ``/qubes-vm-type``: TemplateVM, NetVM, ProxyVM or AppVM."""
    if domain.klass == "TemplateVM":
        return "TemplateVM"
    if domain.provides_network:
        return "NetVM" if domain.netvm is None else "ProxyVM"
    return "AppVM"


_ONCE = frozenset({"/qubes-random-seed", "/qubes-block-devices", "/qubes-usb-devices", PRIVATE_SIZE_KEY})
"""Written at the start only: the seed is used up then, and the qube itself fills the lists of its devices."""


def follows_changes(key: str) -> bool:
    """Whether a key of ``database_content`` is written again when its value changes while the qube runs."""
    return key not in _ONCE


def database_content(domain: Domain, seed: bytes, timezone: str | None, rules: Rules) -> dict[str, str]:
    """Keys and values for a qube that is about to start; ``seed`` is 64 fresh random bytes. ``rules``: firewalls."""
    content = {
        "/name": domain.name,
        "/type": domain.klass,
        "/qubes-vm-type": machine_type(domain),
        "/qubes-vm-updateable": str(domain.updateable),
        "/qubes-vm-persistence": persistence(domain),
        "/default-user": domain.default_user,
        "/qubes-debug-mode": str(int(domain.debug)),
        "/qubes-random-seed": base64.b64encode(seed).decode(),
        "/qubes-block-devices": "",
        "/qubes-usb-devices": "",
    }
    if is_being_made(domain):
        content[IMAGE_KEY] = "1"
    private = domain.volumes.get("private")
    if private is not None and mounts_later(domain):
        content[PRIVATE_SIZE_KEY] = str(private.size)
    template = domain.template
    if template is not None:
        content["/qubes-base-template"] = template.name
    if timezone:
        content["/qubes-timezone"] = timezone
    for feature, value in domain.features.items():
        if feature.startswith(_SERVICE) and len(feature) <= len(_SERVICE) + 48:
            content[f"/qubes-service/{feature[len(_SERVICE) :]}"] = "1" if value else "0"
        elif feature.startswith(_CONFIG) and len(feature) <= len(_CONFIG) + 51:
            content[f"/vm-config/{feature[len(_CONFIG) :]}"] = value
    return content | network_keys(domain, rules)
