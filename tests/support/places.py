"""Where things lie: the repository, stored files of earlier versions, and data that not every machine has."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DATABASES = REPOSITORY / "tests" / "data" / "databases"
REPORTS = REPOSITORY / "tests" / "data" / "reports"

_SHARED = REPOSITORY.parent / "shared" / "data"
MUSE_NEWS = _SHARED / "muse-news"
"""The real evaluation set, where this machine has it."""
REFERENCE_SCORES = _SHARED / "reference-scores" / "privleak.json"
"""PrivLeak's scores of the published models, where this machine has them."""
