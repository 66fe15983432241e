"""The network of qubes: what it should be (pure), and the programs that connect it to this host's.

::

    store: netvm, ip, mac, features ─┐
    firewall.xml of each qube ───────┼──▶ plan.py: Plan ──▶ guard.py: nft rules by tap ──▶ host/room: taps and rules
    which qubes run ─────────────────┘        │
                                              └──▶ keys.py: the same facts as keys of QubesDB ──▶ agents of guests
    explain.py: which rule decides        ways_out.py: what feature net.uplink of a net qube names:
                                            uplink.py: pasta      card_uplink.py: a card of this host

A *wire* has two ends. ``uN`` is the tap of the one interface that a qube has towards its net qube, ``dN`` that of the
one interface that a net qube has towards all qubes it serves, ``xN`` the uplink of a net qube (``guard_lan.py``: where
that is a card, with a network of others behind it); N is the qube's qid. An
nft rule at the ingress of each tap sends a frame out of another (``fwd to``), so there is no bridge and no stack of the
host between two qubes. The guard of a net qube's tap knows by destination which wire a packet is for.

One interface for all qubes that are served has consequences that we want. A net qube gets no new device when a qube
starts, so attaching is a change of rules, and nothing limits how many it serves. It cannot be fooled about who sent a
packet, because the guard has checked that before. Two qubes that it serves have no common medium: what one sends goes
to the net qube alone.

The engine (``engine/network.py``) keeps the room in step with the plan: it computes the plan anew after every change,
and sends the difference as one transaction.
"""
