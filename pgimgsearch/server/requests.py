"""What sql/25_embedder.sql asks, as JSON: ``{"ask": "status"}``, or for the vectors of texts or of an image."""

from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, Field, TypeAdapter, ValidationError

from pgimgsearch.server.errors import Refusal


class StatusRequest(BaseModel):
    """What is held?"""

    ask: Literal["status"]


class TextRequest(BaseModel):
    """The vectors of texts in a template; of a fingerprint, where one is given."""

    ask: Literal["text"]
    model: str
    texts: list[str]
    template: str = "{}"
    fingerprint: str | None = None


class ImageRequest(BaseModel):
    """The vector or hash of an image, or of a part of it: x, y, width, height."""

    ask: Literal["image"]
    model: str
    bytes: Base64Bytes
    crop: tuple[int, int, int, int] | None = None
    fingerprint: str | None = None


Question = StatusRequest | TextRequest | ImageRequest
_KNOWN: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="ask")])


def parse(query: str) -> Question:
    """Read a question; raises Refusal."""
    try:
        return _KNOWN.validate_json(query)
    except ValidationError as error:
        what = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, what["loc"]))
        raise Refusal(f"unknown request: {where} {what['msg']}", hint='for example {"ask": "status"}') from error
