"""Methods of features."""

from __future__ import annotations

from casemate.api.method import Access, method
from casemate.model import preloading, uplinks
from casemate.model.domain import Domain
from casemate.model.features import feature_value
from casemate.wire import names
from casemate.wire.errors import FeatureNotFoundError, PermissionDeniedError

BALANCED = "service.meminfo-writer"

_LOOKUPS = {
    "CheckWithTemplate": {"template": True},
    "CheckWithNetvm": {"netvm": True},
    "CheckWithAdminVM": {"admin": True},
    "CheckWithTemplateAndAdminVM": {"template": True, "admin": True},
}


@method("admin.vm.feature.List", Access.READ)
def list_features(dest: Domain) -> str:
    """The names of the qube's features."""
    return "".join(f"{name}\n" for name in dest.features)


@method("admin.vm.feature.Get", Access.READ)
def get_feature(dest: Domain, arg: str) -> str:
    """The value of a feature."""
    return dest.features.find(names.feature_name(arg))


@method("admin.vm.feature.{lookup}", Access.READ, lookup=_LOOKUPS)
def check_feature(lookup: str, dest: Domain, arg: str) -> str:
    """The value of a feature here, or where the lookup goes on: template, net qube, admin qube."""
    found = dest.features.check(names.feature_name(arg), **_LOOKUPS[lookup])
    if found is None:
        raise FeatureNotFoundError(f"{dest.name}: no feature {arg!r}, nor where its value could come from")
    return found


@method("admin.vm.feature.Set", Access.WRITE)
def set_feature(dest: Domain, arg: str, payload: str = "") -> None:
    """Give a feature a value; empty means false. ``service.meminfo-writer`` becomes maxmem: its default, or 0."""
    if arg in names.KEPT_FEATURES:
        raise PermissionDeniedError
    if arg == BALANCED and dest.has("maxmem"):
        # Whether memory is balanced is said by maxmem; the feature is an old way to say it.
        feature_value(payload)
        if payload:
            dest.reset("maxmem")
        else:
            dest.set("maxmem", 0)
        return
    preloading.check(arg, payload)
    uplinks.check(arg, payload)
    dest.features.set(arg, payload)


@method("admin.vm.feature.Remove", Access.WRITE)
def remove_feature(dest: Domain, arg: str) -> None:
    """Take a feature away."""
    if arg in names.KEPT_FEATURES:
        raise PermissionDeniedError
    dest.features.remove(names.feature_name(arg))
