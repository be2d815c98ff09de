"""The flow that trains and registers a model, as prefect.yaml deploys it.

The code is in dvkf_prefect/flows/pipelines.py. To change the flow, copy that code here in place of the import.
"""

import sys

from dvkf_prefect.flows import train

__all__ = ["train"]

if __name__ == "__main__":
    train(model=sys.argv[1] if len(sys.argv) > 1 else None)
