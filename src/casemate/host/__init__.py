"""Everything outside this process: libvirt, programs, files, the kernel's devices. The only importer of libvirt.

::

    engine, storage, devices ask               what is outside
    ────────────────────────────               ─────────────────────────────────────────────────
    hypervisor.py: the contract
      libvirt_machines, libvirt_connection ──▶ libvirt, embedded (libvirt_embed) or a daemon ──▶ QEMU
        domain_xml, _qemu, _disk                 machines as XML, computed from a MachineSpec (pure)
        libvirt_errors, libvirt_states           its error codes and states become ours
        guest_memory, libvirt_images,            memory and devices of a machine, saved once, started from many
        memory_map                               times; or copied while it runs
        qemu_access                              which files and nodes each machine's user may open
    process.py: Runner ──────────────────────▶ programs, with a deadline, an account, no shell
    lasting_process, orphans ────────────────▶ processes that outlive their parent: found again, reaped
    files.py ────────────────────────────────▶ files: replaced whole, copied without holes, opened below a directory
    kernel_devices, uevents ─────────────────▶ /sys, /proc, /dev; the kernel's events
    acceleration, protections, versions, tsc ▶ what this host can do for qubes
    template_build, template_hooks,
    image_files, guest_kernel, initrd/,        images and kernels, built from Debian's packages
      agent_package, debian_archive,           how far a build is, and its room in memory
      build_steps, build_memory ─────────────▶
    cards, card_records ─────────────────────▶ Ethernet cards of the host, moved into the wire room and back
    plugins.py ──────────────────────────────▶ what other Python packages add (drivers, classes of devices)

Foreign errors end here: what leaves this package is a CasemateError that says what was asked and what is wrong, with
the cause kept (``from``). Blocking calls run in threads or processes, never in the event loop. Nothing here knows what
a qube is; the engine turns qubes into machines, files and arguments before it asks.
"""
