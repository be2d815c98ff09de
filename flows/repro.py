"""The flow that brings the stages of a dvc.yaml up to date, as prefect.yaml deploys it.

The code is in dvkf_prefect/flows/pipelines.py. To change the flow, copy that code here in place of the import.
"""

import sys

from dvkf_prefect.flows import repro

__all__ = ["repro"]

if __name__ == "__main__":
    repro(targets=sys.argv[1:])
