#!/bin/sh
# sample.sh DEBS: installs, uses and purges the packages on this very host, of which nothing changes: /usr, /etc and /var are
# layers that go with the namespace, /run is empty. As root. Each line says what holds; the first that does not ends the run.
# What takes a template, an upgrade or a bare Debian is in deb.sh.
set -eu
if [ -z "${CASEMATE_LAYERS:-}" ]; then
    CASEMATE_LAYERS=$(mktemp -d)
    export CASEMATE_LAYERS
    trap 'rmdir "$CASEMATE_LAYERS"' EXIT
    unshare --mount --propagation private --pid --fork --kill-child --mount-proc sh "$0" "$@"
    exit
fi
debs=$1 layers=$CASEMATE_LAYERS said=$CASEMATE_LAYERS/said
say() { echo "== $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
shown() { cat "$1"; fail "$2"; }
mount -t tmpfs tmpfs "$layers"
mkdir -p "$layers/var/lib" "$layers/var/cache"
for own in lib cache; do
    mknod "$layers/var/$own/casemate" c 0 0 # hides what this host has there (a whiteout of overlayfs)
done
for place in usr etc var; do
    mkdir -p "$layers/$place" "$layers/work-$place"
    mount -t overlay overlay -o "lowerdir=/$place,upperdir=$layers/$place,workdir=$layers/work-$place" /$place
done
mkdir "$layers/debs"
cp "$debs"/*.deb "$layers/debs/" # /var, and what is mounted in it, is only the layer now
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock
unset CASEMATE_STATE CASEMATE_RUN CASEMATE_CACHE
export DEBIAN_FRONTEND=noninteractive HOME=/root
cd /
# Which packages are needed, deb.sh tries. Images of containers leave manual pages out.
dpkg() { command dpkg --force-depends --path-include='/usr/*' "$@" >"$said" 2>&1; }

# What changed of the host's files, apart from the lists that every package changes.
changed() {
    find "$layers/usr" "$layers/etc" "$layers/var" -mindepth 1 ! -type d -printf '%P\n' \
        | grep -Ev '^((lib|cache)/casemate$|lib/casemate/qubes\.xml(\.1|\.history/.*)?$|lib/dpkg/|log/dpkg.log|cache/(man|debconf|ldconfig)/|lib/systemd/deb-systemd|g?shadow|group|passwd|sub[ug]id|\.pwd\.lock|.*-$)' \
        | sort
}

say "a state of a newer version"
mkdir -p /var/lib/casemate
printf '<?xml version="1.0"?>\n<qubes casemate-format="999" generation="1"/>\n' >/var/lib/casemate/qubes.xml
! dpkg -i "$layers"/debs/casemate_*.deb || fail "installed over a state that it cannot read"
grep -q "written by a newer Casemate: its format is 999" "$said" || shown "$said" "refused without the reason"
[ ! -e /usr/bin/casemate ] || fail "refused after it was unpacked"
rm -r /var/lib/casemate
say "is refused before anything is unpacked"

dpkg -i "$layers"/debs/casemate_*.deb "$layers"/debs/casemate-qubes-tools_*.deb || shown "$said" "dpkg -i"
getent group qubes >/dev/null || fail "no group qubes"
[ -z "$(find /etc/systemd -name 'casemate*')" ] || fail "a unit was enabled: $(find /etc/systemd -name 'casemate*')"
for program in $(dpkg-query -L casemate casemate-qubes-tools | sed -n 's,^/usr/bin/,,p'); do
    [ -x "/usr/bin/$program" ] || fail "/usr/bin/$program cannot be run"
    [ -f "/usr/share/man/man1/$program.1.gz" ] || fail "$program has no manual page"
done
[ "$(casemate --version)" = "casemate $(dpkg-query -W -f '${Version}' casemate)" ] || fail "casemate --version"
qvm-create --help | grep -q -e --label || fail "qvm-create --help"
say "tools run"
if command -v systemd-analyze >/dev/null; then
    systemd-analyze verify --man=no /usr/lib/systemd/system/casemate* >"$said" 2>&1 || shown "$said" "a unit is wrong"
    ! grep casemate "$said" || fail "systemd finds something in a unit"
    XDG_RUNTIME_DIR=/run systemd-analyze verify --man=no --user /usr/lib/systemd/user/casemate* >"$said" 2>&1 || shown "$said" "a user unit"
    rm -rf /run/systemd # made by systemd-analyze
    say "systemd takes the units"
fi

# The daemon imports Debian's packages of Python, which this host may not have.
if /usr/bin/python3 -c 'import libvirt, lxml, nftables, pyroute2, cryptography, yaml, zstandard' 2>/dev/null; then
    casemate status >"$said" || shown "$said" "casemate status"
    grep -q "^state .*/var/lib/casemate (this host's" "$said" || shown "$said" "another state"
    [ "$(qvm-ls --raw-list)" = dom0 ] || fail "qvm-ls"
    useradd --no-create-home --groups qubes casemate-member 2>/dev/null
    [ "$(su casemate-member -s /bin/sh -c 'qvm-ls --raw-list')" = dom0 ] || fail "a member has other qubes"
    say "the daemon serves root and members of the group"
fi

command dpkg --purge casemate casemate-qubes-tools >"$said" 2>&1 || shown "$said" "purge"
for process in /proc/[0-9]*; do
    ! tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -Eq 'casemate\.|casemated|qemu-system' \
        || fail "left running: $(tr '\0' ' ' <"$process/cmdline")"
done
left=$(changed)
[ -z "$left" ] || fail "purge has left: $left"
left=$(ls -A /run | grep -Ev '^(lock|libvirt)$' || true) # libvirt is a package of its own
[ -z "$left" ] || fail "purge has left in /run: $left"
say "purge left nothing else"
