"""The door for HTTP: texts and files in, vectors out, with a description of itself at /docs and /openapi.json."""

import asyncio
import html
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, BeforeValidator, Field
from starlette.formparsers import MultiPartParser

from pgimgsearch import __version__
from pgimgsearch.embeddings.loaded_model import CutText, LoadedModel
from pgimgsearch.errors import ModelError
from pgimgsearch.reports.html import html_page
from pgimgsearch.server.errors import Busy, Refusal, json_answer, refusal_of
from pgimgsearch.server.http_guard import Guard
from pgimgsearch.server.jobs import Job, Jobs, file_result, whole
from pgimgsearch.server.service import LARGEST_PICTURE, Service

MOST_TEXTS = 1000
FILES_AT_ONCE = 8  # of a request, that are held in memory


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


class Texts(BaseModel):
    """Texts to embed with a model that reads; several lines of ``template`` are averaged."""

    texts: list[str] = Field(min_length=1, max_length=MOST_TEXTS)
    model: str = "text"
    template: str = "{}"


class TextVectors(BaseModel):
    """A vector of length one for each text, in their order, and the texts that were cut."""

    model: str
    dim: int
    embeddings: list[list[float]]
    cut: list[CutText] = []


class FileResult(BaseModel):
    """A file's vector (or bits, 0 or 1), or why it has none."""

    file: str
    status: str
    embedding: Annotated[list[float], BeforeValidator(_as_list)] | None = None
    error: str | None = None
    hint: str | None = None


class FileVectors(BaseModel):
    """What became of each file, in their order."""

    model: str
    dim: int
    results: list[FileResult]


class JobState(BaseModel):
    """A job; ``results`` are there when it is complete."""

    job_id: str
    model: str
    dim: int
    status: str
    files: int
    results: list[FileResult] | None = None


MultiPartParser.spool_max_size = 1 << 16  # bytes of a file that stay in memory
BEARER = HTTPBearer(auto_error=False)  # says in the description that a route needs the password


def application(service: Service, password: str) -> FastAPI:
    """The routes; all but /health, /metrics and the description want the password as a bearer token (Guard)."""
    jobs = Jobs(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await jobs.close()

    app = FastAPI(title="pgimgsearch embedder", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    for error in (Exception, Refusal, ModelError):
        app.exception_handler(error)(_refuse)
    app.exception_handler(RequestValidationError)(_refuse_form)
    app.add_middleware(Guard, password=password)
    _add_description(app)
    _add_embedding(app, service)
    _add_jobs(app, service, jobs)
    _add_status(app, service)
    return app


def _add_description(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """List the routes, on a page that loads nothing."""
        rows = [
            f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(about['description'])}</p>"
            for path, methods in app.openapi()["paths"].items() for method, about in methods.items()
        ]  # fmt: skip
        page = html_page(app.title, f'{"".join(rows)}<p><a href="/openapi.json">openapi.json</a> has the details.</p>')
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


def _add_embedding(app: FastAPI, service: Service) -> None:
    @app.post("/embed/text", dependencies=[Depends(BEARER)])
    async def embed_text(asked: Texts, request: Request) -> TextVectors:
        """Embed texts; new ones go into the database's cache."""
        model = service.find(asked.model)
        try:
            vectors = await service.embed_texts(model, asked.texts, asked.template, request.client)
            cut = await service.cut_texts(model, asked.texts, asked.template)
        except Exception as error:
            service.metrics.count("http", "text", refusal_of(error).sqlstate)
            raise
        service.metrics.count("http", "text", "ok")
        return TextVectors(
            model=model.stored.name, dim=model.stored.dim, embeddings=vectors.tolist(), cut=cut
        )  # fmt: skip

    @app.post("/embed/image", dependencies=[Depends(BEARER)])
    async def embed_image(
        files: list[UploadFile], request: Request, model: str = "default", normalize: bool | None = None
    ) -> FileVectors:  # fmt: skip
        """Embed files; ``normalize`` scales vectors to length one or leaves them, as the model does if not given."""
        held = service.find(model)
        results = await _all_results(service, held, files, normalize, request.client)
        return FileVectors(model=held.stored.name, dim=held.stored.dim, results=results)


def _add_jobs(app: FastAPI, service: Service, jobs: Jobs) -> None:
    @app.post("/jobs", status_code=202, dependencies=[Depends(BEARER)])
    async def add_job(files: list[UploadFile], model: str = "default", normalize: bool | None = None) -> JobState:
        """Take files for later, and answer with a job to ask for."""
        return _state(await jobs.add(service.find(model), files, normalize=normalize))

    @app.get("/jobs/{job_id}", dependencies=[Depends(BEARER)], response_model=JobState)
    async def job(job_id: str) -> Response:
        """Say how far a job is; results are kept for an hour."""
        found = jobs.find(job_id)
        told = await asyncio.to_thread(lambda: _state(found).model_dump_json())  # large, and others wait meanwhile
        return Response(told, media_type="application/json")


def _add_status(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say that it runs, and what it holds."""
        held = [{"model": name, "dim": model.stored.dim, "device": model.encoder.device,
                 "reads_text": model.stored.has_text} for name, model in service.models.items()]  # fmt: skip
        return {"status": "ok", "models": held}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Show counters in Prometheus' form."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _all_results(
    service: Service, model: LoadedModel, files: list[UploadFile], normalize: bool | None, client: Hashable
) -> list[FileResult]:  # fmt: skip
    slots = asyncio.Semaphore(FILES_AT_ONCE)

    async def one(file: UploadFile) -> FileResult:
        async with slots:
            data = await file.read(LARGEST_PICTURE + 1)
            return FileResult(**await file_result(service, model, whole(file.filename), data, normalize, client))

    asked = [asyncio.ensure_future(one(file)) for file in files]
    try:
        return list(await asyncio.gather(*asked))
    except Busy:
        service.metrics.count("http", "image", Busy.sqlstate)
        raise
    finally:
        for task in asked:
            task.cancel()


def _state(job: Job) -> JobState:
    results = [FileResult(**result) for result in job.results] if job.status == "complete" else None
    stored = job.model.stored
    return JobState(job_id=job.job_id, model=stored.name, dim=stored.dim, status=job.status, files=len(job.names),
                    results=results)  # fmt: skip


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    return json_answer(refusal_of(error))


async def _refuse_form(_: Request, error: Exception) -> JSONResponse:
    """What the framework says of a request that it cannot read, without what was sent."""
    assert isinstance(error, RequestValidationError)
    said = [{"loc": one["loc"], "msg": one["msg"], "type": one["type"]} for one in error.errors()]
    return JSONResponse({"detail": said}, 422)
