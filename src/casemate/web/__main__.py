"""``python -m casemate.web`` is ``casemate-web``."""

import sys

from casemate.web.start import main

sys.exit(main())
