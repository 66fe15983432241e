"""What this host is asked to do for all qubes: probe its acceleration, make templates.

``admin.casemate.Probe`` boots a kernel to see whether KVM really runs a guest (once per boot of the host) and answers
``kvm REASON`` or ``tcg REASON``.

``admin.casemate.template.Install+NAME`` with payload ``lean`` or ``systemd`` makes the template NAME from the image of
that kind in the cache (building it if it is not there, which takes a minute) and installs its kernel. The first one
becomes the default template, its kernel the default kernel.
"""

from __future__ import annotations

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.wire import names


@method("admin.casemate.Probe", Access.EXECUTE)
async def probe(context: Context) -> str:
    """Find out what runs guests here, and why."""
    return await context.host.probe()


@method("admin.casemate.template.Install", Access.EXECUTE)
async def install(context: Context, arg: str, payload: str) -> None:
    """Make a template from a built image."""
    await context.templates.install(str(names.new_qube_name(arg)), payload)
