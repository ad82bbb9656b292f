"""What an API key may do."""

from enum import StrEnum


class Scope(StrEnum):
    """What a key may do; `admin` may do everything."""

    AUDITS_WRITE = "audits:write"
    AUDITS_READ = "audits:read"
    REMEDIATIONS_WRITE = "remediations:write"
    ADMIN = "admin"
