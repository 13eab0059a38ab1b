"""Figures that must be reached: "r@1>=0.6", or "dinov3:r@1>=0.6" of one model alone."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pgimgsearch.errors import RequirementError, UsageError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
FORM = re.compile(r"(?:(?P<model>.+):)?(?P<figure>[^:<>=\s]+)\s*(?P<operator>>=|<=|>|<)\s*(?P<value>[-+.\deE]+)")

Figures = Mapping[str, Mapping[str, float]]  # model -> figure -> value


@dataclass(frozen=True, slots=True)
class Requirement:
    """A figure and its bound, of one model or of all."""

    model: str | None
    figure: str
    operator: str
    value: float

    def failures(self, figures: Figures) -> list[str]:
        """What does not meet it; a figure that is not a number never does."""
        return [
            f"{model}: {self.figure} is {own[self.figure]:.4f}, not {self.operator} {self.value:g}"
            for model, own in figures.items()
            if self.model in {None, model} and not OPERATORS[self.operator](own[self.figure], self.value)
        ]


def parse(texts: Sequence[str], models: Sequence[str], figures: Sequence[str]) -> list[Requirement]:
    """Requirements as one writes them; raises UsageError for a form, figure or model that there is not."""
    found = []
    for text in texts:
        match = FORM.fullmatch(text.strip())
        try:
            if match is None:
                raise ValueError
            wanted = Requirement(match["model"], match["figure"], match["operator"], float(match["value"]))
        except ValueError:
            raise UsageError(f"--require {text} is no requirement", hint='for example: --require "r@1>=0.6"') from None
        if wanted.figure not in figures:
            raise UsageError(f"there is no figure {wanted.figure}", hint=f"figures here: {', '.join(figures)}")
        if wanted.model is not None and wanted.model not in models:
            raise UsageError(f"{wanted.model} is not evaluated here", hint=f"models here: {', '.join(models)}")
        found.append(wanted)
    return found


def check(requirements: Sequence[Requirement], figures: Figures) -> None:
    """Raise RequirementError, with all that fails, where something does."""
    failed = [failure for requirement in requirements for failure in requirement.failures(figures)]
    if failed:
        raise RequirementError("; ".join(failed), hint="earlier figures: pgimgsearch evaluate --history")
