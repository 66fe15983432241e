r"""A backup that is read in a disposable: what it and this host say to each other, and the program that runs there.

::

    this host                                   a disposable without a network
    client/paranoid.py                          inside.py
      |  ORDER: passphrase, form, filter  ──>     |
      |  DATA: bytes of the backup        <──>    |  NEED      reader.py, the same that reads on the host
      |                                   <──     |  CONTENTS  the qubes, as JSON
      |  RUN: which of them               ──>     |
      |  DONE, or FAILED and why          <──>    |  VOLUME, WRITE, FINISH; FILE
      |                                   <──     |  REPORT    a verdict for each qube
    Restore, or Nothing (verify)

Whoever made the backup may have made it to take over its reader. So the reader runs where it can do no harm: the
disposable has no network and no disk of anybody else, and the policy refuses all of its calls. It gets the bytes and
the passphrase. All that it can do is speak these frames (``frames.py``). They come one at a time, each bounded, and
this host makes values of them in one place (``facts.py``) or refuses them.

So a hostile backup decides what the restored qubes are, as it always does. It cannot do more: this host creates qubes
under names that nobody has, and changes only what it has created (``client/new_qubes.py``).

``inside.py`` and what it imports reach the disposable as an archive of Python modules (``package.py``) and need nothing
there but Python, libcrypto and libzstd.
"""
