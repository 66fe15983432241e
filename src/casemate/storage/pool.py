"""The contract of a storage pool: what the engine asks of one, and what a machine gets from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from casemate.model.volumes import Volume
from casemate.storage.saved_state import Served


class Owner(Protocol):
    """The user and group that run a qube's machine."""

    @property
    def uid(self) -> int:
        """User id."""

    @property
    def gid(self) -> int:
        """Group id, that of all qubes of this state."""


@dataclass(frozen=True, slots=True)
class Account:
    """An Owner."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Image:
    """An image as a machine opens it. QEMU is told every format; it never guesses one."""

    path: Path
    format: str
    readonly: bool = False
    backing: tuple[tuple[Path, str], ...] = ()
    """What the file is a layer over, nearest first: (file, format)."""
    scratch: bool = False
    """True for what is thrown away when the machine ends. Its writes need not reach the disk."""
    own_layers: bool = False
    """True when the layers below are the qube's alone, as older states of its own volume are."""


class Pool(Protocol):
    """Keeps volumes. Every method undoes itself when it fails; sizes are bytes. All raise StorageError.

    What a volume's flags ask for:

    - ``save_on_stop``: the volume is kept. ``create``, ``import_image``, ``clone``, ``resize`` and ``revert`` change
      it while its qube is halted, and whatever is replaced becomes a revision.
    - ``snap_on_start``: each run begins with the content that ``source`` has when the machine starts, and what the
      machine writes is thrown away.
    - neither: each run begins with an empty volume.

    The engine calls these methods under the operation lock of the volume's qube. A source may be read by many qubes'
    ``start`` at the same time, and be replaced meanwhile by its own qube's ``stop``; a pool keeps the two apart.
    """

    @property
    def format(self) -> str:
        """The format of the images that ``start`` returns: ``qcow2`` or ``raw``."""

    def path(self, volume: Volume) -> Path:
        """Where the volume itself lies; for one that exists only while it runs, where it will lie."""

    def has_left_overs(self, volume: Volume) -> bool:
        """True while something stands for the volume that ``stop`` would take away."""

    async def prepare(self) -> None:
        """Make what the pool needs before its first volume; StorageError where it could hold none. Called when the
        pool is added, so that a mistake in its options is found then."""

    async def create(self, volume: Volume) -> None:
        """A new volume; a private one with an empty ext4 file system."""

    async def import_image(self, volume: Volume, source: Path) -> None:
        """A new volume with the content of a raw image, and at least as large as the volume says."""

    async def clone(self, source: Volume, target: Volume, running: bool = False) -> None:
        """Replace ``target``, which is not in use, by a copy of ``source``; as large as ``source`` says, at least.

        ``running``: a machine has ``source``. Then the copy is of its last saved state, that at the machine's start;
        StorageError where the machine writes the volume itself, so that there is none.
        """

    async def export(self, volume: Volume, target: Path, running: bool = False) -> None:
        """Write what the volume shows into an empty file as a raw image, for another pool; ``running`` as above."""

    def serve(
        self, volume: Volume, address: Path, since: Sequence[str] = (), running: bool = False
    ) -> AbstractAsyncContextManager[Served]:
        """Let what the volume shows be read over NBD, on a new socket at ``address``, until the block ends.

        ``since``: the ``layers`` of an earlier ``Served`` of this volume, to be told what has changed; ``running`` as
        above. Nothing is copied, so this takes no room.
        """

    async def start(self, volume: Volume, owner: Owner | None, shared: bool, image: str | None = None) -> Image:
        """Make the volume ready for a machine that ``owner`` runs (None: this process's user does).

        ``shared``: others are based on the volume, even while it runs; they must see none of what it writes before it
        has stopped. ``image``: begin with what ``keep_for_image`` kept under that name, for a volume of that name.
        """

    def start_content(self, volume: Volume) -> str | None:
        """What identifies the content that the next start of the volume begins with; None where the volume is kept, or
        where this pool cannot keep anything for an image."""

    async def keep_for_image(self, volume: Volume, image: str) -> None:
        """Keep what the volume shows now, after its machine has stopped for good, as the start of other volumes.

        Nothing is copied. ``image`` is a name of hexadecimal digits.
        """

    async def copy_for_image(self, volume: Volume, image: str) -> None:
        """Keep what the volume of a machine shows now, which stands still and goes on later, as the start of other
        volumes: for a fork. Costs as much as the run has written. StorageError where this pool or volume cannot."""

    async def settle_image(self, image: str) -> None:
        """Make what ``copy_for_image`` kept under that name survive a power failure."""

    async def drop_image(self, image: str) -> None:
        """Remove what was kept under that name. Volumes that were started from it go on. Absent is fine."""

    def images(self) -> list[str]:
        """The names under which something is kept."""

    async def stop(self, volume: Volume) -> None:
        """Give it back: what is not kept is thrown away. Also after a crash, and when it was never started."""

    async def remove(self, volume: Volume) -> None:
        """Remove the volume and everything that belongs to it. Absent is fine."""

    def revisions(self, volume: Volume) -> list[str]:
        """The older states that the volume can go back to, oldest first; at most ``volume.revisions_to_keep``."""

    async def revert(self, volume: Volume, revision: str) -> None:
        """Make a volume that is not in use as it was; RevisionNotFoundError. The present state becomes a revision."""

    def is_outdated(self, volume: Volume) -> bool:
        """Whether a machine runs on an older state of the volume's source."""

    async def resize(self, volume: Volume, size: int) -> None:
        """Make it larger; the guest grows its file system itself."""

    async def usage(self, volume: Volume) -> int:
        """Bytes that it takes on disk."""

    async def verify(self, volume: Volume) -> None:
        """StorageError unless the volume (or its source) is there and is a file of ours."""

    async def room(self) -> tuple[int, int] | None:
        """Size and used bytes of what the pool lies on; None while that cannot be known."""
