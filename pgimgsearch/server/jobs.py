"""Large batches of images as jobs: taken at once, worked off beside the other requests, and asked for later."""

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastapi import UploadFile

from pgimgsearch.embeddings.loaded_model import LoadedModel
from pgimgsearch.server.errors import Busy, Refusal, TooLarge, refusal_of
from pgimgsearch.server.service import Service

MOST_JOBS = 8  # unfinished
KEPT_SECONDS = 3600
AT_ONCE = 8  # images of one job that are decoded or wait
MOST_RESULTS = 64 << 20  # bytes of vectors that are kept or to come


@dataclass(slots=True)
class Job:
    """A batch of files and what became of each."""

    job_id: str
    model: LoadedModel
    names: list[str]
    folder: Path
    normalize: bool | None
    results: list[dict[str, Any]] = field(default_factory=list)  # with vectors as arrays, a tenth of lists
    ended_at: float | None = None

    @property
    def result_bytes(self) -> int:
        """Of all its vectors, those to come too."""
        return _result_bytes(self.model, len(self.names))

    @property
    def status(self) -> Literal["running", "complete", "failed"]:
        """Whether every file has its result, or none will have one."""
        if self.ended_at is None:
            return "running"
        return "complete" if len(self.results) == len(self.names) else "failed"


class Jobs:
    """Jobs by id; files wait on disk, results are kept for an hour."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, model: LoadedModel, files: Sequence[UploadFile], *, normalize: bool | None) -> Job:
        """Take files and start; raises Busy where too many jobs run."""
        self._forget()
        if sum(job.ended_at is None for job in self._jobs.values()) >= MOST_JOBS:
            raise Busy(f"{MOST_JOBS} jobs are running", hint="wait for one of them")
        self._make_room(_result_bytes(model, len(files)))
        folder = Path(tempfile.mkdtemp(prefix="pgimgsearch-job-"))
        job = Job(secrets.token_urlsafe(16), model, [whole(file.filename) for file in files], folder, normalize)
        self._jobs[job.job_id] = job
        try:
            for number, file in enumerate(files):
                with (folder / str(number)).open("wb") as copy:
                    await asyncio.to_thread(shutil.copyfileobj, file.file, copy)
        except BaseException:  # a full disk, or a client that left
            del self._jobs[job.job_id]
            shutil.rmtree(folder, ignore_errors=True)
            raise
        task = asyncio.create_task(self._work(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def _make_room(self, wanted: int) -> None:
        """Forget the oldest results for new ones; raises Refusal for more than there is room for."""
        ended = sorted((job for job in self._jobs.values() if job.ended_at), key=lambda job: job.ended_at or 0)
        while sum(job.result_bytes for job in self._jobs.values()) + wanted > MOST_RESULTS:
            if wanted > MOST_RESULTS:
                raise TooLarge("the vectors of these files are too many to keep", hint="send fewer files at once")
            if not ended:
                raise Busy("the vectors of running jobs fill the room for results", hint="wait for one of them")
            del self._jobs[ended.pop(0).job_id]

    def find(self, job_id: str) -> Job:
        """A job that was taken less than an hour after its end; raises Refusal."""
        self._forget()
        if job_id not in self._jobs:
            missing = Refusal(f"there is no job {job_id}", hint="results are kept for an hour")
            missing.status = 404
            raise missing
        return self._jobs[job_id]

    async def close(self) -> None:
        """Stop what runs, and remove its files."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, job: Job) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> dict[str, Any]:
            async with slots:
                name = job.names[number]
                try:
                    data = await asyncio.to_thread((job.folder / str(number)).read_bytes)
                except OSError as error:
                    return {"file": name, "status": "failed", "error": str(error), "hint": "send it again"}
                return await patient_result(self._service, job.model, name, data, job.normalize, job.job_id)

        try:
            job.results = list(await asyncio.gather(*map(one, range(len(job.names)))))
        finally:
            job.ended_at = time.monotonic()
            shutil.rmtree(job.folder, ignore_errors=True)

    def _forget(self) -> None:
        now = time.monotonic()
        old = [key for key, job in self._jobs.items() if job.ended_at and now - job.ended_at > KEPT_SECONDS]
        for key in old:
            del self._jobs[key]


def whole(name: str | None) -> str:
    """A file's name, half characters in it replaced."""
    return (name or "").encode(errors="replace").decode()


def _result_bytes(model: LoadedModel, files: int) -> int:
    return 4 * model.stored.dim * files


async def file_result(
    service: Service, model: LoadedModel, name: str, data: bytes, normalize: bool | None, client: Hashable
) -> dict[str, Any]:  # fmt: skip
    """One file's vector, or its error: a bad file spoils no other. Raises Busy."""
    try:
        vector = await service.embed_picture(model, data, normalize=normalize, client=client)
    except Busy:
        raise
    except Exception as error:
        said = refusal_of(error)
        service.metrics.count("http", "image", said.sqlstate)
        return {"file": name, "status": "failed", "error": str(said), "hint": said.hint}
    service.metrics.count("http", "image", "ok")
    return {"file": name, "status": "ok", "embedding": vector}


async def patient_result(
    service: Service, model: LoadedModel, name: str, data: bytes, normalize: bool | None, client: Hashable
) -> dict[str, Any]:  # fmt: skip
    """The same for a job, which has time: it waits while the embedder is busy."""
    while True:
        try:
            return await file_result(service, model, name, data, normalize, client)
        except Busy:
            await asyncio.sleep(0.05)
