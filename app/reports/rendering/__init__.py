"""Renderings of a report, one file per format."""
