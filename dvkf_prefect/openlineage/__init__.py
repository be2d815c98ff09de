"""OpenLineage events: what is sent, by which client, and when."""
