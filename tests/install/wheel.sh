#!/bin/sh
# wheel.sh WHEEL: puts a wheel into fresh environments, as pipx does, and uses it from there.
set -eu
wheel=$1 here=$(cd "$(dirname "$0")/../.." && pwd)
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

# Data files are named by pattern in pyproject.toml; one that no pattern names would be missed when it is needed.
git -C "$here" ls-files src/casemate | sed 's,^src/,,' | sort >"$work/ours"
/usr/bin/python3 -m zipfile -l "$wheel" | awk '{print $1}' | sort >"$work/packed"
[ -z "$(comm -23 "$work/ours" "$work/packed")" ] || fail "not in the wheel: $(comm -23 "$work/ours" "$work/packed")"
echo "== every file is in the wheel"

! "$work/with/bin/casemate" web --no-browser >"$work/out" 2>&1 || fail "the manager page runs without its packages"
grep -q "pip install .*uvicorn" "$work/out" || { cat "$work/out"; fail "what the page lacks is not named"; }
"$work/with/bin/pip" install -q --disable-pip-version-check "$wheel[web]"
"$work/with/bin/casemate" web --no-browser >"$work/page" 2>&1 &
page=$!
tries=0
until grep -q "http://127.0.0.1" "$work/page"; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] && kill -0 $page 2>/dev/null || { cat "$work/page"; fail "the manager page does not start"; }
    sleep 0.1
done
kill -INT $page
wait $page || true
"$work/with/bin/casemate" uninstall --yes --disks >/dev/null || fail "uninstall"
echo "== the extra [web] brings the manager page"

# An environment that does not see the system's Python packages has no binding of libvirt.
/usr/bin/python3 -m venv "$work/without"
"$work/without/bin/pip" install -q --disable-pip-version-check --no-deps "$wheel"
! "$work/without/bin/qvm-ls" >"$work/out" 2>&1 || fail "works without libvirt's binding"
grep -q "python3-libvirt" "$work/out" || { cat "$work/out"; fail "the missing package is not named"; }
grep -q "system-site-packages" "$work/out" || fail "does not say what an environment needs"
echo "== what is missing is named"
