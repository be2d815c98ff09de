"""The flow that verifies data and removes what nothing names, as prefect.yaml deploys it.

The code is in dvkf_prefect/flows/maintenance.py. To change the flow, copy that code here in place of the import.
"""

from dvkf_prefect.flows import maintain

__all__ = ["maintain"]

if __name__ == "__main__":
    maintain()
