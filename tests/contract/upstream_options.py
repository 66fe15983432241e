"""Options of upstream's command-line tools (core-admin-client 4.3), as facts: what scripts may say to ours.

A line for each tool, or command of a tool with its aliases; ``=`` after an option that takes a value. The options that
every parser of theirs has are in COMMON. Tools about graphics, which Casemate has not, are left out.
"""

from __future__ import annotations

COMMON = "--verbose -v --quiet -q --help -h --version --force-root"

OPTIONS = {
    "qubes-prefs": "--default --get --help-properties --hide-default --set -D -g -s",
    "qvm-backup": "--compress --compress-filter= --dest-vm= --encrypt --exclude= --no-compress --passphrase-file= "
    "--profile= --save-profile= --yes -Z= -d= -e -p= -x= -y -z",
    "qvm-backup-restore": "--auto-close --compression-filter= --dest-vm= --exclude= --ignore-missing "
    "--ignore-size-limit "
    "--ignore-username-mismatch --location-is-service --paranoid-mode --passphrase-file= --plan-b --rename-conflicting "
    "--skip-broken --skip-conflicting --skip-dom0-home --verify-only -Z= -d= -p= -x=",
    "qvm-check": "--all --exclude= --networked --paused --running --template",
    "qvm-clone": "--class= --ignore-errors --pool= -C= -P= -p=",
    "qvm-create": "--class= --disp --help-classes --label= --no-root --pool= --prop= --property= --root-copy-from= "
    "--root-move-from= --standalone --template= -C= -P= -R= -l= -p= -r= -t=",
    "qvm-device": "--list-device-classes",
    "qvm-block": "--list-device-classes",
    "qvm-device list|ls|l": "--all --assignments --exclude= --resolve-paths --with-sbdf -s",
    "qvm-device attach|at|a": "--option= --persistent --ro -o= -p",
    "qvm-device detach|d|dt": "",
    "qvm-device assign|s": "--ask --ask-to-attach --device --only-device --only-port --option= --port --required --ro "
    "-o= -r",
    "qvm-device unassign|u": "--device --only-device --only-port --port",
    "qvm-device info|i": "",
    "qvm-features": "--default --delete --unset -D",
    "qvm-firewall": "--raw --reload -r",
    "qvm-firewall add": "--before=",
    "qvm-firewall del": "--rule-no=",
    "qvm-firewall list|reset": "",
    "qvm-kill": "--all --exclude=",
    "qvm-ls": "--all --class= --disk --exclude= --exclude-tags= --features= --fields= --format= --halted "
    "--help-columns --help-formats --ignore-case --internal= --kernel --label= --netvm-is= --network --no-spinner "
    "--paused --pending-update --prefs= --raw-data --raw-list --reverse --running --servicevm= --sort= --spinner "
    "--tags= --template-source= --tree -O= -d -k -n -o= -t",
    "qvm-notes": "--append= --delete --edit --force --import= --print --set= -d -e -f -i= -p -s=",
    "qvm-pause": "--all --exclude= --suspend -S",
    "qvm-pool": "",
    "qvm-pool drivers|d": "",
    "qvm-pool list|l|ls": "",
    "qvm-pool info|i": "",
    "qvm-pool add|a": "--option= -o=",
    "qvm-pool remove|r|rm": "",
    "qvm-pool set|s": "--option= -o=",
    "qvm-pool-legacy": "--add= --help-drivers --info= --list --remove= --set= -a= -i= -l -o= -r= -s=",
    "qvm-prefs": "--default --get --help-properties --hide-default --set -D -g -s",
    "qvm-remove": "--all --exclude= --force -f",
    "qvm-run": "--all --auto --autostart --color-output= --color-stderr= --colour-output= --colour-stderr= --dispvm= "
    "--exclude= --filter-escape-chars --gui --localcmd= --no-auto --no-autostart --no-color-output --no-color-stderr "
    "--no-colour-output --no-colour-stderr --no-filter-escape-chars --no-gui --no-shell --nogui --pass-io --service "
    "--user= -a -n -p -u=",
    "qvm-service": "--default --delete --disable --enable --list --unset -D -d -e -l",
    "qvm-shutdown": "--all --dry-run --exclude= --force --timeout= --wait",
    "qvm-start": "--all --cdrom= --drive= --exclude= --hddisk= --install-windows-tools --skip-if-running",
    "qvm-tags": "",
    "qvm-tags list|ls|l": "",
    "qvm-tags add|a|set": "",
    "qvm-tags del|d|unset|u": "",
    "qvm-template": "--repo-files= --keyring= --updatevm= --enablerepo= --disablerepo= --repoid= --releasever= "
    "--refresh --cachedir= --keep-cache --yes",
    "qvm-template install|reinstall|downgrade|upgrade": ""
    "--allow-pv --skip-start --downloaddir= --retries= --nogpgcheck",
    "qvm-template download": "--downloaddir= --retries= --nogpgcheck",
    "qvm-template list|info": "--all --installed --available --extras --upgrades --all-versions --machine-readable "
    "--machine-readable-json",
    "qvm-template search": "--all",
    "qvm-template remove": "--disassoc",
    "qvm-template purge|clean|migrate-from-rpmdb": "",
    "qvm-template repolist": "--all --enabled --disabled",
    "qvm-unpause": "--all --exclude=",
    "qvm-volume": "",
    "qvm-volume info|i": "",
    "qvm-volume config|c|set|s": "",
    "qvm-volume resize|extend": "--force -f",
    "qvm-volume list|ls|l": "--all --exclude= --full --pool= -p=",
    "qvm-volume revert|rv|r": "",
    "qvm-volume import": "--no-resize --size=",
    "qvm-volume clone": "--force -f",
    "qvm-volume clear": "--force -f",
}
"""Tool, or tool and command, to its own options."""
