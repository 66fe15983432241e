#!/bin/sh
# wheel.sh WHEEL: puts a wheel into fresh environments, as pipx does, and uses it from there.
set -eu
wheel=$1
work=$(mktemp -d)
chmod 0711 "$work" # users of qubes pass through
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
export CASEMATE_STATE="$work/state"
cd "$work"

/usr/bin/python3 -m venv --system-site-packages "$work/with"
"$work/with/bin/pip" install -q --disable-pip-version-check "$wheel"
"$work/with/bin/qvm-ls" --raw-list | grep -qx dom0 || fail "qvm-ls"
"$work/with/bin/casemate" status >"$work/status" || fail "casemate status"
grep -q "^state .*$work/state" "$work/status" || fail "another state"
# The daemon is of this environment, not of a clone or package that the host has besides.
tr '\0' ' ' <"/proc/$(cat "$CASEMATE_STATE/run/casemated.pid")/cmdline" | grep -q "^$work/with/bin/python" \
    || fail "another daemon"
"$work/with/bin/casemate" uninstall --yes --disks >/dev/null || fail "uninstall"
[ ! -e "$CASEMATE_STATE" ] || fail "state is left"
echo "== the tools of the wheel work"

# An environment that does not see the system's Python packages has no binding of libvirt.
/usr/bin/python3 -m venv "$work/without"
"$work/without/bin/pip" install -q --disable-pip-version-check --no-deps "$wheel"
! "$work/without/bin/qvm-ls" >"$work/out" 2>&1 || fail "works without libvirt's binding"
grep -q "python3-libvirt" "$work/out" || { cat "$work/out"; fail "the missing package is not named"; }
grep -q "system-site-packages" "$work/out" || fail "does not say what an environment needs"
echo "== what is missing is named"
