#!/bin/sh
# Installs the packages of build/deb in a bare Debian root (packaging/debian-root), uses them, removes them.
# Each line says what holds; the first that does not ends the run with a status other than 0.
set -eu
say() { echo "== $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
cd /srv/casemate/build/deb

apt-get update -q >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    ./casemate_*.deb ./casemate-qubes-tools_*.deb >/tmp/apt.log 2>&1 || { tail -n 30 /tmp/apt.log; fail "apt-get install"; }
say "installed"
cd / # nothing may come from the clone
getent group qubes >/dev/null || fail "no group qubes"
[ ! -e /etc/systemd/system/multi-user.target.wants/casemate.service ] || fail "a service was enabled"

casemate status >/tmp/status 2>&1 || { cat /tmp/status; fail "casemate status"; }
grep -q "^state .*/var/lib/casemate" /tmp/status || { cat /tmp/status; fail "another state"; }
qvm-ls >/dev/null || fail "qvm-ls"
say "the daemon was started by the first tool"
tr '\0' ' ' <"/proc/$(cat /run/casemate/casemated.pid)/cmdline" | grep -q "^/usr/bin/python3 " || fail "another Python"

# Debian refuses both at once: upstream's names lie at the same places in a guest.
! dpkg -i /srv/casemate/build/deb/casemate-agent_*.deb >/tmp/conflict 2>&1 || fail "agent beside the host's tools"
grep -q "conflict" /tmp/conflict || { cat /tmp/conflict; fail "refused for another reason"; }
say "the guest's package conflicts with the host's tools"

casemate status | grep -q "^missing .*casemate setup" || fail "status does not say what is missing"
casemate setup --yes || fail "casemate setup"
qvm-run --pass-io work 'hostname; id -un' >/tmp/answer || fail "the first qube does not answer"
[ "$(head -n 1 /tmp/answer)" = work ] || { cat /tmp/answer; fail "another answer"; }
say "the first qube answers"
casemate setup --yes | grep -q "already" || fail "a second setup made something"
! casemate status | grep -q "^missing" || fail "status still says that something is missing"
say "a second setup changes nothing"
pid=$(cat /run/casemate/casemated.pid)
qvm-run --pass-io work 'echo kept > ~/file; echo $$ > /tmp/alive'

# The same version again is to dpkg what an upgrade is. That another daemon adopts the qube is not tried here.
dpkg -i /srv/casemate/build/deb/casemate_*.deb >/tmp/again 2>&1 || { cat /tmp/again; fail "installing over it"; }
grep -q "goes on with the program before" /tmp/again || { cat /tmp/again; fail "the upgrade does not tell of the daemon"; }
[ -e "/proc/$pid" ] || fail "the upgrade ended the daemon"
qvm-run --pass-io work 'cat /tmp/alive' >/dev/null || fail "the qube was lost by an upgrade"
say "an upgrade leaves daemon and qube running"

casemate uninstall | grep -q "^kept .*/var/lib/casemate/pools" || fail "uninstall does not say what stays"
qvm-check -q --running work || fail "uninstall without --yes ended a qube"
DEBIAN_FRONTEND=noninteractive apt-get purge -q -y casemate casemate-qubes-tools >/tmp/purge 2>&1 \
    || { cat /tmp/purge; fail "purge"; }
grep -q "Disks of qubes are kept" /tmp/purge || { cat /tmp/purge; fail "purge does not say that disks stay"; }
for place in /usr/lib/casemate /usr/lib/python3/dist-packages/casemate /run/casemate /var/cache/casemate /usr/bin/qvm-ls \
        /usr/bin/casemate; do
    [ ! -e "$place" ] || { find "$place" | head; fail "$place is left"; }
done
left=$(ls /var/lib/casemate | tr '\n' ' ')
[ "$left" = "kernels pools qubes.xml qubes.xml.history " ] || fail "left in the state: $left"
for process in /proc/[0-9]*; do
    ! tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -Eq 'casemate\.|casemated|qemu-system' \
        || fail "left running: $(tr '\0' ' ' <"$process/cmdline")"
done
say "purge left the disks and nothing else"

DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    /srv/casemate/build/deb/casemate_*.deb /srv/casemate/build/deb/casemate-qubes-tools_*.deb >/dev/null 2>&1
[ "$(qvm-run --pass-io work 'cat ~/file')" = kept ] || fail "the kept disk was not found again"
say "installed again, the first qube has its file"
casemate uninstall --yes --disks >/dev/null || fail "uninstall"
DEBIAN_FRONTEND=noninteractive apt-get purge -q -y casemate casemate-qubes-tools >/dev/null 2>&1
[ ! -e /var/lib/casemate ] || fail "disks are left: $(find /var/lib/casemate | head)"
say "with --disks nothing is left"
