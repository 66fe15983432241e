"""Runs the tool that the first argument names; imports nothing else."""

from __future__ import annotations

import sys

TOOLS = {
    "agent": "casemate.agent.main",
    "qrexec-client-vm": "casemate.agent.qrexec_client",
    "qvm-copy": "casemate.agent.copy",
    "qvm-move": "casemate.agent.copy",
    "qvm-copy-to-vm": "casemate.agent.copy",
    "qvm-move-to-vm": "casemate.agent.copy",
    "qvm-open-in-vm": "casemate.agent.open_in_vm",
    "qvm-open-in-dvm": "casemate.agent.open_in_vm",
    "qvm-connect-tcp": "casemate.agent.connect_tcp",
    "qvm-sync-clock": "casemate.agent.sync_clock",
    "qvm-features-request": "casemate.agent.features_request",
    "qubesdb-read": "casemate.agent.qubesdb_tool",
    "qubesdb-write": "casemate.agent.qubesdb_tool",
    "qubesdb-rm": "casemate.agent.qubesdb_tool",
    "qubesdb-list": "casemate.agent.qubesdb_tool",
    "qubesdb-multiread": "casemate.agent.qubesdb_tool",
    "qubesdb-watch": "casemate.agent.qubesdb_tool",
    "qfile-unpacker": "casemate.agent.unpack",
    "tar2qfile": "casemate.agent.tar_to_qfile",
    "open-file": "casemate.agent.open_file",
    "vmexec": "casemate.agent.vmexec",
    "service-connect": "casemate.agent.connector",
    "net-qube": "casemate.agent.net_qube",
    "outside": "casemate.agent.outside",
    "updates-proxy": "casemate.agent.updates_proxy",
    "updates-forwarder": "casemate.agent.updates_forwarder",
}
"""Tool: module whose ``main(argv)`` runs it. ``argv[0]`` is the tool's name."""


def main(argv: list[str]) -> int:
    """Run ``argv[0]`` with the rest as its arguments; 127 for a name that is no tool."""
    name = argv[0].rpartition("/")[2] if argv else ""
    module = TOOLS.get(name)
    if module is None:
        sys.stderr.write(f"casemate-agent: no tool {name[:80]!a}; there are: {' '.join(TOOLS)}\n")
        return 127
    loaded = __import__(module, fromlist=["main"])
    try:
        status = loaded.main([name, *argv[1:]])
    except KeyboardInterrupt:
        return 130
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
