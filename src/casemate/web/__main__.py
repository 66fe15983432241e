"""``python -m casemate.web`` is ``casemate-web``."""

import sys

from casemate.web.server import main

sys.exit(main())
