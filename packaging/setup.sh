#!/bin/sh
# Installs what Casemate needs and is missing: packages (with sudo when not root), a .venv with pinned Python packages.
# Enables no service, installs no kernel, defines no network. A second run changes nothing.
#
#   setup.sh           what qubes need
#   setup.sh tests     and what the tests need
#   setup.sh package   and what it takes to build the Debian packages
#   setup.sh windows   and what the tests of the store on Windows need (Wine: half a gigabyte)
#
# On Debian missing packages are installed by apt. Elsewhere each program is looked for, however it came to the host;
# what is missing is named in that distribution's terms. Casemate was tried on Debian only.
set -eu
cd "$(dirname "$0")/.."
for_what=${1:-}

# What is needed, how it is found, and the package that has it:
#   sign: a program, "lib:FILE" for a file in a library directory, "py:MODULE" for a module of the system's Python
#   when: "-" always, "tests", "package", "windows", or "build": for packages and for tests, which build them too
#   package: "-" where it is of no use on that distribution
# qemu-system-x86 and libvirt's QEMU driver run the guests; mmdebstrap builds templates (uidmap: without root); tcc
# compiles the guest's first program, a few kilobytes of C without a C library.
needs() {
    #     sign                          when    debian                       fedora                        arch                    opensuse                 nix
    cat <<'TABLE'
qemu-system-x86_64                      -       qemu-system-x86              qemu-system-x86-core          qemu-system-x86         qemu-x86                 qemu
qemu-img                                -       qemu-utils                   qemu-img                      qemu-img                qemu-tools               qemu
libvirtd                                -       libvirt-daemon               libvirt-daemon                libvirt                 libvirt-daemon           libvirt
lib:libvirt_driver_qemu.so              -       libvirt-daemon-driver-qemu   libvirt-daemon-driver-qemu    libvirt                 libvirt-daemon-driver-qemu libvirt
py:libvirt                              -       python3-libvirt              python3-libvirt               libvirt-python          python3-libvirt-python   python3Packages.libvirt
py:nftables                             -       python3-nftables             python3-nftables              nftables                python3-nftables         nftables
pasta                                   -       passt                        passt                         passt                   passt                    passt
py:venv                                 -       python3-venv                 python3                       python                  python3                  python3
mmdebstrap                              -       mmdebstrap                   mmdebstrap                    mmdebstrap              mmdebstrap               mmdebstrap
newuidmap                               -       uidmap                       shadow-utils                  shadow                  shadow                   shadow
tcc                                     -       tcc                          tcc                           tcc                     tcc                      tinycc
borg                                    tests   borgbackup                   borgbackup                    borg                    borgbackup               borgbackup
mke2fs                                  -       e2fsprogs                    e2fsprogs                     e2fsprogs               e2fsprogs                e2fsprogs
ip                                      tests   iproute2                     iproute                       iproute2                iproute2                 iproute2
nft                                     tests   nftables                     nftables                      nftables                nftables                 nftables
cpio                                    tests   cpio                         cpio                          cpio                    cpio                     cpio
strace                                  tests   strace                       strace                        strace                  strace                   strace
scrypt                                  tests   scrypt                       scrypt                        scrypt                  scrypt                   scrypt
zstd                                    tests   zstd                         zstd                          zstd                    zstd                     zstd
zsh                                     tests   zsh                          zsh                           zsh                     zsh                      zsh
fish                                    tests   fish                         fish                          fish                    fish                     fish
mandb                                   tests   man-db                       man-db                        man-db                  man                      man-db
groff                                   tests   groff-base                   groff-base                    groff                   groff                    groff
chromium                                tests   chromium                     chromium                      chromium                chromium                 chromium
dh                                      build   debhelper                    -                             -                       -                        -
dh_python3                              build   dh-python                    -                             -                       -                        -
dpkg-buildpackage                       build   dpkg-dev                     -                             -                       -                        -
lintian                                 package lintian                      -                             -                       -                        -
py:cryptography                         build   python3-cryptography         -                             -                       -                        -
py:zstandard                            build   python3-zstandard            -                             -                       -                        -
wine                                    windows wine                         wine-core                     wine                    wine                     wine64
wine64                                  windows wine64                       wine-core                     wine                    wine                     wine64
x86_64-w64-mingw32-gcc-win32            windows gcc-mingw-w64-x86-64-win32   mingw64-gcc                   mingw-w64-gcc           mingw64-cross-gcc        pkgsCross.mingwW64.buildPackages.gcc
TABLE
}

# The Python that has libvirt's binding: the system's, not one that a user put before it in PATH.
python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3) || { echo "There is no python3" >&2; exit 1; }

is_here() {
    case $1 in
    lib:*)
        for directory in /usr/lib/*/libvirt/connection-driver /usr/lib64/libvirt/connection-driver \
                         /usr/lib/libvirt/connection-driver; do
            [ ! -e "$directory/${1#lib:}" ] || return 0
        done
        # Where the system keeps libraries by hash (NixOS, Guix) libvirtd knows its own drivers.
        [ ! -d /usr/lib ] || return 1 ;;
    py:venv) "$python" -c "import venv, ensurepip" 2>/dev/null ;; # Debian splits ensurepip off
    py:*) "$python" -c "import ${1#py:}" 2>/dev/null ;;
    wine64) command -v wine64 >/dev/null || [ -x /usr/lib/wine/wine64 ] ;;
    *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] ;;
    esac
}

id=unknown like=
if [ -r /etc/os-release ]; then
    id=$(. /etc/os-release; echo "${ID:-unknown}")
    like=$(. /etc/os-release; echo "${ID_LIKE:-}")
fi
case " $id $like " in
*" debian "*) family=debian column=3 ;;
*" fedora "*|*" rhel "*) family=fedora column=4 ;;
*" arch "*) family=arch column=5 ;;
*suse*) family=opensuse column=6 ;;
*" nixos "*) family=nixos column=7 ;;
*) family=unknown column=3 ;;
esac

missing=""
for line in $(needs | awk -v column=$column '{print $1 "|" $2 "|" $column}'); do
    sign=${line%%|*} rest=${line#*|}
    when=${rest%%|*} package=${rest#*|}
    case $when:$for_what in
    -:package) [ "$sign" = tcc ] || continue ;; # the only part of a host that a build uses
    -:*|tests:tests|tests:windows|windows:windows|build:tests|build:package|package:package) ;; *) continue ;; esac
    [ "$package" != - ] || continue # Debian's packages are built on Debian
    is_here "$sign" || case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
done

if [ -n "$missing" ] && [ $family = debian ]; then
    echo "Installing Debian packages:$missing"
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "Not root and no sudo: install these by hand:$missing" >&2; exit 1; }
        as_root=sudo
    fi
    log=$(mktemp)
    if ! { $as_root apt-get update -q && $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -o DPkg::Lock::Timeout=300 install -q -y --no-install-recommends $missing; } >"$log" 2>&1; then
        grep -E '^(E|Err):' "$log" >&2 || tail -n 20 "$log" >&2
        echo "apt-get failed; its whole output is in $log" >&2
        exit 1
    fi
    rm -f "$log"
elif [ -n "$missing" ]; then
    case $family in
    fedora) how="dnf install" ;;
    arch) how="pacman -S" ;;
    opensuse) how="zypper install" ;;
    nixos) how="nix-shell -p" ;;
    unknown) how="the packages that your distribution has for these of Debian:" ;;
    esac
    echo "Something is missing on this host ($id, on which nobody has tried Casemate yet). Install it by:" >&2
    echo "    $how$missing" >&2
    echo "Templates need Debian's archive keyring too (debian-archive-keyring; Fedora: debian-keyring)." >&2
    exit 1
fi

# A build of packages uses the system's Python; it needs no .venv, and the host stays as it is.
[ "$for_what" != package ] || exit 0

# Debian's libvirt does not open its QEMU driver for root while this user is missing; the package that makes it
# (libvirt-daemon-system, same ids) would also enable services. No machine of ours runs as this user.
if [ $family = debian ] && [ "$(id -u)" = 0 ] && ! getent passwd libvirt-qemu >/dev/null; then
    getent group libvirt-qemu >/dev/null || groupadd --system --gid 64055 libvirt-qemu
    # The uid is above the range that useradd takes for system users, of which it would warn.
    useradd --system --uid 64055 --gid libvirt-qemu --home-dir /var/lib/libvirt --no-create-home \
        --shell /usr/sbin/nologin --comment "Libvirt Qemu" libvirt-qemu 2>/dev/null
fi

# pyproject.toml says which versions of Python are supported; nothing else does.
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if ! grep -q "\"Programming Language :: Python :: $version\"" pyproject.toml; then
    supported=$(sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml | tr '\n' ' ')
    echo "$python is Python $version; Casemate was tried with $supported" >&2
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || exit 1
fi

stamp=.venv/casemate-stamp
want=$(cat packaging/requirements.txt "$0" | sha256sum)$version
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
    echo "Making .venv"
    rm -rf .venv
    "$python" -m venv .venv
    log=$(mktemp)
    if ! .venv/bin/pip install -q --disable-pip-version-check -r packaging/requirements.txt >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        exit 1
    fi
    rm -f "$log"
    # The system's own libvirt binding fits the system's libvirt; nothing else of the system's Python is let in.
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    binding=$("$python" -c 'import libvirt, os; print(os.path.dirname(os.path.abspath(libvirt.__file__)))')
    for file in "$binding"/libvirt.py "$binding"/libvirt_qemu.py "$binding"/libvirtaio.py "$binding"/libvirtmod*.so; do
        [ ! -e "$file" ] || ln -s "$file" "$site/"
    done
    # So does the binding of nftables: it is one module over the system's libnftables.
    ln -s "$("$python" -c 'import nftables, os; print(os.path.dirname(os.path.abspath(nftables.__file__)))')" "$site/"
    # libvirt-python of some distributions puts the extension elsewhere than the module.
    "$python" -c 'import libvirtmod; print(libvirtmod.__file__)' | while read -r file; do
        [ -e "$site/${file##*/}" ] || ln -s "$file" "$site/"
    done
    echo "$PWD/src" >"$site/casemate.pth"
    echo "$want" >"$stamp"
fi

if [ "$for_what" = windows ]; then
    exec packaging/setup-windows.sh
fi
