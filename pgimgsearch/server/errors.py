"""What the embedder refuses: each with a SQLSTATE for one door and a status for the other."""

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


def refusal_of(error: Exception) -> Refusal:
    """Any error as one that both protocols can return."""
    if isinstance(error, Refusal):
        return error
    said = Refusal(str(error), hint=getattr(error, "hint", None))
    said.sqlstate, said.status = ("PI007", 422) if isinstance(error, ModelError) else ("XX000", 500)
    return said
