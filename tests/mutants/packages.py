"""Mutants of what installing, upgrading and removing must not do."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_INSTALLATION = "tests/unit/test_installation.py::"
_ACTIVATION = "tests/component/test_socket_activation.py::"
_SUCCESSION = "tests/component/test_daemon_succession.py::test_what_an_ending_daemon_holds_is_waited_for"
_UNINSTALL = "src/casemate/cli/uninstall.py"

MUTANTS = (
    Mutant(
        "newer-store-opened", "a state of a newer version is refused", "src/casemate/store/reader.py",
        "if version > layout.FORMAT:", "if False:",
        ("tests/unit/test_older_states.py::test_a_newer_format_is_refused_and_left_as_it_is",),
    ),
    Mutant(
        "package-over-newer-store", "a package is not installed over a state that it cannot read",
        "packaging/debian/casemate.preinst", '-gt "#FORMAT#"', '-gt "1000000000"',
        (f"{_INSTALLATION}test_a_package_is_not_installed_over_a_newer_state",),
    ),
    Mutant(
        "uninstall-takes-disks", "uninstall keeps disks unless told", _UNINSTALL,
        "if path.name not in KEPT]", "]",
        (f"{_INSTALLATION}test_disks_and_store_stay_unless_told",),
    ),
    Mutant(
        "half-a-net-qube-stays", "half of a qube that setup makes does not stay", "src/casemate/cli/setup.py",
        "            qubes.remove(name)  # half of a net qube would count as there at the next run\n", "",
        ("tests/component/test_setup_tool.py::test_half_of_a_qube_does_not_stay",), slow=True,
    ),
    Mutant(
        "uninstall-takes-a-shared-cache", "uninstall of a named state leaves the cache that others share", _UNINSTALL,
        "if settings.origin in (OWN, ROOT):", "if True:",
        (f"{_INSTALLATION}test_the_cache_that_others_share_stays_with_a_named_state",),
    ),
    Mutant(
        "uninstall-leaves-timers", "uninstall takes back what lies outside of the state", _UNINSTALL,
        "    host_timers.of_kind(schedule.timer, root).remove(unit)\n", "",
        (f"{_INSTALLATION}test_what_lies_outside_of_the_state_is_taken_back",),
    ),
    Mutant(
        "interop-removes-a-packages-links", "what a package has put in place is the package's",
        "src/casemate/cli/interop.py", ' and f"/{place}" not in packaged', "",
        (f"{_INSTALLATION}test_links_of_a_package_are_not_ours_to_remove",),
    ),
    Mutant(
        "purge-takes-disks", "purge of the package keeps the disks", "packaging/debian/casemate.postrm",
        "! -name pools ", "", (f"{_INSTALLATION}test_the_purge_of_the_package_keeps_the_same_names",),
    ),
    Mutant(
        "driver-not-waited-for", "a new daemon waits until the one before it has let go of libvirt's driver",
        "src/casemate/host/room/__main__.py",
        "        await driver_is_free(load(), end - time.monotonic())\n", "",
        (_SUCCESSION,), slow=True,
    ),
    Mutant(
        "ending-daemon-not-waited-for", "a tool waits for a daemon that is just ending",
        "src/casemate/client/transport.py", "os.waitstatus_to_exitcode(status) == _ANOTHER_SERVES", "False",
        (_SUCCESSION,), slow=True,
    ),
    Mutant(
        "ending-daemon-taken-for-another", "a daemon of the same directory is not taken for one of another",
        "src/casemate/daemon/main.py", "if elsewhere == str(settings.run):", "if False:", (_SUCCESSION,), slow=True,
    ),
    Mutant(
        "sockets-of-another-process", "sockets that systemd has passed to another process are not taken",
        "src/casemate/daemon/activation.py", "if pid != str(os.getpid()):", 'if pid == "":',
        (f"{_ACTIVATION}test_sockets_for_another_process_are_left_alone",),
    ),
    Mutant(
        "descriptor-that-does-not-listen", "a descriptor that is no listening socket is refused",
        "src/casemate/daemon/activation.py", "one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)", "True",
        (f"{_ACTIVATION}test_a_socket_that_does_not_listen_is_refused",),
    ),
    Mutant(
        "systemds-socket-removed", "a socket of systemd's stays when the daemon ends", "src/casemate/api/server.py",
        "if self._path is not None and not self._keeps_path else []", "if self._path is not None else []",
        (f"{_ACTIVATION}test_the_daemon_serves_on_a_socket_that_it_was_given",), slow=True,
    ),
    Mutant(
        "open-socket-taken-for-the-groups", "a socket that others may use is not taken for the group's",
        "src/casemate/api/server.py", "found.st_mode & 0o007 == 0 and ", "",
        (f"{_ACTIVATION}test_only_a_socket_of_the_groups_is_shared",), root=True,
    ),
    Mutant(
        "members-led-to-anybodys-state", "members of the group are led to root's state only",
        "src/casemate/settings.py", "if os.stat(WHOLE_HOST[0]).st_uid != 0:",
        "if False and os.stat(WHOLE_HOST[0]):",
        ("tests/unit/test_settings.py::test_which_state_a_program_means",),
    ),
)  # fmt: skip
