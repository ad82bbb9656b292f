"""`lethe`'s commands that need the engine."""
