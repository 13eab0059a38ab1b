"""What a check found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked, how it is, and the command that mends it."""

    check: str
    state: Literal["good", "warn", "bad"]
    finding: str
    mend: str = ""
