"""Copies files between qubes in the qfile format; standard library only, also installed in guests.

::

    files ── pack.Copy ── stdin of a call of qubes.Filecopy ──► unpack.Unpacker ── hidden directory ── files
                 ▲                                                      │
                 └──────────── result: code, checksum, last name ───────┘

The sender streams records and contents, and ends only when the receiver has confirmed all of them by its checksum. The
receiver unpacks into a hidden directory and moves the files to their names at the end, so that nobody ever sees half a
copy. A receiver that fails closes its end: the sender sees that at once, reads the reason and stops.
"""
