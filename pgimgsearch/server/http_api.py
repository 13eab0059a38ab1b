"""The door for HTTP: texts and files in, vectors out, with a description of itself at /docs and /openapi.json."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from pgimgsearch import __version__
from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.errors import ModelError
from pgimgsearch.server.errors import Busy, Refusal, Unauthorized, refusal_of
from pgimgsearch.server.jobs import Job, Jobs, file_result
from pgimgsearch.server.service import Service

LARGEST_BODY = 512 << 20  # bytes
MOST_TEXTS = 1000
OPEN_PATHS = {"/health", "/metrics", "/docs", "/redoc", "/openapi.json"}


class Texts(BaseModel):
    """Texts to embed with a model that reads; several lines of ``template`` are averaged."""

    texts: list[str] = Field(min_length=1, max_length=MOST_TEXTS)
    model: str = "text"
    template: str = "{}"


class TextVectors(BaseModel):
    """A vector of length one for each text, in their order."""

    model: str
    dim: int
    embeddings: list[list[float]]


class FileResult(BaseModel):
    """A file's vector (or bits, 0 or 1), or why it has none."""

    file: str
    status: str
    embedding: list[float] | None = None
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


BEARER = HTTPBearer(auto_error=False)  # says in the description that a route needs the password


def application(service: Service, password: str) -> FastAPI:
    """The routes; all but /health, /metrics and the description want the password as a bearer token."""
    jobs = Jobs(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await jobs.close()

    app = FastAPI(title="pgimgsearch embedder", version=__version__, lifespan=lifespan)
    app.exception_handler(Exception)(_refuse)
    app.exception_handler(Refusal)(_refuse)
    app.exception_handler(ModelError)(_refuse)
    app.middleware("http")(_limit_body)
    _add_password_check(app, password)
    _add_embedding(app, service)
    _add_jobs(app, service, jobs)
    _add_status(app, service)
    return app


def _add_password_check(app: FastAPI, password: str) -> None:
    @app.middleware("http")
    async def check_password(request: Request, call_next: Any) -> Any:
        """Refuse requests without the password before anything of a body is read."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and secrets.compare_digest(token.encode(), password.encode())
        if right or request.url.path in OPEN_PATHS:
            return await call_next(request)
        return await _refuse(
            request, Unauthorized("the bearer token is missing or wrong", hint="send the embedder's password")
        )


def _add_embedding(app: FastAPI, service: Service) -> None:
    @app.post("/embed/text", dependencies=[Depends(BEARER)])
    async def embed_text(asked: Texts) -> TextVectors:
        """Embed texts; new ones go into the database's cache."""
        model = service.find(asked.model)
        try:
            vectors = await service.embed_texts(model, asked.texts, asked.template)
        except Exception as error:
            service.metrics.count("http", "text", refusal_of(error).sqlstate)
            raise
        service.metrics.count("http", "text", "ok")
        return TextVectors(model=model.stored.name, dim=model.stored.dim, embeddings=vectors.tolist())

    @app.post("/embed/image", dependencies=[Depends(BEARER)])
    async def embed_image(
        files: list[UploadFile], model: str = "default", normalize: bool | None = None
    ) -> FileVectors:  # fmt: skip
        """Embed files; ``normalize`` scales vectors to length one or leaves them, as the model does if not given."""
        held = service.find(model)
        results = await _all_results(service, held, files, normalize)
        return FileVectors(model=held.stored.name, dim=held.stored.dim, results=results)


def _add_jobs(app: FastAPI, service: Service, jobs: Jobs) -> None:
    @app.post("/jobs", status_code=202, dependencies=[Depends(BEARER)])
    async def add_job(files: list[UploadFile], model: str = "default", normalize: bool | None = None) -> JobState:
        """Take files for later, and answer with a job to ask for."""
        return _state(await jobs.add(service.find(model), files, normalize=normalize))

    @app.get("/jobs/{job_id}", dependencies=[Depends(BEARER)])
    async def job(job_id: str) -> JobState:
        """Say how far a job is; results are kept for an hour."""
        return _state(jobs.find(job_id))


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
    service: Service, model: LoadedModel, files: list[UploadFile], normalize: bool | None
) -> list[FileResult]:  # fmt: skip
    async def one(file: UploadFile) -> FileResult:
        return FileResult(**await file_result(service, model, file.filename or "", await file.read(), normalize))

    try:
        return list(await asyncio.gather(*map(one, files)))
    except Busy:
        service.metrics.count("http", "image", Busy.sqlstate)
        raise


def _state(job: Job) -> JobState:
    results = [FileResult(**result) for result in job.results] if job.status == "complete" else None
    stored = job.model.stored
    return JobState(job_id=job.job_id, model=stored.name, dim=stored.dim, status=job.status, files=len(job.names),
                    results=results)  # fmt: skip


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    said = refusal_of(error)
    headers = {"Retry-After": "1"} if isinstance(said, Busy) else {}
    content = {"error": str(said), "hint": said.hint, "sqlstate": said.sqlstate}
    return JSONResponse(content, said.status, headers)


async def _limit_body(request: Request, call_next: Any) -> Any:
    """Refuse before anything is read; a body of unknown length could be of any."""
    if request.method != "POST":
        return await call_next(request)
    length = request.headers.get("content-length")
    if length is None or not length.isdigit():
        return JSONResponse({"error": "the request does not say its length", "hint": None}, 411)
    if int(length) > LARGEST_BODY:
        hint = f"send at most {LARGEST_BODY >> 20} MB at once"
        return JSONResponse({"error": f"the request has {length} bytes", "hint": hint}, 413)
    return await call_next(request)
