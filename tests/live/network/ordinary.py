"""A state of an ordinary user, without any privilege: the same tools, run as another user on the tests' own host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from casemate.cli.template import default_suite
from casemate.settings import load
from tests.live.network.outside import Outside
from tests.live.world import World

USER = 65534
"""Debian's ``nobody``: on every host, in the list of users (libvirt looks there), and owner of nothing."""

_WITH_TUN = """
mount -t tmpfs -o mode=755 none /dev/net
mknod -m $0 /dev/net/tun c 10 200
exec "$@"
"""
"""As udev has it on Debian, or not. A host without udev has it for root alone. The command's mounts are its own."""
_WITHOUT_NAMESPACES = """
echo 0 >/proc/sys/user/max_user_namespaces
exec setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs "$@"
"""


class OrdinaryUser(World):
    """A world whose tools and daemon belong to ``USER``.

    ``namespaces``: whether he may make user namespaces. ``tun``: whether /dev/net/tun is open to him.
    """

    def __init__(self, directory: Path, outside: Outside, namespaces: bool = True, tun: bool = True) -> None:
        super().__init__(directory)
        self._directory = directory
        self._outside = outside
        self._namespaces = namespaces
        self._tun_mode = "666" if tun else "600"
        cache = directory / "home/.cache/casemate"
        _copy_cache(cache)
        for path in (directory, *directory.rglob("*")):
            os.chown(path, USER, USER)
        self.environment |= {
            "HOME": str(directory / "home"),
            "CASEMATE_STATE": str(directory / "state"),
            "CASEMATE_RUN": str(directory / "run"),
            "CASEMATE_CACHE": str(cache),
            "CASEMATE_TOUR_STATE": str(directory / "tour"),
        }
        for name in [name for name in self.environment if name.startswith("XDG_")]:
            del self.environment[name]
        self.settings = load(self.environment)

    def run(self, *argv: str, **options: object) -> subprocess.CompletedProcess[bytes]:
        """Run a tool as the user; the first one starts his daemon."""
        words = [*self._outside.command(), "sh", "-e", "-c", _WITH_TUN, self._tun_mode]
        words += ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all"]
        if not self._namespaces:
            # A limit holds in the namespace where it is set and below. In this one he keeps his number.
            words += ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", _WITHOUT_NAMESPACES, "sh"]
        return super().run(*words, *argv, **options)  # type: ignore[arg-type]

    def processes(self) -> dict[int, str]:
        """What runs for this state, with its command line."""
        mark, found = bytes(self._directory), {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended
        return found


def _copy_cache(to: Path) -> None:
    """What root's state has built for the release's template: a user without subordinate ids could not build it."""
    cache = load().cache
    facts = max((cache / "templates").glob(f"{default_suite()}-lean-??????????.json"), key=lambda p: p.stat().st_mtime)
    images = sorted(facts.parent.glob(f"{facts.stem}-*.ext4"), key=lambda path: path.stat().st_mtime)
    for path in (facts, facts.with_suffix(".deb"), facts.with_suffix(".ext4"), images[-1]):
        (to / "templates").mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--preserve=timestamps", "--sparse=always", path, to / "templates"], check=True)
    shutil.copytree(cache / "kernels", to / "kernels")
    shutil.copytree(cache / "libvirt", to / "libvirt")
