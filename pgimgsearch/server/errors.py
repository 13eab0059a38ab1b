"""What the embedder refuses: each with a SQLSTATE for one door and a status for the other."""

from fastapi.responses import JSONResponse

from pgimgsearch.errors import ModelError, PgImgSearchError


class Refusal(PgImgSearchError):  # noqa: N818  (a refusal is an answer)
    """The request cannot be answered as it is."""

    sqlstate = "PI008"
    status = 400


class Busy(Refusal):
    """The embedder is busy."""

    sqlstate = "PI011"
    status = 503


class Unauthorized(Refusal):
    """The password is missing or wrong."""

    sqlstate = "28P01"
    status = 401


class ModelNotServed(Refusal):
    """The embedder does not hold this model."""

    sqlstate = "PI012"
    status = 404


class BadImage(Refusal):
    """The image cannot be read."""

    sqlstate = "PI014"
    status = 422


class TooLarge(Refusal):
    """The request has more bytes than are taken."""

    status = 413


def json_answer(refusal: Refusal) -> JSONResponse:
    """A refusal over HTTP; half a character in what it quotes becomes a question mark."""
    told = {"error": str(refusal), "hint": refusal.hint, "sqlstate": refusal.sqlstate}
    content = {key: value and value.encode(errors="replace").decode() for key, value in told.items()}
    return JSONResponse(content, refusal.status, {"Retry-After": "1"} if isinstance(refusal, Busy) else None)


def refusal_of(error: Exception) -> Refusal:
    """Any error as one that both protocols can return."""
    if isinstance(error, Refusal):
        return error
    said = Refusal(str(error), hint=getattr(error, "hint", None))
    said.sqlstate, said.status = ("PI007", 422) if isinstance(error, ModelError) else ("XX000", 500)
    return said
