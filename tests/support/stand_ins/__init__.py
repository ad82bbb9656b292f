"""Stand-ins for the engine, for tests of what happens around it: they start in no time and need no model."""
