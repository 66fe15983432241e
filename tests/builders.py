"""Systems for tests, built with the model's own verbs."""

from __future__ import annotations

import os
import select
from uuid import UUID

from casemate.model.system import System


def uuid(number: int) -> UUID:
    """A UUID that tests can name."""
    return UUID(int=number)


def small_system() -> System:
    """Template ``deb``, net qube ``net``, qube ``work``, template of disposables ``base``, disposable ``disp7``."""
    system = System.initial()
    system.add("TemplateVM", "deb", uuid=uuid(1), label="black")
    net = system.add("AppVM", "net", uuid=uuid(2), label="orange", template="deb")
    net.provides_network = True
    net.netvm = None
    system.default_netvm = net
    system.default_template = system.domains["deb"]
    system.add("AppVM", "work", uuid=uuid(3), label="blue")
    base = system.add("AppVM", "base", uuid=uuid(4), label="red")
    base.template_for_dispvms = True
    system.default_dispvm = base
    system.add("DispVM", "disp7", uuid=uuid(5), template="base", dispid=7, properties={"auto_cleanup": True})
    system.changes.clear()
    return system


def gone(pid: int, seconds: float = 10) -> None:
    """Wait until a process has ended, whoever is its parent."""
    try:
        os.waitpid(pid, 0)
        return
    except ChildProcessError:
        pass
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], seconds)[0], f"process {pid} does not end"
    finally:
        os.close(fd)
