"""Places where programs written for Qubes OS look on the host, known to the tool that makes them and to the daemon."""

from __future__ import annotations

MARK = "made by casemate interop"
"""Stands in each file of ours at such a place, so that it is told from somebody else's."""

RELEASE = "/etc/qubes-release"
"""Upstream's library takes the local socket only where this file is. With MARK in it the host is laid out by us."""

RUN = "/run/qubes"
"""Run-time directory: sockets of databases, locks of tools. Gone at each boot, so the daemon makes it again."""

GROUP = "qubes"
"""Whoever is in it may use the daemon of the whole host."""


def database_socket(name: str) -> str:
    """The file, in RUN, at which a host's tools find a running qube's database. (upstream's libqubesdb)"""
    return f"qubesdb.{name}.sock"
