"""Values of rows as JSON holds them: numbers stay numbers, times are ISO 8601 in UTC, arrays arrays, the rest text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

DEEPEST = 100  # levels of nesting
MOST_DIGITS, MOST_BITS = 300, 1000  # of a number: other languages read it as one of double precision


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A value that a library could not read, and why; it fails its row."""

    why: str


def as_json(value: Any, name: str, depth: int = 0) -> Any:
    """A value as JSON has it; NaN, which says that there is no number, is null.

    Raises ValueError, with the column's name, for what JSON has no form for: bytes, infinities, deep nesting.
    """
    if depth > DEEPEST:
        raise ValueError(f"{name} is nested more than {DEEPEST} deep")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Unreadable):
        raise ValueError(f"{name} cannot be read: {value.why}")
    if isinstance(value, float | Decimal):
        return _number(value, name)
    if isinstance(value, int):
        if value.bit_length() > MOST_BITS:
            raise ValueError(f"{name} is a number of more than {MOST_DIGITS} digits")
        return int(value)
    if isinstance(value, datetime):  # of fixed width, so that it compares as text
        utc = value.astimezone(UTC) if value.tzinfo is not None else value
        return utc.replace(tzinfo=None).isoformat(timespec="microseconds") + ("Z" if value.tzinfo is not None else "")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): as_json(one, name, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(one, name, depth + 1) for one in value]
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"{name} holds bytes, which have no form in JSON: leave it out")
    return str(value)  # a uuid, an interval, an address, a range


def _number(value: float | Decimal, name: str) -> int | float | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise ValueError(f"{name} is infinite, which has no form in JSON")
    if isinstance(value, Decimal):
        if value.adjusted() > MOST_DIGITS:
            raise ValueError(f"{name} is a number of more than {MOST_DIGITS} digits")
        return int(value) if value == value.to_integral_value() else float(value)
    if abs(value) >= 10.0**MOST_DIGITS:
        raise ValueError(f"{name} is a number of more than {MOST_DIGITS} digits")
    return value
