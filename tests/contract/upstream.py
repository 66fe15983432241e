"""Every method that upstream's daemon and its policy program have, with a call that works and the reply's form."""

from __future__ import annotations

import re
from dataclasses import dataclass

PROPERTY = r"(default=(True|False) )?type=(str|int|bool|vm|label) .*"
LINES = r"([^\n]+\n)*"
EMPTY = r""
OK = "0"
"""Marks a reply that is a success."""


@dataclass(frozen=True)
class Call:
    """``reply`` is a pattern for the whole content of a success, or ``!TYPE`` for the documented refusal."""

    method: str
    dest: str = "dom0"
    arg: str = ""
    payload: bytes = b""
    reply: str = EMPTY


def _properties(prefix: str, dest: str) -> list[Call]:
    name = "memory" if dest != "dom0" else "default_template"
    value = b"500" if dest != "dom0" else b"deb"
    return [
        Call(f"{prefix}.List", dest, reply=r"([a-z0-9_]+\n)+"),
        Call(f"{prefix}.Get", dest, name, reply=PROPERTY),
        Call(f"{prefix}.GetAll", dest, reply=rf"([a-z0-9_]+ {PROPERTY}\n)+"),
        Call(f"{prefix}.GetDefault", dest, name, reply=r"type=(int|vm) [0-9]*"),
        Call(f"{prefix}.Help", dest, name, reply=r".+"),
        Call(f"{prefix}.Set", dest, name, value),
        Call(f"{prefix}.Reset", dest, name),
    ]


def _devices(klass: str) -> list[Call]:
    start = f"admin.vm.device.{klass}"
    assigned = f"port_id='loop0' devclass='{klass}' backend_domain='dom0' mode='required' _read-only='yes'".encode()
    device = "dom0+loop0+_"
    if klass == "usb":  # there is no such device; the port that is named may be filled later
        return [
            Call(f"{start}.Available", "dom0", reply=LINES),
            Call(f"{start}.Assign", "work", device, assigned),
            Call(f"{start}.Assigned", "work", reply=r"dom0\+loop0:\S+ ([a-z_-]+='[^']*' ?)+\n"),
            Call(f"{start}.Attached", "work"),
            Call(f"{start}.Attach", "work", device, assigned, "!QubesVMNotRunningError"),
            Call(f"{start}.Detach", "work", device, reply="!QubesVMNotRunningError"),
            Call(f"{start}.Set.assignment", "work", device, b"auto-attach"),
            Call(f"{start}.Unassign", "work", device),
        ]
    if klass != "block":
        refused = "!QubesNotImplementedError"
        return [
            Call(f"{start}.Available", "dom0", reply=LINES),
            Call(f"{start}.Assigned", "work"),
            Call(f"{start}.Attached", "work"),
            Call(f"{start}.Assign", "work", device, assigned, refused),
            Call(f"{start}.Attach", "work", device, assigned, refused),
            Call(f"{start}.Set.assignment", "work", device, b"required", "!DeviceNotAssigned"),
            Call(f"{start}.Unassign", "work", device, reply="!DeviceNotAssigned"),
            Call(f"{start}.Detach", "work", device, reply="!QubesVMNotRunningError"),
        ]
    line = r"dom0\+loop0:\S+ ([a-z_-]+='[^']*' ?)+\n"
    return [
        Call(f"{start}.Available", "dom0", reply=r"loop0:file-[0-9a-f]{16} ([a-z_]+='[^']*' ?)+\n"),
        Call(f"{start}.Assign", "work", device, assigned),
        Call(f"{start}.Assigned", "work", reply=line),
        Call(f"{start}.Set.assignment", "work", device, b"auto-attach"),
        Call(f"{start}.Unassign", "work", device),
        Call("admin.vm.Start", "dvm"),
        Call(f"{start}.Attach", "dvm", device, b"_read-only='yes'"),
        Call(f"{start}.Attached", "dvm", reply=line),
        Call(f"{start}.Detach", "dvm", device),
        Call("admin.vm.Kill", "dvm"),
    ]


CALLS: list[Call] = [
    Call("admin.vmclass.List", reply=r"AdminVM\nAppVM\nDispVM\nRemoteVM\nStandaloneVM\nTemplateVM\n"),
    Call("admin.deviceclass.List", reply=r"([a-z]+\n)+"),
    *_properties("admin.property", "dom0"),
    Call("admin.label.List", reply=r"red\n([a-z]+\n)+"),
    Call("admin.label.Get", arg="red", reply=r"0x[0-9a-f]{6}"),
    Call("admin.label.Index", arg="red", reply=r"1"),
    Call("admin.label.Create", arg="mauve", payload=b"0xE0B0FF"),
    Call("admin.label.Remove", arg="mauve"),
    Call("admin.pool.List", reply=r"default\nlinux-kernel\n"),
    Call("admin.pool.ListDrivers", reply=r"file( [a-z_]+)+\nfile-reflink( [a-z_]+)+\nqcow2( [a-z_]+)+\n"),
    Call("admin.pool.Info", arg="default", reply=r"name=default\ndriver=qcow2\n([a-z_]+=.*\n)*"),
    Call("admin.pool.UsageDetails", arg="default", reply=r"(data_size=[0-9]+\ndata_usage=[0-9]+\n)?"),
    Call("admin.pool.Info", arg="linux-kernel", reply=r"name=linux-kernel\ndriver=linux-kernel\ndir_path=/.+\n"),
    Call("admin.pool.UsageDetails", arg="linux-kernel", reply=r""),
    Call("admin.pool.volume.List", arg="linux-kernel", reply=r""),
    Call("admin.pool.Add", arg="qcow2", payload=b"name=linux-kernel\n", reply="!QubesValueError"),
    Call("admin.pool.Remove", arg="linux-kernel", reply="!QubesValueError"),
    Call("admin.pool.Set.revisions_to_keep", arg="linux-kernel", payload=b"3", reply="!QubesValueError"),
    Call("admin.pool.Add", arg="qcow2", payload=b"name=extra\nrevisions_to_keep=2\n"),
    Call("admin.pool.Set.revisions_to_keep", arg="extra", payload=b"3"),
    Call("admin.pool.Set.ephemeral_volatile", arg="extra", payload=b"False"),
    Call("admin.pool.volume.List", arg="default", reply=r"([a-z]+/[a-z]+\n)+"),
    Call("admin.pool.Remove", arg="extra"),
    Call("admin.backup.Info", arg="daily", reply="!QubesBackupProfileNotFoundError"),
    Call("admin.backup.Execute", arg="daily", reply="!QubesBackupProfileNotFoundError"),
    Call("admin.backup.Cancel", arg="daily", reply="!QubesBackupProfileNotFoundError"),
    Call("admin.vm.List", reply=r"(\S+ class=\S+ state=[A-Z][a-z]+ uuid=[0-9a-f-]{36}\n)+"),
    Call("admin.vm.Create.TemplateVM", payload=b"name=tpl label=black"),
    Call("admin.vm.Create.AppVM", arg="deb", payload=b"name=new label=red"),
    Call("admin.vm.Create.StandaloneVM", payload=b"name=alone label=red"),
    Call("admin.vm.Create.RemoteVM", payload=b"name=far label=red"),
    Call("admin.vm.Create.DispVM", arg="dvm", payload=b"name=throw label=red"),
    Call("admin.vm.Create.AdminVM", payload=b"name=dom1 label=red", reply="!QubesValueError"),
    Call("admin.vm.CreateInPool.TemplateVM", payload=b"name=tpl2 label=black pool=default"),
    Call("admin.vm.CreateInPool.AppVM", arg="deb", payload=b"name=new2 label=red pool:private=default"),
    Call("admin.vm.CreateInPool.StandaloneVM", payload=b"name=alone2 label=red pool=default"),
    Call("admin.vm.CreateInPool.RemoteVM", payload=b"name=far2 label=red pool=default"),
    Call("admin.vm.CreateInPool.DispVM", arg="dvm", payload=b"name=throw2 label=red pool=default"),
    Call("admin.vm.CreateInPool.AdminVM", payload=b"name=dom1 label=red pool=default", reply="!QubesValueError"),
    Call("admin.vm.CreateDisposable", "dvm", reply=r"disp[0-9]+"),
    Call("admin.vm.Remove", "new"),
    Call("admin.vm.Start", "work"),
    Call("admin.vm.CurrentState", "work", reply=r"mem=\d+ mem_static_max=\d+ cputime=\d+ power_state=Running"),
    Call("admin.vm.Console", "work", reply=r"/dev/pts/[0-9]+"),
    Call("admin.vm.Pause", "work"),
    Call("admin.vm.Unpause", "work"),
    Call("admin.vm.Suspend", "work", reply="!QubesNotImplementedError"),
    Call("admin.vm.Resume", "work", reply="!QubesNotImplementedError"),
    Call("admin.vm.Shutdown", "work", "force+wait"),
    Call("admin.vm.Kill", "work", reply="!QubesVMNotStartedError"),
    *_properties("admin.vm.property", "work"),
    Call("admin.vm.feature.Set", "work", "os", b"Linux"),
    Call("admin.vm.feature.List", "work", reply=r"os\n"),
    Call("admin.vm.feature.Get", "work", "os", reply=r"Linux"),
    Call("admin.vm.feature.CheckWithTemplate", "work", "os", reply=r"Linux"),
    Call("admin.vm.feature.CheckWithNetvm", "work", "os", reply=r"Linux"),
    Call("admin.vm.feature.CheckWithAdminVM", "work", "os", reply=r"Linux"),
    Call("admin.vm.feature.CheckWithTemplateAndAdminVM", "work", "os", reply=r"Linux"),
    Call("admin.vm.feature.Remove", "work", "os"),
    Call("admin.vm.tag.Set", "work", "mine"),
    Call("admin.vm.tag.List", "work", reply=r"created-by-dom0\nmine\n"),
    Call("admin.vm.tag.Get", "work", "mine", reply=r"1"),
    Call("admin.vm.tag.Remove", "work", "mine"),
    Call("admin.vm.notes.Set", "work", payload="über".encode()),
    Call("admin.vm.notes.Get", "work", reply=r"über"),
    Call("admin.vm.firewall.Get", "work", reply=r"action=accept\n"),
    Call("admin.vm.firewall.Set", "work", payload=b"action=drop\n"),
    Call("admin.vm.firewall.Reload", "work"),
    Call("admin.vm.volume.List", "work", reply=r"root\nprivate\nvolatile\n"),
    Call("admin.vm.volume.Info", "work", "private", reply=r"([a-z_]+=[^\n]*\n)+"),
    Call("admin.vm.volume.ListSnapshots", "work", "private"),
    Call("admin.vm.volume.Revert", "work", "private", b"1-2", "!QubesVolumeRevisionNotFoundError"),
    Call("admin.vm.volume.Resize", "work", "private", b"3221225472"),
    Call("admin.vm.volume.Clear", "work", "private"),
    Call("admin.vm.volume.CloneFrom", "work", "private", reply=r"[0-9a-f]{32}"),
    Call("admin.vm.volume.CloneTo", "work", "private", b"0" * 32, "!QubesVolumeCopyTokenNotFoundError"),
    Call("admin.vm.volume.Set.revisions_to_keep", "work", "private", b"2"),
    Call("admin.vm.volume.Set.rw", "work", "private", b"True"),
    Call("admin.vm.volume.Set.ephemeral", "work", "volatile", b"False"),
    Call("admin.vm.volume.Import", "work", "private", b"data"),
    Call("admin.vm.volume.ImportWithSize", "work", "private", b"4\ndata"),
    *(call for klass in ("block", "pci", "usb", "mic") for call in _devices(klass)),
    Call("admin.vm.device.denied.Add", "work", payload=b"u030000"),
    Call("admin.vm.device.denied.List", "work", reply=r"u030000"),
    Call("admin.vm.device.denied.Remove", "work", payload=b"all"),
    Call("policy.List", reply=LINES),
    Call("policy.Replace", arg="30-test", payload=b"new\ntest.Service * work dom0 allow\n"),
    Call("policy.Get", arg="30-test", reply=r"sha256:[0-9a-f]{64}\ntest.Service \* work dom0 allow\n"),
    Call("policy.GetFiles", arg="test.Service", reply=r"30-test\n"),
    Call("policy.Remove", arg="30-test", payload=b"any"),
    Call("policy.include.List", reply=LINES),
    Call("policy.include.Replace", arg="few", payload=b"new\n# nothing\n"),
    Call("policy.include.Get", arg="few", reply=r"sha256:[0-9a-f]{64}\n# nothing\n"),
    Call("policy.include.Remove", arg="few", payload=b"any"),
]
"""In an order in which they work one after the other."""

STREAMS = ("admin.Events", "admin.vm.Stats")


def names() -> set[str]:
    """All methods of upstream."""
    return {call.method for call in CALLS} | set(STREAMS)


def fits(call: Call, reply: bytes) -> bool:
    """Whether a reply, as it came, has the documented form."""
    if call.reply.startswith("!"):
        fields = reply.split(b"\0")
        return fields[0] == b"2" and fields[1].decode() == call.reply[1:] and len(fields) == 5 and bool(fields[3])
    return reply[:2] == b"0\0" and re.fullmatch(call.reply, reply[2:].decode(), re.DOTALL) is not None
