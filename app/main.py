"""The HTTP service. Importing this module never imports torch, transformers or the worker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI

from app import __version__, openapi
from app.audits import endpoints as audits
from app.checkpoints import endpoints as checkpoints
from app.database.engine import engine
from app.diagnoses import endpoints as diagnoses
from app.forget_sets import endpoints as forget_sets
from app.http import health
from app.http.middleware import RequestContext
from app.http.problems import add_handlers
from app.keys import endpoints as keys
from app.logs import configure_logs
from app.remediations import endpoints as remediations
from app.remediations.recipes import ladder
from app.reports import endpoints as reports
from app.settings import settings
from app.workers import endpoints as workers

log = structlog.get_logger()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """At the start, log where things are; at the end, give the database's connections back."""
    configure_logs()
    settings().data_dir.mkdir(parents=True, exist_ok=True)
    log.info("lethe serves", version=__version__, database=engine().url.render_as_string(hide_password=True))
    yield
    engine().dispose()


def create_app() -> FastAPI:
    """The application, with the settings as they are now."""
    limit = settings().max_body_bytes
    ladder()
    app = FastAPI(
        title="Lethe",
        version=__version__,
        summary="Once an unlearned model is quantized, does it still not know what it was made to forget?",
        description=openapi.DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=openapi.TAGS,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.max_body_bytes = limit
    add_handlers(app)
    for module in (forget_sets, checkpoints, audits, diagnoses, workers, reports, remediations, keys, health):
        app.include_router(module.router)
    app.add_middleware(RequestContext, max_body_bytes=limit)
    openapi.install(app)
    return app
