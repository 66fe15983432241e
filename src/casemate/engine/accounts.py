"""The user and group that run each qube's processes, when the daemon is root and can give it one of its own."""

from __future__ import annotations

from casemate.host.qemu_access import users_of
from casemate.model.domain import Domain
from casemate.settings import Settings
from casemate.storage.pool import Account


class Accounts:
    """Derives a qube's account from its ``qid``, so that nothing has to be stored and no two running qubes share one.

    ``root`` False: the daemon cannot change users. All qubes then run as the daemon's user, and ``of`` and ``group``
    are None.
    """

    def __init__(self, settings: Settings, root: bool) -> None:
        self._settings = settings
        self.root = root

    @property
    def group(self) -> int | None:
        """The group of all qubes of this state directory. It lets them read template images and nothing else."""
        return users_of(self._settings)[0] if self.root else None

    def of(self, domain: Domain) -> Account | None:
        """The account of one qube's QEMU and link."""
        if not self.root:
            return None
        users = users_of(self._settings)
        return Account(users[1 + domain.qid % (len(users) - 2)], users[0])

    @property
    def room(self) -> int | None:
        """The user that owns the wire room and runs uplinks; never one of a qube."""
        return users_of(self._settings)[-1] if self.root else None
