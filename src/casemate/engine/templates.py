"""Makes a template qube from a root image that this host has built."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from casemate.engine.create import Creator
from casemate.engine.machine import INIT_KINDS
from casemate.host.files import copy_file
from casemate.host.guest_kernel import BuiltKernel, build_kernel
from casemate.host.process import Runner
from casemate.host.template_build import build_template
from casemate.settings import Settings
from casemate.store.store import Store
from casemate.wire.errors import ValueInvalidError

log = logging.getLogger(__name__)


class Templates:
    """Installs templates and kernels."""

    def __init__(self, settings: Settings, runner: Runner, store: Store, creator: Creator) -> None:
        self._settings = settings
        self._runner = runner
        self._store = store
        self._creator = creator

    async def install(self, name: str, kind: str) -> None:
        """A new template of that kind. An existing one of the name is an error; its kernel is installed if missing."""
        if kind not in INIT_KINDS:
            raise ValueInvalidError(f"A template is {' or '.join(INIT_KINDS)}, not {kind!r}")
        kernel = await build_kernel(self._settings, self._runner, log.info)
        image = await build_template(self._settings, self._runner, kind, log.info)
        self._install_kernel(kernel)
        await self._creator.create(
            "TemplateVM", name, "black", None, None,
            images={"root": image.root_image},
            properties={"kernel": kernel.name},
            features={"init": kind, "os": "Linux", "os-distribution": "debian", "qrexec": "1", "vmexec": "1"},
        )  # fmt: skip
        with self._store.write() as transaction:
            system = transaction.system
            template = system.domains[name]
            template.set_volume(replace(template.volume("root"), size=image.size))
            if system.default_template is None:
                system.set("default_template", name)
            if not system.default_kernel:
                system.set("default_kernel", kernel.name)

    def _install_kernel(self, kernel: BuiltKernel) -> None:
        directory = self._settings.state / "kernels" / kernel.name
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for source, target in ((kernel.vmlinuz, "vmlinuz"), (kernel.initrd, "initrd")):
            # A template of a later build has the same kernel but perhaps a newer first program in its initrd.
            temporary = directory / f".{target}.new"
            copy_file(Path(source), temporary)
            temporary.chmod(0o644)
            temporary.replace(directory / target)
