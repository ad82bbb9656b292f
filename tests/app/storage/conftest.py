"""A remediation whose model is stored."""

from tests.support.remediations import remediation

__all__ = ["remediation"]
