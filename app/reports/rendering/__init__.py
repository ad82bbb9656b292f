"""A report for people, one file a format."""
