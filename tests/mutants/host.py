"""Mutants of machines and of what confines them: rows of the hardening table."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_XML = "src/casemate/host/domain_xml_qemu.py"
_HEAD = "src/casemate/host/domain_xml.py"
_EMBED = "src/casemate/host/libvirt_embed.py"
_ACCESS = "src/casemate/host/qemu_access.py"
_TESTS = "tests/unit/test_domain_xml.py::"
_GOLDEN = (f"{_TESTS}test_xml_is_the_golden_one",)
_KNOWN = (f"{_TESTS}test_no_device_but_those_we_know",)
_CHAIN = (f"{_TESTS}test_every_disk_says_its_whole_chain",)
_ENDS = (f"{_TESTS}test_guest_cannot_restart_itself_nor_nest",)
_USER = (f"{_TESTS}test_a_user_of_its_own_and_nothing_relabelled",)
_CONFINE = "tests/unit/test_qemu_confinement.py::"
_EVERY = (f"{_CONFINE}test_every_driver_is_told_to_confine_qemu",)
_AS_ROOT = (f"{_CONFINE}test_a_driver_of_root_limits_what_qemu_sees_and_takes",)
_OWNS = (f"{_CONFINE}test_a_machine_owns_what_it_writes_and_reads_the_rest",)
_LINKS = (f"{_CONFINE}test_a_disk_that_is_a_link_or_no_file_is_given_to_nobody",)

_MEMORY = "tests/component/test_build_memory.py::"

MUTANTS = (
    Mutant(
        "lock-among-low-descriptors", "programs have low descriptors", "src/casemate/host/build_memory.py",
        "fd = _high(_locked(path))", "fd = _locked(path)",
        ("tests/component/test_build_memory.py::test_programs_find_the_low_descriptors_free",),
    ),
    Mutant(
        "build-memory-never-given-back", "kill -9 leaves nothing for good", "src/casemate/host/build_memory.py",
        "    await _sweep(runner, memory)\n", "",
        (f"{_MEMORY}test_what_a_killed_builder_left_is_removed_when_its_programs_have_gone",), slow=True,
    ),
    Mutant(
        "build-memory-empties-a-mount", "what is mounted is the host's", "src/casemate/host/build_memory.py",
        "    if _mounted_below(path):\n", "    if False:\n",
        (f"{_MEMORY}test_what_is_mounted_below_is_never_emptied",), root=True,
    ),
    Mutant(
        "build-memory-taken-away", "a lock is looked at", "src/casemate/host/build_memory.py",
        "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "",
        (f"{_MEMORY}test_what_a_killed_builder_left_is_removed_when_its_programs_have_gone",), slow=True,
    ),
    Mutant("no-user-of-its-own", "V2", _XML, "if spec.uid is not None and spec.gid is not None:", "if False:", _USER),
    Mutant("shared-files-relabelled", "V2", _XML, 'model="dac", relabel="no"', 'model="dac", relabel="yes"', _USER),
    Mutant("owners-changed-by-libvirt", "V2", _EMBED, "dynamic_ownership = 0\n", "dynamic_ownership = 1\n", _AS_ROOT),
    Mutant(
        "written-disk-for-all", "V2", _ACCESS,
        "_own(disk.path, spec.uid, spec.gid, 0o600)", "_own(disk.path, spec.uid, spec.gid, 0o660)", _OWNS, root=True,
    ),
    Mutant(
        "layer-of-others-owned", "S3", _ACCESS,
        "_own(path, 0, spec.gid, 0o640)", "_own(path, spec.uid, spec.gid, 0o640)", _OWNS, root=True,
    ),
    Mutant(
        "read-disk-owned", "S3", _ACCESS,
        "_own(disk.path, 0, spec.gid, 0o640)", "_own(disk.path, spec.uid, spec.gid, 0o640)", _OWNS, root=True,
    ),
    Mutant(
        "own-layer-writable", "S3", _ACCESS,
        "_own(path, spec.uid, spec.gid, 0o400)", "_own(path, spec.uid, spec.gid, 0o600)", _OWNS, root=True,
    ),
    Mutant(
        "disk-link-followed", "V2", _ACCESS,
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK", "os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK",
        _LINKS, root=True,
    ),
    Mutant("no-file-as-disk", "V2", _ACCESS, "if not stat.S_ISREG(status.st_mode):", "if False:", _LINKS, root=True),
    Mutant(
        "socket-link-followed", "V2", _ACCESS,
        "os.chown(path, spec.uid, spec.gid, follow_symlinks=False)", "os.chown(path, spec.uid, spec.gid)",
        (f"{_CONFINE}test_sockets_are_handed_over_and_links_are_not_followed",), root=True,
    ),
    Mutant(
        "any-file-lent", "only block devices are lent", _ACCESS,
        "if not stat.S_ISBLK(path.lstat().st_mode):", "if False:", (f"{_CONFINE}test_only_block_devices_are_lent",),
    ),
    Mutant("no-seccomp", "V4", _EMBED, "seccomp_sandbox = 1\n", "seccomp_sandbox = 0\n", _EVERY),
    Mutant("capabilities", "V4", _EMBED, "clear_emulator_capabilities = 1\n", "", _EVERY),
    Mutant("cores", "V4", _EMBED, "max_core = 0\n", "", _EVERY),
    Mutant("no-namespace", "V5", _EMBED, "{_QUOTED_MOUNT if mount_namespaces else ''}", "", _AS_ROOT),
    Mutant("more-devices-of-the-host", "V5", _EMBED, '"/dev/kvm" ]', '"/dev/kvm", "/dev/mem" ]', _AS_ROOT),
    Mutant("no-limit-of-processes", "V6", _EMBED, "max_processes = 256\n", "", _AS_ROOT),
    Mutant("no-limit-of-files", "V6", _EMBED, "max_files = 1024\n", "", _AS_ROOT),
    Mutant(
        "text-is-xml", "V8", _HEAD,
        'child(domain, "title", spec.title)', 'domain.append(etree.fromstring(f"<title>{spec.title}</title>"))',
        (f"{_TESTS}test_text_stays_text",),
    ),
    Mutant(
        "usb-for-all", "D1-D5", _XML,
        'child(devices, "controller", type="usb", model="none")', "pass", _KNOWN,
    ),
    Mutant("balloon", "D9", _XML, 'child(devices, "memballoon", model="none")', "pass", _KNOWN),
    Mutant("old-devices", "D1-D5", _XML, '_MODERN = "virtio-non-transitional"', '_MODERN = "virtio"', _KNOWN),
    Mutant("hpet", "D1-D5", _XML, 'child(clock, "timer", name="hpet", present="no")', "pass", _GOLDEN),
    Mutant("smm", "D1-D5", _XML, 'child(features, "smm", state="off")', "pass", _GOLDEN),
    Mutant("vmport", "D1-D5", _XML, 'child(features, "vmport", state="off")', "pass", _GOLDEN),
    Mutant(
        "nested-amd", "D8", _XML, 'child(cpu, "feature", policy="disable", name="svm")', "pass", _ENDS,
    ),
    Mutant(
        "nested-intel", "D8", _XML, 'child(cpu, "feature", policy="disable", name="vmx")', "pass", _GOLDEN,
    ),
    Mutant("guest-reboots", "D10", _HEAD, 'child(domain, event, "destroy")', 'child(domain, event, "restart")', _ENDS),
    Mutant("random-unlimited", "D11", _XML, 'child(rng, "rate", bytes=4096, period=1000)', "pass", _GOLDEN),
    Mutant(
        "kernel-of-the-qube", "D12", "src/casemate/engine/machine.py",
        "kernel_name(domain.kernel)", "domain.kernel",
        ("tests/unit/test_start_steps.py::test_a_kernel_is_a_name_in_our_directory",),
    ),
    Mutant("memory-merged", "H4", _HEAD, 'child(child(domain, "memoryBacking"), "nosharepages")', "pass", _ENDS),
    Mutant(
        "format-probed", "S1", _XML, 'name="qemu", type=disk.format, cache=', 'name="qemu", type=None, cache=', _CHAIN,
    ),
    Mutant("chain-open", "S2", _XML, '    child(layer, "backingStore")\n', "", _CHAIN),
    Mutant("read-only-disk-written", "S3", _XML, 'child(element, "readonly")', "pass", _GOLDEN),
    Mutant("cache-unsafe", "S5", _XML, 'cache="unsafe" if disk.scratch else "writeback"', 'cache="unsafe"', _GOLDEN),
    Mutant(
        "no-such-domain-is-an-error", "law 1", "src/casemate/host/libvirt_machines.py",
        "                if code_of(error) in _ABSENT:\n                    return None\n", "",
        ("tests/component/laws/test_law1_lazy_definition.py"
         "::test_looking_defines_nothing_and_starting_defines_again",), slow=True,
    ),
    Mutant(
        "looking-defines", "law 1", "src/casemate/host/libvirt_machines.py",
        "machines = (self._machine(domain, stats) for domain, stats in connection.getAllDomainStats(STATS))",
        "machines = [self._machine(domain, stats) for domain, stats in connection.getAllDomainStats(STATS)]\n"
        "            for domain in connection.listAllDomains():\n"
        "                connection.defineXMLFlags(domain.XMLDesc(0), 0)",
        ("tests/component/laws/test_law1_lazy_definition.py"
         "::test_looking_defines_nothing_and_starting_defines_again",),
    ),
    Mutant(
        "our-environment-leaks", "nothing of our environment reaches programs", "src/casemate/host/process.py",
        'env = {"PATH": _PATH, "LANG"', 'env = {**os.environ, "PATH": _PATH, "LANG"',
        ("tests/unit/test_host_files.py::test_our_environment_does_not_leak",),
    ),
    Mutant(
        "vulnerable-is-fine", "H1-H5", "src/casemate/host/protections.py",
        'if "Vulnerable" in text or "no microcode" in text', 'if "no microcode" in text',
        ("tests/unit/test_protections.py::test_what_is_bad_is_told",),
    ),
    Mutant(
        "merging-is-fine", "H1-H5", "src/casemate/host/protections.py",
        '_text(base, "sys/kernel/mm/ksm/run") in (None, "0")', "True",
        ("tests/unit/test_protections.py::test_what_is_bad_is_told",),
    ),
    Mutant(
        "trials-of-qemu-not-reaped", "a new daemon serves within the time that tools wait",
        "src/casemate/host/libvirt_machines.py",
        "        watch_orphans(asyncio.get_running_loop())\n    await machines.open()",
        "        await machines.open()\n        watch_orphans(asyncio.get_running_loop())",
        ("tests/component/test_libvirt_machines.py::test_machines_are_found_again_where_nothing_is_known_of_qemu",),
        slow=True, root=True,
    ),
    Mutant(
        "others-children-reaped", "a program's status reaches whoever waits for it", "src/casemate/host/orphans.py",
        "elif session == pid and _has_ended(pid):", "elif os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG):",
        ("tests/component/test_orphans.py::test_orphans_are_reaped_and_children_keep_their_status",), slow=True,
    ),
    Mutant(
        "trials-of-qemu-left", "no ended process stays", "src/casemate/host/orphans.py",
        "loop.call_later(_LEADER_SECONDS, reap_leaders, leaders)", "pass",
        ("tests/component/test_orphans.py::test_orphans_are_reaped_and_children_keep_their_status",),
    ),
)  # fmt: skip
