"""What can be asked for: metrics, precisions, plans, methods. Pure: no HTTP, no database, no torch."""
