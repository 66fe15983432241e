"""The shared collection of qubes on disk: one file, read without a lock, changed under one.

::

    snapshot()   read()        write()  change()                 store.py, group_commit.py
        |          |              |        |
        |          +---- lock ----+--------+                     lock.py (flock, or LockFileEx), order.py
        v                         v
      cache  <------------- Transaction.system                   the model's System: a copy to work on
        ^                         |
        | same inode, time, size? | invariants hold?
        v                         v
     reader.py  <- layout.py -> writer.py                        what each element of the XML means, stated once
        ^   ^                     |
        |   +---- parts.py <------+                              a known file's text, qube by qube: only what
        |                         v                              differs is read or written again
     data_file.py  ---------->  qubes.xml                        temporary file, fsync, rename, fsync of the directory
                                qubes.xml.1, qubes.xml.history/  history.py

`Store` is what the rest of Casemate uses; it has the cache and tells subscribers what a commit changed.

* ``snapshot()`` never waits: a rename is atomic, so there is always one whole file. Whoever wants to look at qubes
  uses it. Its system is shared and frozen.
* ``read()`` holds the lock shared: nobody changes the file while the block runs.
* ``write()`` holds it exclusively. The block changes a copy of the system. At its end the model's invariants are
  checked, and all of the copy is saved or nothing is.

Other modules: ``document.py`` parses XML from anywhere within bounds, ``files.py`` has the system calls of a save
(tests of crashes come between them), ``file_system.py`` refuses network file systems, ``watch.py`` tells when the file
changed, ``upgrade.py`` imports the file of Qubes OS 3, and ``python -m casemate.store`` is the store from a shell.

The seven promises of this package, with their tests, are on the page ``docs/explanation/store.md``.
"""
