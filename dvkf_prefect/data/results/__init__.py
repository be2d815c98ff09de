"""Results of flows and tasks on a remote: kept by content, locked, and removed once they are old."""
