"""Features that say how many disposables wait: which values they can have, and who may set them."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.model import preloading
from casemate.wire.errors import PermissionDeniedError, ValueInvalidError
from casemate.wire.names import KEPT_FEATURES
from tests.fakes.daemon import running


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("preload-dispvm-max", "-1"), ("preload-dispvm-max", "65"), ("preload-dispvm-max", "two"),
        ("preload-dispvm-threshold", "1G"), ("preload-dispvm-delay", "soon"), ("preload-dispvm-delay", "nan"),
    ],
)  # fmt: skip
def test_values_that_are_none(feature: str, value: str) -> None:
    with pytest.raises(ValueInvalidError, match=feature):
        preloading.check(feature, value)


@pytest.mark.parametrize(
    ("feature", "value"),
    [("preload-dispvm-max", ""), ("preload-dispvm-max", "64"), ("preload-dispvm-delay", "-1.5"), ("other", "x")],
)
def test_values_that_are_some(feature: str, value: str) -> None:
    preloading.check(feature, value)


def test_only_the_daemon_says_which_wait(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        qubes = daemon.client()
        qubes.create("TemplateVM", "deb", "black")
        qubes.create("AppVM", "dvm", "red", "deb")
        with pytest.raises(ValueInvalidError, match="whole number from 0 to 64"):
            qubes.call("admin.vm.feature.Set", "preload-dispvm-max", "dvm", "many")
        qubes.call("admin.vm.feature.Set", "preload-dispvm-max", "dvm", "1")
        for feature in KEPT_FEATURES:
            with pytest.raises(PermissionDeniedError):
                qubes.call("admin.vm.feature.Set", feature, "dvm", "x")
        with daemon.store.write() as transaction:
            transaction.system.domains["dvm"].features["preload-dispvm"] = "disp1"
        qubes.clone("dvm", "other")
        assert qubes.features("other") == {"preload-dispvm-max": "1"}
