"""Pure science: usable as a library with no service, database or broker around it."""
