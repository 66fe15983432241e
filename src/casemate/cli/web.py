"""``casemate web``: becomes casemate-web, the manager page, which is a program of its own."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from casemate.client.qubes import Qubes
from casemate.client.transport import python_path
from casemate.wire.errors import CasemateError


def add_to(commands: Any) -> None:
    """Add the command ``web``."""
    web = commands.add_parser("web", help="serve the manager page to a browser on this host")
    web.add_argument("--read-only", action="store_true", help="show everything, change nothing")
    web.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    web.set_defaults(body=_web)


def _web(args: argparse.Namespace, qubes: Qubes) -> int:
    options = [f"--{name.replace('_', '-')}" for name in ("read_only", "no_browser") if getattr(args, name)]
    # This tool runs without the installed packages, which the page needs; and the layers keep the two apart.
    argv = [sys.executable, "-P", "-m", "casemate.web", *options]
    environment = {**os.environ, **qubes.transport.settings.environment(), "PYTHONPATH": python_path()}
    if qubes.transport.settings.shared:
        environment = {**os.environ, "PYTHONPATH": python_path()}  # it finds the same state by the same rule
    sys.stdout.flush()
    try:
        os.execve(sys.executable, argv, environment)  # noqa: S606
    except OSError as error:
        raise CasemateError(f"{sys.executable} cannot be run: {error.strerror}") from error
