"""The wire room: a network namespace of one state, and the one process that works in it.

::

      casemated (the host's own namespaces)
        RoomProcess (client.py) ── pickled requests over a socketpair ──┐
                                                                        ▼
     ╔═ user + network namespace of the state ═══════════════════════════════════════════════════════╗
     ║  casemate-room (__main__.py, server.py)                                                        ║
     ║     libvirt's embedded driver ── starts ──▶ QEMU, QEMU, ...   (each opens its taps here)       ║
     ║     links.py ── rtnetlink ──▶ taps u12, d3, ...        nft.py ── libnftables ──▶ table room    ║
     ║                                                                                                ║
     ║     u12 ─ guard, firewall ─ fwd ─▶ d3    d3 ─ guard ─ fwd ─▶ u12    u3 ─ fwd ─▶ x3 ── pasta     ║
     ╚════════════════════════════════════════════════════════════════════════════════════════════════╝

Why a namespace: the host's own namespace has no interface of any qube, so no rule is needed that keeps a qube away from
the host, and none can be forgotten. The room's own network stack has no address and forwards nothing. What a tap
receives goes to another tap by an nft rule at its ingress, or nowhere.

Why libvirt is here: its embedded driver starts QEMU, and opens taps, in the namespace of its caller. A process that has
entered a user namespace cannot leave it again, and casemated needs the host's network (to build templates, to run the
host's services). So the driver moved out of casemated, and casemated keeps both sides of its work apart.

Life: casemated starts this process and it ends with casemated's end of the socketpair. The namespace lives as long as
anything is in it: this process, a QEMU, a pasta. A new casemated finds it by those (``namespaces.find``), so qubes keep
their wires, and taps and rules stand while no daemon runs: what was forbidden stays forbidden. When nothing is left in
it, the kernel removes it with all taps and rules.

As root the namespace belongs to a user namespace of an account of its own, the one that pasta runs as: pasta gives up
root before it opens the namespace, and may open only one that its user owns. As an ordinary user it belongs to that
user. QEMU and the links are never in that user namespace (as root), or are without capabilities (libvirt clears them).

Modules: ``namespaces`` makes, finds and enters the room; ``links`` makes and removes taps; ``nft`` loads rules;
``server`` answers requests; ``client`` is casemated's end; ``messages`` is what goes between the two.
"""
