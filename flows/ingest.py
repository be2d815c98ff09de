"""The flow that checks new files and brings them into a dataset, as prefect.yaml deploys it.

The code is in dvkf_prefect/flows/ingestion.py. To change the flow, copy that code here in place of the import.
"""

from dvkf_prefect.flows import ingest

__all__ = ["ingest"]

if __name__ == "__main__":
    ingest()
