"""What qubes are: synchronous, no I/O, no clock, no randomness.

::

    wire.names, wire.errors
       ^
    labels   volumes   devices   changes            plain values
       ^
    kinds ── defaults ── properties                 a setting is declared once
       ^
    qube ── features, tags, assignments             State, and the views through which it is changed
       ^
    qube_settings ── network ── domain ── classes   all properties of qubes; the six classes
       ^
    domains ── system                               the whole: what a transaction changes, and a snapshot shows
       ^
    invariants, diff                                what must hold at its end; what differs between two systems

Imports follow the picture, upwards only. Where a module needs something from above (a property its system, a qube its
neighbours), it says what in a small protocol of its own.

How a change travels: somebody sets ``qube.memory`` on the copy of the system that a transaction works on. The
property's kind checks the value, `System.record` notes a `Change`, the qube takes a state of its own if it shared one,
and the value is stored. At the end of the transaction the invariants that the changes can have broken are checked.
After the save the changes are announced, typed as they are.

A `System` that was read or committed is frozen. It can be used from any thread, as nobody changes it any more.
"""
