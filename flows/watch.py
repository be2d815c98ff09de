"""The flow that announces data which others pushed, for a deployment that runs every few minutes.

The code is in dvkf_prefect/flows/watching.py. To change the flow, copy that code here in place of the import.
"""

from dvkf_prefect.flows import watch

__all__ = ["watch"]

if __name__ == "__main__":
    watch()
