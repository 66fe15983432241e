"""``python -m casemate.cli TOOL …``: a tool without its script."""

from __future__ import annotations

import sys

from casemate.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
