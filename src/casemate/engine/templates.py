"""Makes template qubes from images that this host has built, and puts newer images into them."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from casemate.engine.accounts import Accounts
from casemate.engine.create import Creator
from casemate.engine.machine import NET_INITRD
from casemate.engine.qube_files import QubeFiles
from casemate.host.build_steps import BuildReport
from casemate.host.files import copy_file
from casemate.host.guest_kernel import BuiltKernel
from casemate.host.process import Runner
from casemate.host.template_build import BuiltTemplate, build_template
from casemate.model.domain import Domain
from casemate.settings import Settings
from casemate.store.store import Store
from casemate.wire.errors import RecipeNotFoundError, ValueInvalidError
from casemate.wire.recipe import RELEASES, Recipe, decode

log = logging.getLogger(__name__)


class RootImport(Protocol):
    """Replaces volumes by images; refuses where the qube runs."""

    async def import_image(self, name: str, volume: str, image: Path, size: int) -> None:
        """Replace a kept volume of a halted qube by a raw image of ``size`` bytes."""


class _Logged:
    """A report that has the daemon's log written too."""

    def __init__(self, report: BuildReport) -> None:
        self.ended = report.ended
        self._line = report.line

    def line(self, text: str) -> None:
        log.info("%s", text)
        self._line(text)


class Templates:
    """Installs templates and their kernels. The recipe of each is kept beside it, so that it can be built anew."""

    def __init__(
        self,
        settings: Settings,
        runner: Runner,
        store: Store,
        creator: Creator,
        volumes: RootImport,
        files: QubeFiles,
        accounts: Accounts,
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._store = store
        self._creator = creator
        self._volumes = volumes
        self._files = files
        self._accounts = accounts

    async def install(self, name: str, recipe: Recipe, report: BuildReport) -> None:
        """A new template of a recipe, from the cache of built images if it is there.

        The first template becomes the default one, its kernel the default kernel. An existing qube of the name is an
        error.
        """
        built = await build_template(self._settings, self._runner, recipe, _Logged(report))
        self._install_kernel(built.kernel)
        template = await self._creator.create(
            "TemplateVM", name, "black", None, None,
            images={"root": built.root_image},
            properties={"kernel": built.kernel.name},
            features=_features(name, recipe, built),
        )  # fmt: skip
        self._files.set_recipe(template.uuid, recipe.encode())
        with self._store.write() as transaction:
            system = transaction.system
            template = system.domains[name]
            template.set_volume(replace(template.volume("root"), size=built.size))
            if system.default_template is None:
                system.set("default_template", name)
            if not system.default_kernel:
                system.set("default_kernel", built.kernel.name)

    def recipe(self, template: Domain) -> Recipe:
        """What a template was built from; RecipeNotFoundError for one that was cloned or made in another way."""
        if template.klass != "TemplateVM":
            raise ValueInvalidError(f"{template.name} is no template")
        data = self._files.recipe(template.uuid)
        if data is None:
            raise RecipeNotFoundError(f"{template.name} was not built from a recipe, so it cannot be built anew")
        return decode(data)

    async def rebuild(self, name: str, fresh: bool, report: BuildReport) -> None:
        """Put the newest image of a halted template's recipe into it; ``fresh`` makes one with today's packages. Its
        state before stays as a revision.

        The kernel follows where the template, and the system's default, had the kernel of the build before.
        """
        template = self._store.snapshot().domains[name]
        recipe = self.recipe(template)
        built = await build_template(self._settings, self._runner, recipe, _Logged(report), fresh)
        self._install_kernel(built.kernel)
        await self._volumes.import_image(name, "root", built.root_image, built.size)
        with self._store.write() as transaction:
            system = transaction.system
            template = system.domains[name]
            before = template.features.get("template-kernel", "")
            for key, value in _features(name, recipe, built).items():
                template.features[key] = value
            if template.kernel == before:
                template.set("kernel", built.kernel.name)
            if system.default_kernel == before:
                system.set("default_kernel", built.kernel.name)

    def _install_kernel(self, kernel: BuiltKernel) -> None:
        directory = self._settings.state / "kernels" / kernel.name
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for source, target in ((kernel.vmlinuz, "vmlinuz"), (kernel.initrd, "initrd"), (kernel.initrd_net, NET_INITRD)):
            # A template of a later build has the same kernel but perhaps a newer first program in its initrd.
            temporary = directory / f".{target}.new"
            copy_file(Path(source), temporary)
            group = self._accounts.group
            if group is not None:
                os.chown(temporary, 0, group)
            temporary.chmod(0o640)  # the machines' users are in the group; nobody else reads it
            temporary.replace(directory / target)


def _features(name: str, recipe: Recipe, built: BuiltTemplate) -> dict[str, str]:
    """What is noted of a template. Upstream's tools read ``template-*`` and ``os-*`` (qvm-template list, info).

    ``template-kernel`` is ours: the kernel that came with the build, to tell it from one that a person chose.
    """
    when = time.gmtime(built.built)
    features = {
        "init": recipe.kind,
        "os": "Linux",
        "os-distribution": "debian",
        "qrexec": "1",
        "vmexec": "1",
        "template-name": name,
        "template-epoch": "0",
        "template-version": RELEASES[recipe.suite],
        "template-release": time.strftime("%Y%m%d%H%M", when),
        "template-reponame": "casemate",
        "template-buildtime": time.strftime("%Y-%m-%d %H:%M:%S", when),
        "template-installtime": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "template-license": "Debian packages, each under its own",
        "template-url": "",
        "template-summary": f"Debian {recipe.suite}, {recipe.kind}",
        "template-description": f"Built on this host from Debian {recipe.suite}",
        "template-kernel": built.kernel.name,
    }
    if RELEASES[recipe.suite].isdecimal():
        features["os-version"] = RELEASES[recipe.suite]
    return features
