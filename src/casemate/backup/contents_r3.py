"""The store in backups of versions 2 and 3: each qube one element, everything about it an attribute."""

from __future__ import annotations

from casemate.backup import contents
from casemate.backup.contents import Contents, StoredQube, StoredVolume
from casemate.backup.errors import RefusedError
from casemate.backup.plain_xml import Element
from casemate.wire import names, release3

_CLASSES = {tag: klass for tag, klass in release3.CLASS_OF.items() if klass} | {"QubesDisposableVm": "AppVM"}
"""A disposable's template was an ordinary qube, and is written as a ``QubesDisposableVm`` with an image of its own."""
_RENAMED = {"ntpd": "clocksync"}
_MAX_SERVICES = 65536
_NONE = ("", "none", "None")


def parse_r3(root: Element) -> Contents:
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
    return Contents(out, home)


def _qube(element: Element, by_qid: dict[str, str]) -> StoredQube:
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
    qube.properties["label"] = release3.LABELS.get(label, label)
    for key in release3.SAME:
        if given.get(key, "None") not in _NONE:
            qube.properties[key] = given[key]
    if given.get("uses_default_kernelopts") == "True":
        qube.properties.pop("kernelopts", None)
    if klass == "AppVM":
        if template not in by_qid:
            raise RefusedError(f"The store of the backup: no qube has the qid of {name}'s template")
        qube.properties["template"] = by_qid[template]
    if element.tag in release3.HVM:
        qube.properties["virt_mode"] = "hvm"
    if element.tag in release3.NET:
        qube.properties["provides_network"] = "True"
    # The defaults of that release differed between classes, so what the qube really had is taken.
    if given.get("uses_default_netvm") != "True" or element.tag in release3.NET:
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
    if not text:
        return {}
    try:
        found = release3.literal(text) if len(text) <= _MAX_SERVICES else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RefusedError(f"The store of the backup: services of {name} are not a plain mapping")
    return {str(key): bool(value) for key, value in found.items()}
