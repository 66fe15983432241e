"""The store in backups of versions 2 and 3: each qube one element, everything about it an attribute."""

from __future__ import annotations

import ast

from casemate.backup import contents
from casemate.backup.contents import Contents, StoredQube, StoredVolume
from casemate.backup.errors import RefusedError
from casemate.wire import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.backup.contents import _Element

_CLASSES = {
    "QubesTemplateVm": "TemplateVM", "QubesTemplateHVm": "TemplateVM", "QubesNetVm": "AppVM", "QubesProxyVm": "AppVM",
    "QubesAppVm": "AppVM", "QubesDisposableVm": "AppVM", "QubesHVm": "StandaloneVM",
}  # fmt: skip
"""A disposable's template was an ordinary qube, and is written as a ``QubesDisposableVm`` with an image of its own."""
_NET = ("QubesNetVm", "QubesProxyVm")
_HVM = ("QubesHVm", "QubesTemplateHVm")
_LABELS = {
    str(index): name
    for index, name in enumerate(("red", "orange", "yellow", "green", "gray", "blue", "purple", "black"), 1)
}
_SAME = ("memory", "maxmem", "vcpus", "kernelopts", "default_user", "debug", "autostart", "include_in_backups")
_RENAMED = {"ntpd": "clocksync", "qubes-update-check": "qubes-update-check", "meminfo-writer": "meminfo-writer"}
_NONE = ("", "none", "None")


def parse_r3(root: _Element) -> Contents:
    """The qubes that such a store describes; raises RefusedError and what its values raise."""
    elements = [one for one in root.children if one.tag in _CLASSES]
    by_qid = {one.attributes.get("qid", ""): str(names.qube_name(one.attributes["name"])) for one in elements}
    if len(by_qid) != len(elements):
        raise RefusedError("The store of the backup has a qid twice")
    out: dict[str, StoredQube] = {}
    for element in elements:
        if element.attributes.get("backup_content") == "True":
            contents.add(out, _qube(element, by_qid))
    home = ""
    for element in root.all("QubesAdminVm"):
        if element.attributes.get("backup_content") == "True":
            home = element.attributes.get("backup_path", "")
    defaults = {}
    for key in ("default_template", "default_netvm", "updatevm", "clockvm"):
        if (qid := root.attributes.get(key, "None")) in by_qid:
            defaults[key] = by_qid[qid]
    return Contents(out, home, defaults)


def _qube(element: _Element, by_qid: dict[str, str]) -> StoredQube:
    given = element.attributes
    klass = _CLASSES[element.tag]
    template = given.get("template_qid", "None")
    if klass == "StandaloneVM" and template not in _NONE:
        klass = "AppVM"
    elif klass == "AppVM" and template in _NONE:
        klass = "StandaloneVM"
    name = by_qid[given.get("qid", "")]
    path = given.get("backup_path", "")
    qube = StoredQube(
        name, klass, path if path.endswith("/") else f"{path}/", contents.number(given.get("backup_size", "0"))
    )
    label = given.get("label", "red")
    qube.properties["label"] = _LABELS.get(label, label)
    for key in _SAME:
        if given.get(key, "None") not in _NONE:
            qube.properties[key] = given[key]
    if given.get("uses_default_kernelopts") == "True":
        qube.properties.pop("kernelopts", None)
    if klass == "AppVM":
        if template not in by_qid:
            raise RefusedError(f"The store of the backup: no qube has the qid of {name}'s template")
        qube.properties["template"] = by_qid[template]
    if element.tag in _HVM:
        qube.properties["virt_mode"] = "hvm"
    if element.tag in _NET:
        qube.properties["provides_network"] = "True"
    # The defaults of that release differed between classes, so what the qube really had is taken.
    if given.get("uses_default_netvm") != "True" or element.tag in _NET:
        netvm = given.get("netvm_qid", "None")
        qube.properties["netvm"] = by_qid.get(netvm, "")
    for service, enabled in _services(given.get("services", ""), name).items():
        qube.features[f"service.{_RENAMED.get(service, service)}"] = "1" if enabled else ""
    own_root = klass in ("TemplateVM", "StandaloneVM")
    qube.volumes = {
        volume: StoredVolume(volume, None, True) for volume in ("root", "private") if own_root or volume == "private"
    }
    qube.devices = given.get("pcidevs", "[]") not in ("", "[]")
    return qube


def _services(text: str, name: str) -> dict[str, bool]:
    """A Python literal. It is parsed, never executed."""
    if not text:
        return {}
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, dict) or len(text) > 65536:
        raise RefusedError(f"The store of the backup: services of {name} are not a plain mapping")
    return {str(key): bool(value) for key, value in found.items()}
