"""`python -m bjax.report`, see the package."""

import sys

from bjax.report import main

sys.exit(main())
