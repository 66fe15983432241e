"""Every tool by the name it is called with; only the one that is called is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from casemate.cli import standard_streams

TOOLS = {
    "qfile-dom0-unpacker": "qfile_dom0_unpacker",
    "qrexec-client": "qrexec_client",
    "qrexec-policy-exec": "qrexec_policy_exec",
    "qrexec-policy-graph": "qrexec_policy_graph",
    "qubes-policy": "qubes_policy",
    "qubes-policy-lint": "qubes_policy_lint",
    "qubes-prefs": "qubes_prefs",
    "qubesd-query": "qubesd_query",
    "qvm-appmenus": "qvm_appmenus",
    "qvm-backup": "qvm_backup",
    "qvm-backup-restore": "qvm_backup_restore",
    "qvm-block": "qvm_block",
    "qvm-check": "qvm_check",
    "qvm-clone": "qvm_clone",
    "qvm-console": "qvm_console",
    "qvm-create": "qvm_create",
    "qvm-device": "qvm_device",
    "qvm-features": "qvm_features",
    "qvm-firewall": "qvm_firewall",
    "qvm-kill": "qvm_kill",
    "qvm-ls": "qvm_ls",
    "qvm-mic": "qvm_mic",
    "qvm-notes": "qvm_notes",
    "qvm-pause": "qvm_pause",
    "qvm-pci": "qvm_pci",
    "qvm-pool": "qvm_pool",
    "qvm-pool-legacy": "qvm_pool_legacy",
    "qvm-prefs": "qvm_prefs",
    "qvm-remove": "qvm_remove",
    "qvm-restart": "qvm_restart",
    "qvm-service": "qvm_service",
    "qvm-shutdown": "qvm_shutdown",
    "qvm-start": "qvm_start",
    "qvm-sync-appmenus": "qvm_sync_appmenus",
    "qvm-sync-clock": "qvm_sync_clock",
    "qvm-tags": "qvm_tags",
    "qvm-template": "qvm_template",
    "qvm-unpause": "qvm_unpause",
    "qvm-usb": "qvm_usb",
    "qvm-volume": "qvm_volume",
}
"""Names of tools and the modules of this package that are them."""

WITH_PACKAGES = frozenset({"qvm-backup", "qvm-backup-restore"})
"""Tools that use installed packages. The others start without looking for any, which is half of their time."""


def find(name: str) -> Callable[[Sequence[str] | None], int] | None:
    """The ``main`` of a tool, or None where there is no such tool."""
    module = TOOLS.get(name, name.replace("-", "_") if name.startswith("qvm-") or name == "casemate" else "")
    if not module:
        return None
    if name in WITH_PACKAGES and sys.flags.no_site:
        import site

        site.main()
    try:
        found: Callable[[Sequence[str] | None], int] = import_module(f"casemate.cli.{module}").main
    except ModuleNotFoundError as error:
        if error.name != f"casemate.cli.{module}":
            raise
        return None
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool that ``argv[0]`` names; as ``python -m casemate.cli TOOL …`` the first argument names it."""
    standard_streams.mend()
    words = list(sys.argv if argv is None else argv)
    name = os.path.basename(words[0]) if words else ""  # noqa: PTH119
    if name in ("__main__.py", "entry.py") and len(words) > 1:
        words = words[1:]
        name = words[0]
    if name == "casemate" and words[1:2] == ["__complete"]:  # at each Tab: nothing else is imported
        from casemate.cli import complete

        return complete.main(words[2:])
    tool = find(name)
    if tool is None:
        sys.stderr.write(f"No such tool: {name}; there are {', '.join(TOOLS)}\n")
        return 2
    try:
        status = tool(words[1:])
    except BrokenPipeError:
        standard_streams.discard()
        status = 141
    except OSError as error:  # of a tool that is not run by tool.run
        standard_streams.discard()
        standard_streams.complain(name, error)
        status = standard_streams.LOST
    return standard_streams.finish(name, status)


if __name__ == "__main__":
    sys.exit(main())
