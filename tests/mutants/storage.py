"""Mutants of volumes, and of what arrives as files."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_HEADER = "src/casemate/storage/qcow2_header.py"
_FIELDS = ("tests/unit/test_qcow2_header.py::test_what_a_hijacked_machine_could_write_is_refused",)
_QCOW2 = "src/casemate/storage/drivers/qcow2.py"
_UNPACK = "src/casemate/filecopy/unpack.py"
_QFILE = "src/casemate/wire/qfile.py"
_TESTS = "tests/unit/test_qfile.py::"
_ATTACK = (f"{_TESTS}test_qsb_014_lesson_L17_L18_an_attack_leaves_nothing",)

_WARM = "tests/component/test_warm_borg.py::"

MUTANTS = (
    Mutant(
        "borg-outlives-its-server", "a borg that was forked ends with the backup that it is for",
        "src/casemate/backup/incremental/borg_server.py",
        "ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)", "pass",
        (f"{_WARM}test_a_killed_server_takes_its_command_with_it",), slow=True,
    ),
    Mutant(
        "borg-failure-taken-for-done", "a borg that has failed is not taken for one that has warned",
        "src/casemate/backup/incremental/borg_server.py", "status = _ERROR", "status = 1",
        (f"{_WARM}test_what_fails_before_borg_is_no_warning",),
    ),
    Mutant(
        "layer-unhashed", "a volume counts as whole only when it is what was once read",
        "src/casemate/backup/incremental/repository.py",
        "if not data and self._hash.hexdigest() != self._layer.sha256:", "if False:",
        ("tests/component/test_backup_incremental.py::test_a_damaged_repository",), slow=True,
    ),
    Mutant(
        "damaged-relied-on", "no backup is made that relies on damaged data",
        "src/casemate/backup/incremental/job.py", "        if memory.damaged:\n", "        if False:\n",
        ("tests/component/test_backup_incremental.py::test_a_damaged_repository",), slow=True,
    ),
    Mutant(
        "content-by-name", "what a merge has changed is not taken for unchanged",
        "src/casemate/storage/saved_state.py", 'f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"',
        'f"{status.st_ino}"',
        ("tests/unit/test_saved_states.py::test_without_older_states_a_run_changes_all",),
    ),
    Mutant(
        "other-backing-file", "S1", _HEADER,
        "if name != expected or name_size != len(expected):", "if False:", _FIELDS,
    ),
    Mutant(
        "other-features", "S1", _HEADER,
        "if encryption or incompatible & ~_DIRTY:", "if False:", _FIELDS,
    ),
    Mutant(
        "other-extensions", "S1", _HEADER,
        "if kind not in (_BACKING_FORMAT, _FEATURE_NAMES) or at + 8 + size > len(header):",
        "if at + 8 + size > len(header):", _FIELDS,
    ),
    Mutant(
        "other-backing-format", "S1", _HEADER,
        'if kind == _BACKING_FORMAT and header[at + 8 : at + 8 + size] != b"qcow2":', "if False:", _FIELDS,
    ),
    Mutant(
        "merge-unchecked", "S1", _QCOW2, "        check_file(merge, path)\n", "",
        ("tests/unit/test_qcow2_pool.py::test_forged_header_of_a_half_merged_volume_is_refused",),
    ),
    Mutant(
        "run-unchecked", "S1", _QCOW2, "            check_file(run, path)\n", "",
        ("tests/unit/test_qcow2_pool.py::test_forged_header_of_a_volume_that_others_read_is_refused",),
    ),
    Mutant(
        "id-leads-out", "S7", "src/casemate/storage/volume_files.py",
        'self.directory / qube_name(qube) / f"{service_name(volume)}', 'self.directory / qube / f"{volume}',
        ("tests/unit/test_qcow2_pool.py::test_ids_that_lead_out_of_the_pool_are_refused",),
    ),
    Mutant(
        "removal-follows-links", "S7", "src/casemate/host/files.py",
        "status = path.lstat()", "path = path.resolve()\n        status = path.lstat()",
        ("tests/unit/test_host_files.py::test_remove_does_not_follow_links",),
    ),
    Mutant(
        "open-follows-links", "S7", "src/casemate/host/files.py",
        "_RESOLVE_BENEATH_NO_LINKS = 0x08 | 0x04 | 0x02", "_RESOLVE_BENEATH_NO_LINKS = 0",
        ("tests/unit/test_host_files.py::test_nothing_leads_out_of_the_directory",),
    ),
    Mutant(
        "files-of-volumes-for-all", "V2", "src/casemate/storage/volume_files.py",
        "path.chmod(0o600)", "path.chmod(0o644)",
        ("tests/unit/test_qcow2_pool.py::test_each_machine_owns_its_files_and_only_its_own",), root=True,
    ),
    Mutant(
        "merge-left-readable", "a volume that is half merged is read by nobody", _QCOW2,
        'if self._files.path(vid, ".merge").exists():', "if False:",
        ("tests/unit/test_qcow2_pool.py::test_merge_that_was_cut_short_blocks_readers_until_it_is_done",),
    ),
    Mutant(
        "disk-filled-by-copy", "limit: room that stays free on the receiver's disk", _UNPACK,
        "free = space.f_bavail * space.f_frsize - floor", "free = space.f_bavail * space.f_frsize",
        (f"{_TESTS}test_lesson_L17_the_receivers_disk_is_never_filled",),
    ),
    Mutant(
        "inodes-used-up-by-copy", "limit: inodes that stay free on the receiver's disk", _UNPACK,
        "inodes = space.f_favail - SPARE_INODES if space.f_files else CHECK_FILES", "inodes = CHECK_FILES",
        (f"{_TESTS}test_small_files_do_not_fill_the_disk_either",),
    ),
    Mutant(
        "disk-filled-by-small-files", "limit: room that stays free on the receiver's disk", _UNPACK,
        "if cost > self._room or not self._inodes:", "if cost > CHECK_BYTES:",
        (f"{_TESTS}test_small_files_do_not_fill_the_disk_either",),
    ),
    Mutant(
        "disk-filled-meanwhile", "limit: room that stays free on the receiver's disk", _UNPACK,
        "if unchecked > CHECK_BYTES:", "if False:",
        (f"{_TESTS}test_a_disk_that_others_fill_meanwhile_is_noticed",),
    ),
    Mutant(
        "copy-unlimited", "limits of a copy that were set", _UNPACK,
        'self._allow("max-bytes", self._bytes)', "pass",
        (f"{_TESTS}test_lesson_L17_limits_are_exact",),
    ),
    Mutant(
        "files-unlimited", "limits of a copy that were set", _UNPACK,
        'self._allow("max-files", self._files)', "pass",
        (f"{_TESTS}test_lesson_L17_limits_are_exact", *_ATTACK),
    ),
    Mutant(
        "repeats-unlimited", "limits of a copy that were set", _UNPACK,
        'self._allow("max-files", self._repeats)', "pass", _ATTACK,
    ),
    Mutant(
        "copy-follows-links", "nothing is unpacked through a link", "src/casemate/filecopy/directories.py",
        "DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
        "DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC", _ATTACK,
    ),
    Mutant(
        "copy-overwrites", "what is there already stays", _UNPACK,
        "os.link(name, name, src_dir_fd=self._stage, dst_dir_fd=self._target, follow_symlinks=False)",
        "os.rename(name, name, src_dir_fd=self._stage, dst_dir_fd=self._target)",
        (f"{_TESTS}test_a_name_that_is_taken_meanwhile_is_not_overwritten",),
    ),
    Mutant(
        "silent-sender-waited-for", "limit: receiver: time without data", _UNPACK,
        "if not self._poll.poll(self._idle * 1000):", "if False:",
        (f"{_TESTS}test_a_sender_that_stops_is_not_waited_for",), slow=True,
    ),
    Mutant(
        "failed-copy-stays", "a copy that failed leaves nothing", _UNPACK,
        "            self._cursor.close()\n            remove_tree(self._target, os.fsencode(self._stage_name))",
        "            self._cursor.close()", _ATTACK,
    ),
    Mutant(
        "odd-names-unasked", "names with any characters are taken only where that was asked for", _QFILE,
        "    if not all_names:\n        _check_characters(name, \"name\")", "    if False:\n        pass",
        (f"{_TESTS}test_all_names_are_taken_where_that_was_asked_for",),
    ),
    Mutant(
        "setuid-arrives", "never setuid, setgid or sticky", _QFILE,
        "return self.mode & 0o777", "return self.mode & 0o7777", (f"{_TESTS}test_a_good_stream",),
    ),
    Mutant(
        "name-leads-out", "names are plain relative paths", _QFILE,
        'part in (b"", b".", b"..")', 'part in (b"", b".")', (f"{_TESTS}test_lesson_L19_names_that_are_not_taken",),
    ),
    Mutant(
        "link-leads-out", "a link stays in its top directory", _QFILE,
        'if up > len(parts) - 2 or b".." in steps[up:]:', "if False:",
        (f"{_TESTS}test_lesson_L18_links_stay_in_their_top_directory",),
    ),
    Mutant(
        "names-deceive", "names cannot be mistaken on a screen", _QFILE,
        'if unicodedata.normalize("NFKC", letters) != letters:', "if False:",
        (f"{_TESTS}test_lesson_L19_names_that_are_not_taken",),
    ),
    Mutant(
        "device-arrives", "only files, directories and links arrive", _QFILE,
        "if not (header.is_dir or header.is_link or header.is_file):", "if False:", _ATTACK,
    ),
)  # fmt: skip
