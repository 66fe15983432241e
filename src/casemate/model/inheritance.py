"""What a new disposable takes over from its template: settings, features and tags, as they are at that moment.

So a disposable has the network of its template, or none like it, and rules of the policy that name a tag hold for the
disposables of what has the tag. A setting whose default is that of the template is not copied: it follows the template.
The same is taken over in Qubes OS (``qubes/vm/dispvm.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

from casemate.model.defaults import FromTemplate
from casemate.model.domain import Domain
from casemate.model.features import PRELOADED
from casemate.model.properties import Setting, Stored
from casemate.wire.names import KEPT_FEATURES

OWN = frozenset(
    {"autostart", "backup_timestamp", "include_in_backups", "installed_by_rpm", "ip", "ip6", "label", "mac", "template"}
)
"""Properties that say something about one qube, or are given when it is made."""
CREATED_BY = "created-by-"


def properties(template: Domain, klass: type[Domain]) -> Mapping[str, Stored]:
    """What was set on the template, as far as a qube of the class has it."""
    known = klass.properties()
    return {
        name: stored
        for name, stored in template.values().items()
        if name in known
        and name not in OWN
        and known[name].setting is Setting.FREE
        and not isinstance(known[name].default, FromTemplate)
    }


def features(template: Domain) -> dict[str, str]:
    """Its features, but for those that say how many disposables it has waiting, and which."""
    return {
        name: value
        for name, value in template.features.items()
        if name not in KEPT_FEATURES and not name.startswith(PRELOADED)
    }


def tags(template: Domain) -> set[str]:
    """Its tags, but for that of who made it."""
    return {tag for tag in template.tags if not tag.startswith(CREATED_BY)}
