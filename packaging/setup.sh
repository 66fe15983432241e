#!/bin/sh
# Installs what Casemate needs and is missing: Debian packages (with sudo when not root), a .venv with pinned Python
# packages. Enables no service, installs no kernel, defines no network. A second run changes nothing.
set -eu
cd "$(dirname "$0")/.."

# qemu-system-x86 and libvirt's QEMU driver run the guests; mmdebstrap builds templates (uidmap: without root);
# tcc builds the guest's first program, a few kilobytes of C without a C library.
PACKAGES="qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu python3-libvirt mmdebstrap uidmap tcc e2fsprogs python3-venv"

missing=""
for package in $PACKAGES; do
    dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    echo "Installing Debian packages:$missing"
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "Not root and no sudo: install these by hand:$missing" >&2; exit 1; }
        as_root=sudo
    fi
    log=$(mktemp)
    if ! { $as_root apt-get update -q && $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "apt-get failed; its whole output is in $log" >&2
        exit 1
    fi
    rm -f "$log"
fi

# Debian's libvirt does not open its QEMU driver for root while this user is missing; the package that makes it
# (libvirt-daemon-system, same ids) would also enable services. No machine of ours runs as this user.
if [ "$(id -u)" = 0 ] && ! getent passwd libvirt-qemu >/dev/null; then
    getent group libvirt-qemu >/dev/null || groupadd --system --gid 64055 libvirt-qemu
    useradd --system --uid 64055 --gid libvirt-qemu --home-dir /var/lib/libvirt --no-create-home \
        --shell /usr/sbin/nologin --comment "Libvirt Qemu" libvirt-qemu
fi

stamp=.venv/casemate-stamp
want=$(cat packaging/requirements.txt "$0" | sha256sum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
    echo "Making .venv"
    rm -rf .venv
    /usr/bin/python3 -m venv .venv
    log=$(mktemp)
    if ! .venv/bin/pip install -q --disable-pip-version-check -r packaging/requirements.txt >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        exit 1
    fi
    rm -f "$log"
    # Debian's own libvirt binding fits Debian's libvirt; nothing else of the system's Python is let in.
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for file in /usr/lib/python3/dist-packages/libvirt.py /usr/lib/python3/dist-packages/libvirtaio.py \
                /usr/lib/python3/dist-packages/libvirtmod.*.so; do
        ln -s "$file" "$site/"
    done
    echo "$PWD/src" >"$site/casemate.pth"
    echo "$want" >"$stamp"
fi
