"""``python -m dvkf_prefect.cli``."""

import sys

from dvkf_prefect.cli import main

sys.exit(main())
