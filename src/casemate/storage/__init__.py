"""Volumes: the disks of qubes, in pools, each kept by a driver.

::

    engine (VolumesStep, Creator, Volumes)
        │ Pools.of(volume): the pool that the store names, opened once
        ▼
    Pool (pool.py): create, import_image, clone, start, stop, remove, revert, resize, keep_for_image ...
        ├── drivers/qcow2.py           layers: overlays, revisions without copies; works anywhere
        │     └── qcow2_header.py      checks what a hijacked machine could have written
        │         qcow2_revisions.py   older states as layers
        ├── drivers/file_reflink.py    raw files, copied by sharing blocks
        └── drivers of other packages  entry point group casemate.storage
              common to drivers that use files: volume_files.py, revision_names.py
              read by backups: nbd_export.py serves a saved state, saved_state.py tells what changed in it

What happens to a volume is decided by three flags of the model: ``save_on_stop`` (kept), ``snap_on_start`` (each run
begins with what the source is at that moment and is thrown away), neither (each run begins empty). A driver decides
how. Two facts shape every driver:

* A template runs while other qubes are based on it. They must see none of its changes until it has stopped, and keep
  what they started with after it has.
* What a machine can write is hostile, headers of image formats included. Every format is named to QEMU and to tools,
  and a file that a machine could write is opened only by a program that runs as that machine's user, or by one that
  does not interpret it.

A driver declares its name and options in one place (driver.py); the Admin API, ``qvm-pool`` and the reference page read
the declaration. docs/howto/extend.md says how to add one.
"""
