"""Incremental backups: a repository of borg's, in which what has not changed is neither read nor stored again.

::

    create   daemon ── NBD ── job.py ── layer.py ── borg create      a layer for each volume that has changed
                                 └── snapshot.py ── borg create      the snapshot: settings, and which layers it needs
             memory.py                                               what this state knows to be in the repository

    restore  borg extract ── snapshot.py                             the settings
             borg extract ── layer.py ── reader.py ── target         each volume, from one layer or two
                                                                     (a qube that is made, or nothing: verify)

A *snapshot* is one backup: the copy of the store, the small files of its qubes, and for each volume the layers that it
is made of. A *layer* is one archive of borg's, with those clusters (64 KiB) of a volume that have data. A *full* layer
has all of them. A *difference* has those that were changed since the full layer of its volume. So a volume is read
from two archives at most. A volume that is as it was in the last backup needs no new archive: the new snapshot names
the old layers. That is why an unchanged volume costs nothing, and why `prune` removes snapshots first and then each
layer that no snapshot names.

borg encrypts, deduplicates and authenticates; it is run as a program (borg.py), and it alone writes to the repository.
A run of several commands loads it once (warm_borg.py, and borg_server.py, which runs under borg's own Python).
Each archive is there whole or not at all, at whatever instant a process is killed. repository.py knows what the names
of archives mean. Beside that, a snapshot has the hash of each of its layers, so that a volume counts as whole only when
every byte of it is what was once read from the disk.

As the rest of ``casemate.backup``, this package knows neither the store nor the Admin API. The daemon's side is
``engine/backups.py``, the user's side ``cli/backup.py``. docs/decisions/0017 says why borg and why layers.
"""
