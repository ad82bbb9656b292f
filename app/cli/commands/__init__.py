"""What `lethe` can be told, one file a noun."""
