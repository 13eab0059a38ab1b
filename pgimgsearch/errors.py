"""The errors a user meets: what happened, and the command that mends it."""


class PgImgSearchError(Exception):
    """pgimgsearch failed."""

    exit_code = 1

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        self.hint = hint


class UsageError(PgImgSearchError):
    """The command was called in a way that cannot work."""

    exit_code = 2


class DatabaseError(PgImgSearchError):
    """The database could not be reached, or refused."""

    exit_code = 3


class BusyError(DatabaseError):
    """Another session is at this already."""


class SchemaError(PgImgSearchError):
    """The database and this program do not fit each other."""

    exit_code = 4


class ModelError(PgImgSearchError):
    """The model is unknown, cannot be loaded, or is not the one that was stored."""

    exit_code = 5


class RecallError(ModelError):
    """An index finds too few of the true neighbours."""


class DriftError(ModelError):
    """The model is not the one whose vectors are stored."""


class SourceError(PgImgSearchError):
    """The images could not be found or listed."""

    exit_code = 6


class DiskFullError(PgImgSearchError):
    """The disk is full: what was committed is kept."""

    exit_code = 7


class NotFoundError(PgImgSearchError):
    """The database holds no such image, vector or collection."""

    exit_code = 8


class EmbedderError(PgImgSearchError):
    """The embedder cannot be reached, is busy, or holds another model."""

    exit_code = 9


class RequirementError(PgImgSearchError):
    """A figure that was required was not reached."""

    exit_code = 10


class InterruptedRun(PgImgSearchError):  # noqa: N818  (an interruption is not an error of ours)
    """Interrupted: what was committed is kept, the next run goes on from there."""

    exit_code = 130
