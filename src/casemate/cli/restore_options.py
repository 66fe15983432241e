"""Options of the tools that restore: what is done about what stands in the way. Imports nothing that takes time."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is done about what stands in the way."""
    add = parser.add_argument
    add("--skip-broken", action="store_true", help="leave out qubes whose template is missing")
    add("--ignore-missing", action="store_true", help="take the default template for one that is missing")
    add("--skip-conflicting", action="store_true", help="leave out qubes whose name is taken")
    add("--rename-conflicting", action="store_true", help="give qubes whose name is taken a new one")
    add("--keep-damaged", action="store_true", help="keep what arrived of damaged qubes; they cannot be started")
    add("-x", "--exclude", action="append", default=[], metavar="VMNAME", help="not this qube")
