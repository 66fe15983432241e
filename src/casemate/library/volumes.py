"""Volumes of a qube: sizes, older states, images; each access is one call of the Admin API."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from casemate.client.qubes import Qubes as Client
from casemate.wire.errors import StorageError, VolumeNotFoundError


class Volume:
    """One volume of a qube, made by ``qube.volumes["private"]``. Sizes are in bytes."""

    def __init__(self, client: Client, qube: str, name: str) -> None:
        self._client = client
        self.qube = qube
        self.name = name

    @property
    def info(self) -> dict[str, str]:
        """All that the daemon says of it: ``pool``, ``vid``, ``size``, ``usage``, ``rw``, ``save_on_stop`` and more."""
        return self._client.volume(self.qube, self.name)

    @property
    def size(self) -> int:
        """Bytes that it may hold."""
        return int(self.info["size"])

    @property
    def usage(self) -> int:
        """Bytes of the host's disk that it takes now."""
        return int(self.info["usage"])

    @property
    def pool(self) -> str:
        """The pool that it lies in."""
        return self.info["pool"]

    @property
    def revisions(self) -> list[str]:
        """Its older states, oldest first."""
        return self._client.call("admin.vm.volume.ListSnapshots", self.name, self.qube).split()

    def resize(self, size: int) -> None:
        """Make it larger. It cannot become smaller (StorageError or ValueInvalidError)."""
        self._client.call("admin.vm.volume.Resize", self.name, self.qube, str(size))

    def revert(self, revision: str | None = None) -> None:
        """Give the volume of a halted qube the content of an older state, by default the newest.

        Raises StorageError where there is none, RevisionNotFoundError, NotHaltedError.
        """
        if revision is None:
            there = self.revisions
            if not there:
                raise StorageError(f"{self.qube}:{self.name} has no older states")
            revision = there[-1]
        self._client.call("admin.vm.volume.Revert", self.name, self.qube, revision)

    def set(self, option: str, value: str | int | bool) -> None:
        """Change how it is configured: ``revisions_to_keep``, ``rw``."""
        self._client.call(f"admin.vm.volume.Set.{option}", self.name, self.qube, str(value))

    def clear(self) -> None:
        """Make the volume of a halted qube as it was when it was new. Its content is lost."""
        self._client.call("admin.vm.volume.Clear", self.name, self.qube)

    def copy_from(self, other: Volume) -> None:
        """Replace the content of the volume of a halted qube by that of another volume."""
        token = self._client.call("admin.vm.volume.CloneFrom", other.name, other.qube)
        self._client.call("admin.vm.volume.CloneTo", self.name, self.qube, token)

    def import_image(self, image: BinaryIO | str | os.PathLike[str]) -> None:
        """Replace the content of the volume of a halted qube by a raw image: a file open for reading, or its path.

        A regular file also gives the volume its size. OSError where the path cannot be opened.
        """
        if isinstance(image, str | os.PathLike):
            with open(image, "rb") as file:
                self.import_image(file)
            return
        try:
            size = os.fstat(image.fileno()).st_size - image.tell()
        except (OSError, AttributeError):
            size = 0  # a pipe, or no file of the system: it ends where it ends
        transport = self._client.transport
        if size > 0:
            transport.send_file("admin.vm.volume.ImportWithSize", self.name, self.qube, b"%d\n" % size, image)
        else:
            transport.send_file("admin.vm.volume.Import", self.name, self.qube, b"", image)

    def __repr__(self) -> str:
        return f"<volume {self.qube}:{self.name}>"


class Volumes(Mapping[str, Volume]):
    """The volumes of a qube by name. One that is not there raises MissingVolumeError, which is a KeyError too."""

    def __init__(self, client: Client, qube: str) -> None:
        self._client = client
        self._qube = qube

    def __getitem__(self, name: str) -> Volume:
        if name not in list(self):
            raise MissingVolumeError(f"{self._qube} has no volume {name!r}")
        return Volume(self._client, self._qube, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._client.volumes(self._qube))

    def __len__(self) -> int:
        return len(self._client.volumes(self._qube))

    def __repr__(self) -> str:
        return f"<volumes of {self._qube}>"


class MissingVolumeError(VolumeNotFoundError, KeyError):
    """No such volume of this qube, raised by a mapping."""
