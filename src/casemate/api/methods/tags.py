"""Methods of tags."""

from __future__ import annotations

from casemate.api.method import Access, method
from casemate.model.classes import tagged
from casemate.model.domain import Domain
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import PermissionDeniedError

OURS = tuple(f"{name}-" for name in tagged())
"""Prefixes of tags that the daemon derives from properties; nobody else may change them."""


def _check(tag: str, source: str) -> None:
    if tag.startswith(OURS) or (tag.startswith("created-by-") and source != ADMIN):
        raise PermissionDeniedError


@method("admin.vm.tag.List", Access.READ)
def list_tags(dest: Domain) -> str:
    """The qube's tags."""
    return "".join(f"{tag}\n" for tag in dest.tags)


@method("admin.vm.tag.Get", Access.READ)
def get_tag(dest: Domain, arg: str) -> str:
    """1 if the qube has the tag, else 0."""
    return "1" if names.tag_name(arg) in dest.tags else "0"


@method("admin.vm.tag.Set", Access.WRITE)
def set_tag(dest: Domain, source: str, arg: str) -> None:
    """Put a tag on the qube."""
    _check(arg, source)
    dest.tags.add(arg)


@method("admin.vm.tag.Remove", Access.WRITE)
def remove_tag(dest: Domain, source: str, arg: str) -> None:
    """Take a tag off the qube."""
    _check(arg, source)
    dest.tags.remove(str(names.tag_name(arg)))
