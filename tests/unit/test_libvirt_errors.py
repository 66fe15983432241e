"""Every error of libvirt becomes one of ours, with its cause."""

from __future__ import annotations

import libvirt
import pytest

from casemate.host.libvirt_errors import CODES, translated
from casemate.wire.errors import CasemateError, HypervisorError, NotFoundError, OutOfMemoryError

NAMES = sorted(
    name
    for name, value in vars(libvirt).items()
    if name.startswith("VIR_ERR_")
    and isinstance(value, int)
    and name not in ("VIR_ERR_NONE", "VIR_ERR_WARNING", "VIR_ERR_ERROR")
)


def raised(code: int, message: str) -> CasemateError:
    error = libvirt.libvirtError("call() failed")
    error.err = (code, 10, message, 2, None, None, None, -1, -1)
    with pytest.raises(CasemateError) as caught, translated("start work"):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


@pytest.mark.parametrize("name", NAMES)
def test_every_code_is_mapped(name: str) -> None:
    code = getattr(libvirt, name)
    assert code in CODES
    ours = raised(code, "because")
    assert type(ours) is CODES[code]
    assert str(ours) == "Cannot start work: because"


def test_unknown_code_and_lost_error() -> None:
    assert type(raised(99999, "new")) is HypervisorError
    with pytest.raises(HypervisorError), translated("x"):
        raise libvirt.libvirtError("lost")


def test_no_memory_inside_an_internal_error() -> None:
    said = "internal error: qemu exited: cannot set up guest memory 'pc.ram': Cannot allocate memory"
    assert isinstance(raised(libvirt.VIR_ERR_INTERNAL_ERROR, said), OutOfMemoryError)


def test_what_a_terminal_must_not_see_is_escaped() -> None:
    ours = raised(libvirt.VIR_ERR_NO_DOMAIN, "no\x1b[2J such\n domain")
    assert isinstance(ours, NotFoundError)
    assert "\x1b" not in str(ours) and "\n" not in str(ours)
