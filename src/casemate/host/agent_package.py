"""Packs what runs inside a guest: the agent as one zipapp, its tools, services and units. Same input, same bytes."""

from __future__ import annotations

import importlib.util
import io
import marshal
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import casemate

_PACKAGES = ("wire", "streams", "qdb", "calls", "filecopy", "agent")
_HERE = Path(casemate.__file__).parent
_GUEST = _HERE / "agent" / "guest"
_ARCHIVE = "/usr/lib/casemate/agent.pyz"
_DATE = (1980, 1, 1, 0, 0, 0)
_UNCHECKED = 0b01  # PEP 552: hash-based, never checked against the source

PLACES = {
    "rpc": "/etc/qubes-rpc",
    "rpc-config": "/etc/qubes/rpc-config",
    "bin": "/usr/bin",
    "lib": "/usr/lib/qubes",
    "post-install": "/etc/qubes/post-install.d",
}
"""Directories of ``agent/guest`` and where their files lie in a guest."""

LINKS = {
    "/etc/qubes-rpc/qubes.ConnectTCP": "/dev/tcp/127.0.0.1",
}
"""Services that are connections to a port of the guest: the link says which (agent/service.py)."""

TOOLS = (
    "qvm-copy",
    "qvm-move",
    "qvm-copy-to-vm",
    "qvm-move-to-vm",
    "qvm-open-in-vm",
    "qvm-open-in-dvm",
    "qvm-connect-tcp",
    "qvm-features-request",
    "qvm-sync-clock",
    "tar2qfile",
    "qubesdb-watch",
)
"""Names under which a guest's users find the agent's tools."""

FAST_TOOLS = ("qrexec-client-vm", "qubesdb-read", "qubesdb-write", "qubesdb-list", "qubesdb-rm", "qubesdb-multiread")
"""Those that are called often: a static program (host/initrd/tools.c), which becomes the agent's tool for odd cases."""

# No shell and no start of a zipapp: the interpreter reads one line and imports the one module that the name needs.
_TOOL = """#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, "{archive}")
from casemate.agent.entry import main
sys.exit(main(["{name}", *sys.argv[1:]]))
"""
_ANY_TOOL = """import sys
sys.path.insert(0, "{archive}")
from casemate.agent.entry import main
sys.exit(main(sys.argv[1:]))
"""
_MAIN = """import sys
from casemate.agent.entry import main
sys.exit(main(sys.argv[1:]))
"""

_UNITS = {
    "casemate.target": """[Unit]
Description=Casemate: the agent first, everything else once it serves
DefaultDependencies=no
Wants=casemate-agent.service casemate-rest.path
AllowIsolate=yes
""",
    "casemate-agent.service": f"""[Unit]
Description=Casemate agent
DefaultDependencies=no

[Service]
ExecStart=/usr/bin/python3 -I -S {_ARCHIVE} agent
Restart=on-failure
KillMode=process
""",
    "casemate-rest.path": """[Unit]
Description=Wait until the Casemate agent serves
DefaultDependencies=no

[Path]
PathExists=/run/qubes/qrexec-agent.sock
Unit=multi-user.target
""",
}


@dataclass(frozen=True, slots=True)
class GuestFile:
    """One file that goes into a template; ``link``: a symbolic link to there instead."""

    path: str
    data: bytes = b""
    mode: int = 0o644
    link: str = ""


def zipapp(python: tuple[int, int] | None) -> bytes:
    """The agent and what it imports. Bytecode is added when the guest's Python (``python``) is this one's version,
    so that a guest need not compile at each start."""
    out = io.BytesIO()
    compiled = python == sys.version_info[:2]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, source in _modules():
            if compiled:
                _add(archive, f"{name}c", _bytecode(source, f"{_ARCHIVE}/{name}"))
            _add(archive, name, source)
        _add(archive, "__main__.py", _MAIN.encode())
    return out.getvalue()


def _modules() -> list[tuple[str, bytes]]:
    paths = [_HERE / "__init__.py"]
    for package in _PACKAGES:
        paths.extend(sorted(p for p in (_HERE / package).rglob("*.py") if _GUEST not in p.parents))
    return [(f"casemate/{path.relative_to(_HERE)}", path.read_bytes()) for path in paths]


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def _bytecode(source: bytes, name: str) -> bytes:
    """A ``.pyc`` that is taken as it is, whatever the source beside it looks like."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    header = importlib.util.MAGIC_NUMBER + _UNCHECKED.to_bytes(4, "little") + importlib.util.source_hash(source)
    return header + marshal.dumps(code)


def guest_files(kind: str, python: tuple[int, int] | None, run_as: bytes, tools: bytes) -> list[GuestFile]:
    """All files of ours in a template of a kind, in a fixed order; ``run_as`` and ``tools`` are programs, compiled."""
    files = [
        GuestFile(_ARCHIVE, zipapp(python), 0o644),
        GuestFile("/usr/lib/casemate/run-as", run_as, 0o755),
        GuestFile("/usr/lib/casemate/tools", tools, 0o755),
        GuestFile("/usr/lib/casemate/tool.py", _ANY_TOOL.format(archive=_ARCHIVE).encode(), 0o644),
    ]
    files += [GuestFile(f"/usr/bin/{name}", link="/usr/lib/casemate/tools") for name in FAST_TOOLS]
    files += [
        GuestFile(f"/usr/bin/{name}", _TOOL.format(archive=_ARCHIVE, name=name).encode(), 0o755) for name in TOOLS
    ]
    for directory, place in PLACES.items():
        for path in sorted((_GUEST / directory).iterdir()):
            if path.name.startswith((".", "_")) or path.suffix == ".pyc":
                continue
            mode = 0o644 if directory == "rpc-config" else 0o755
            files.append(GuestFile(f"{place}/{path.name}", path.read_bytes(), mode))
    files += [GuestFile(path, link=target) for path, target in LINKS.items()]
    if kind == "systemd":
        files += [GuestFile(f"/usr/lib/systemd/system/{name}", text.encode(), 0o644) for name, text in _UNITS.items()]
    return files
