"""The database: its engine, tables, states and leases."""
