"""The flows that serve a registered model and roll it back, as prefect.yaml deploys it.

The code is in dvkf_prefect/flows/serving.py. To change the flow, copy that code here in place of the import.
"""

import sys

from dvkf_prefect.flows import rollback, serve

__all__ = ["rollback", "serve"]

if __name__ == "__main__":
    serve(sys.argv[1])
