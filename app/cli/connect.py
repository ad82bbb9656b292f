"""The client that the commands use."""

from app.client import Client
from app.errors import NotAuthenticated
from app.settings import settings


def connect() -> Client:
    """A client of `LETHE_URL` with `LETHE_API_KEY`, or with the key that `lethe dev` wrote to the data directory.

    Raises:
        NotAuthenticated: there is no key in either place.
    """
    found = settings()
    key = found.api_key
    if not key and found.key_file.exists():
        key = found.key_file.read_text().strip()
    if not key:
        raise NotAuthenticated(
            "key_missing",
            f"no API key: set LETHE_API_KEY, or start `lethe dev`, which writes one to {found.key_file}",
        )
    return Client(found.resolved_url, key)
