#!/bin/sh
# Installs the packages of build/deb in a bare Debian root (packaging/debian-root), uses them, upgrades them to those of
# build/next, and removes them. Each line says what holds; the first that does not ends the run with a status other than 0.
set -eu
say() { echo "== $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
shown() { cat "$1"; fail "$2"; }
new=/srv/casemate/build/deb next=/srv/casemate/build/next
export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -q -y --no-install-recommends --allow-downgrades "$@" >/tmp/apt.log 2>&1; }
daemon() { cat /run/casemate/casemated.pid; }
end_daemon() { # SIGNAL
    kill "-$1" "$(daemon)"
    tries=0
    while [ -e "/proc/$pid" ] && ! grep -qs '^State:.*Z' "/proc/$pid/status"; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || fail "the daemon does not end by signal $1"
        sleep 0.1
    done
}

apt-get update -q >/dev/null
apt install man-db bash-completion $new/casemate_*.deb $new/casemate-qubes-tools_*.deb || shown /tmp/apt.log "apt-get install"
say "installed"
cd / # nothing may come from the clone
getent group qubes >/dev/null || fail "no group qubes"
[ -z "$(find /etc/systemd -name 'casemate*')" ] || fail "a unit was enabled: $(find /etc/systemd -name 'casemate*')"
for program in $(dpkg -L casemate casemate-qubes-tools | sed -n 's,^/usr/bin/,,p'); do
    man -w "$program" >/dev/null || fail "$program has no manual page"
done
apropos -w 'qvm-*' | grep -q '^qvm-start ' || fail "apropos does not find qvm-start"
say "every program has a manual page"
# An interactive bash loads completion by the name of the program at the first Tab.
bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader qvm-start
    COMP_LINE="qvm-start --s" COMP_POINT=13 COMP_WORDS=(qvm-start --s) COMP_CWORD=1; _casemate; echo "${COMPREPLY[@]}"' \
    | grep -q -e '--skip-if-running' || fail "bash does not complete"
say "bash completes"

casemate status >/tmp/status 2>&1 || shown /tmp/status "casemate status"
grep -q "^state .*/var/lib/casemate" /tmp/status || shown /tmp/status "another state"
qvm-ls >/dev/null || fail "qvm-ls"
say "the daemon was started by the first tool"
tr '\0' ' ' <"/proc/$(daemon)/cmdline" | grep -q "^/usr/bin/python3 " || fail "another Python"
! casemate web --no-browser >/tmp/web 2>&1 || fail "the manager page runs without its packages"
grep -q "pip install .*uvicorn" /tmp/web || shown /tmp/web "casemate web does not say what is missing"
say "the manager page says what it lacks"

# Debian refuses both at once: upstream's names lie at the same places in a guest.
! dpkg -i $new/casemate-agent_*.deb >/tmp/conflict 2>&1 || fail "agent beside the host's tools"
grep -q "conflict" /tmp/conflict || shown /tmp/conflict "refused for another reason"
say "the guest's package conflicts with the host's tools"

casemate status | grep -q "^missing .*casemate setup" || fail "status does not say what is missing"
casemate setup --yes || fail "casemate setup"
qvm-run --pass-io work 'hostname; id -un' >/tmp/answer || fail "the first qube does not answer"
[ "$(head -n 1 /tmp/answer)" = work ] || shown /tmp/answer "another answer"
say "the first qube answers"
casemate setup --yes | grep -q "already" || fail "a second setup made something"
! casemate status | grep -q "^missing" || fail "status still says that something is missing"
say "a second setup changes nothing"

# A member of the group uses the same qubes; anybody else has qubes of his own.
useradd --create-home --groups qubes member
useradd --create-home stranger
su member -c 'qvm-ls --raw-list' | grep -qx work || fail "a member of the group does not see the host's qubes"
su member -c 'qvm-tags work add by-member' && qvm-tags work | grep -qx by-member || fail "a member changes a qube"
[ ! -e /home/member/.local ] || fail "a member got a state of his own"
! su member -c 'casemate uninstall --yes' >/tmp/member 2>&1 || fail "a member removed the host's qubes"
grep -q "sudo casemate uninstall" /tmp/member || shown /tmp/member "a member is not told who may remove them"
! su stranger -c 'CASEMATE_STATE=/var/lib/casemate qvm-ls' >/dev/null 2>&1 || fail "a stranger sees the host's qubes"
say "members of the group use the host's qubes, strangers do not"

running() { qvm-run --pass-io work 'cat /proc/sys/kernel/random/boot_id /tmp/alive'; } # both are lost by a restart
qvm-run --pass-io work 'echo kept > ~/file; echo alive > /tmp/alive'
before=$(running)
pid=$(daemon)
apt install $next/casemate_*.deb $next/casemate-qubes-tools_*.deb || shown /tmp/apt.log "the upgrade"
[ ! -e "/proc/$pid/exe" ] && [ "$(daemon)" != "$pid" ] && [ -e "/proc/$(daemon)/exe" ] || fail "no new daemon serves"
[ "$(su member -c 'qvm-ls --raw-data --fields state work')" = Running ] || fail "members have no daemon after the upgrade"
[ "$(running)" = "$before" ] || fail "the qube was lost by an upgrade"
say "after an upgrade a new daemon has the running qube"
for signal in TERM KILL; do
    pid=$(daemon)
    end_daemon $signal
    qvm-ls >/dev/null || fail "no new daemon after SIG$signal"
    [ "$(running)" = "$before" ] || fail "the new daemon lost the qube after SIG$signal"
    [ "$(daemon)" != "$pid" ] || fail "the old daemon still serves"
done
casemate --version | grep -q '+next' || fail "the old program is still there"
say "so has one after a daemon that was ended or killed"

qvm-tags work add upgraded # the new version writes the store
grep -q 'casemate-format="1000"' /var/lib/casemate/qubes.xml || fail "the new version writes the old format"
! dpkg -i $new/casemate_*.deb $new/casemate-qubes-tools_*.deb >/tmp/downgrade 2>&1 || fail "a downgrade was let through"
grep -q "written by a newer Casemate" /tmp/downgrade || shown /tmp/downgrade "refused for another reason"
[ "$(running)" = "$before" ] || fail "the refused downgrade ended a qube"
casemate --version | grep -q '+next' || fail "the refused downgrade left the old program"
# The daemon itself refuses too: here the old package is unpacked beside the installed one.
dpkg-deb -x $new/casemate_*.deb /tmp/old
cp -r /var/lib/casemate/qubes.xml /tmp/store.before
mkdir -p /srv/other && cp /var/lib/casemate/qubes.xml /srv/other/
! PYTHONPATH=/tmp/old/usr/lib/python3/dist-packages CASEMATE_STATE=/srv/other \
    /usr/bin/python3 -P -m casemate.cli casemate status >/tmp/refused 2>&1 || fail "an old daemon opens a newer store"
grep -q "newer Casemate (format 1000; this one knows 1)" /tmp/refused || shown /tmp/refused "refused without the reason"
cmp /srv/other/qubes.xml /tmp/store.before || fail "the refused store was changed"
say "a downgrade is refused with its reason, by the package and by the daemon"

# What lies outside of the state goes too.
casemate interop install --user member
ls /etc/qubes-release /usr/lib/qubes/qrexec-client >/dev/null || fail "casemate interop install"
casemate uninstall >/tmp/shown || fail "uninstall without --yes"
grep -q "^kept .*/var/lib/casemate/pools" /tmp/shown || shown /tmp/shown "uninstall does not say what stays"
grep -q "casemate interop install" /tmp/shown || shown /tmp/shown "uninstall does not say what goes elsewhere"
qvm-check -q --running work || fail "uninstall without --yes ended a qube"
apt purge casemate casemate-qubes-tools || shown /tmp/apt.log "purge"
grep -q "Disks of qubes are kept" /tmp/apt.log || shown /tmp/apt.log "purge does not say that disks stay"
for place in /usr/lib/casemate /usr/lib/python3/dist-packages/casemate /run/casemate /run/qubesd.sock /run/qubes \
        /var/cache/casemate /usr/bin/qvm-ls /usr/bin/casemate /usr/bin/qrexec-client /etc/qubes-release /etc/qubes-rpc \
        /etc/qubes /usr/lib/qubes; do
    [ ! -e "$place" ] && [ ! -L "$place" ] || { find "$place" | head; fail "$place is left"; }
done
left=$(ls /var/lib/casemate | tr '\n' ' ')
[ "$left" = "kernels pools qubes.xml qubes.xml.1 qubes.xml.history " ] || fail "left in the state: $left"
for process in /proc/[0-9]*; do
    ! tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -Eq 'casemate\.|casemated|qemu-system' \
        || fail "left running: $(tr '\0' ' ' <"$process/cmdline")"
done
say "purge left the disks and nothing else"

! apt install $new/casemate_*.deb || fail "an old version was installed over kept disks of a newer one"
apt purge casemate || shown /tmp/apt.log "purge of what was refused"
apt install $next/casemate_*.deb $next/casemate-qubes-tools_*.deb || shown /tmp/apt.log "installing again"
[ "$(qvm-run --pass-io work 'cat ~/file')" = kept ] || fail "the kept disk was not found again"
say "installed again, the first qube has its file"
casemate uninstall --yes --disks >/dev/null || fail "uninstall"
apt purge casemate casemate-qubes-tools || shown /tmp/apt.log "the last purge"
[ ! -e /var/lib/casemate ] || fail "disks are left: $(find /var/lib/casemate | head)"
say "with --disks nothing is left"
