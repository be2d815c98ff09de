"""The flow that promotes a registered model and serves it, as prefect.yaml deploys it.

The code is in dvkf_prefect/flows/promotion.py. To change the flow, copy that code here in place of the import.
"""

import sys

from dvkf_prefect.flows import promote

__all__ = ["promote"]

if __name__ == "__main__":
    promote(sys.argv[1])
