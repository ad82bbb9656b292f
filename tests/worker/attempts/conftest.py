"""The remediation that these tests work on."""

from tests.support.remediations import remediation

__all__ = ["remediation"]
