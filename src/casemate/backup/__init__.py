r"""Backups in the formats of Qubes OS: version 4 written and read, versions 3 and 2 read.

::

    write   qubes, volumes ── tar_writer.py ── filter ── cut at 100 MiB ── container.py ── outer.py ── file or pipe
                              sparse tar                                    scrypt, AES,     a small tar
                              of one file                                   HMAC             for each chunk

    read    file or pipe ── outer.py ── chunks.py ── filters.py ── tar_reader.py ── target
                            members,     each chunk    bounded       one file,        a qube that is made, or nothing
                            strictly     whole and     output        sparse           (verify)
                                         authentic
                                              \__ container.py (4) or openssl.py (3, 2)

A backup is a stream of small tar archives. Each has one *member*: the header, its authenticated copy, then the *chunks*
of one file after another: the store (``qubes.xml``), and for each qube its volumes, firewall rules and notes. All is
read in one pass, and no more than two chunks are in memory at once, so a backup may come through a pipe, and needs no
room on disk.

Whoever keeps a backup may have altered it. So nothing of a chunk is used before its code of authentication was checked.
Chunks must come in their order, without a gap. Work that somebody else determines (key derivation, decompression,
holes) is bounded before it begins. A qube counts as whole only when every file that the store promises has arrived to
its end; ``reader.py`` keeps that account and ends with a verdict for each qube.

AES, scrypt and zstd come from installed packages or from the system's libraries (``primitives.py`` chooses between
``by_packages.py`` and ``by_libraries.py``): the latter in the disposable that reads a backup which is not trusted
(``paranoid``, a package of its own). ``restored_firewall.py`` reads the rules that a backup has of a qube.

Backups that hold only what has changed have another form and another program that writes them: ``incremental``, a
package of its own. Both programs (``job.py``, ``incremental/job.py``) speak with the daemon by ``job_line.py``.

Profiles (``profile.py``) say what is backed up and where to; ``schedule.py`` records which of them a timer of the host
runs, and how the last run ended. ``whole_file.py`` writes such small files, ``sizes.py`` shows sizes to a person.

Both the daemon, which writes, and the tool that restores use this package. It knows neither the store nor the Admin
API: ``reader.Target`` and ``writer.Job`` are the seams. The format is described in docs/reference/backup-format.md.
"""
