"""What the policy's tools look at: the files of this installation or of a directory, and the qubes as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casemate.client.qubes import Qubes
from casemate.qrexec.evaluate import QubeInfo, SystemInfo
from casemate.qrexec.files import PolicyFiles
from casemate.settings import Settings

_PROPERTIES = ("default_dispvm", "relayvm", "remote_name", "template_for_dispvms", "transport_rpc")


def files(settings: Settings, paths: Sequence[str] = ()) -> PolicyFiles:
    """The policy in these directories, a file in the first hiding its like in the second; none: the installed one."""
    if paths:
        return PolicyFiles(Path(paths[-1]).absolute(), Path(paths[0]).absolute() if len(paths) > 1 else None)
    over = settings.policy_run_dir
    return PolicyFiles(settings.policy_dir, over if over.is_dir() else None)


def system(qubes: Qubes) -> SystemInfo:
    """All qubes, in one call."""
    return SystemInfo.fixed(_info(one) for one in qubes.inventory(_PROPERTIES, ("internal",), tags=True))


def read_system(text: str) -> SystemInfo:
    """The qubes of a file with the JSON that ``internal.GetSystemInfo`` answers with."""
    import json

    found = json.loads(text)["domains"]
    return SystemInfo.fixed(
        QubeInfo(
            name, str(q["type"]), str(q.get("uuid", "")), frozenset(q.get("tags", ())), q.get("default_dispvm") or None,
            bool(q.get("template_for_dispvms")), str(q.get("power_state", "Halted")), bool(q.get("internal")),
            str(q.get("icon", "")), q.get("relayvm") or None, q.get("transport_rpc") or None,
        )
        for name, q in found.items()
    )  # fmt: skip


def _info(one: dict[str, object]) -> QubeInfo:
    properties, features, tags = one.get("properties", {}), one.get("features", {}), one.get("tags", ())
    assert isinstance(properties, dict) and isinstance(features, dict) and isinstance(tags, list | tuple)

    def text(name: str) -> str | None:
        return str(properties.get(name, {}).get("value", "")) or None

    return QubeInfo(
        name=str(one["name"]),
        klass=str(one["class"]),
        uuid=str(one["uuid"]),
        tags=frozenset(tags),
        default_dispvm=text("default_dispvm"),
        template_for_dispvms=text("template_for_dispvms") == "True",
        power_state=str(one["state"]),
        internal=bool(features.get("internal")),
        relayvm=text("relayvm"),
        transport_rpc=text("transport_rpc"),
        remote_name=text("remote_name"),
    )
