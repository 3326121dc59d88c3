"""What the self-checks found, as text and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One check by its `name`: whether it `passed`, the value `measured` and the largest `allowed`; a `note` in words.

    The two values are None where the answer is yes or no.
    """

    name: str
    passed: bool
    measured: float | None = None
    allowed: float | None = None
    note: str = ""

    @property
    def detail(self) -> str:
        """What was measured and allowed, and the note, as text."""
        if self.measured is None:
            return self.note
        bound = "must be 0" if self.allowed == 0 else f"at most {self.allowed:.1g}"
        return f"{self.measured:.2g} ({bound}){'; ' if self.note else ''}{self.note}"


@dataclass(frozen=True)
class Report:
    """All checks (`findings`) of one `model`, in how many `seconds`, and `about` what; true when every one holds."""

    model: str
    about: str
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(finding.passed for finding in self.findings)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        rows = [f"  {_word(one.passed):<6}  {one.name:<{width}}  {one.detail}".rstrip() for one in self.findings]
        return "\n".join([f"{self.model}: {self.about}", *rows, self._verdict()])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain values, JSON-ready, with `model`, `about` and `passed`."""
        findings = [{**vars(finding)} for finding in self.findings]
        return {"model": self.model, "about": self.about, "passed": self.passed, "findings": findings}

    def _verdict(self) -> str:
        failed = [finding.name for finding in self.findings if not finding.passed]
        if not failed:
            return f"All {len(self.findings)} checks hold ({self.seconds:.1f} s)."
        count = f"{len(failed)} of {len(self.findings)} checks fail ({self.seconds:.1f} s)"
        return f"{count}: do not trust traces of this model."

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'✓' if one.passed else '✗'} {_word(one.passed)}</td>"
            f"<td style='text-align:left'>{escape(one.name)}</td>"
            f"<td style='text-align:left'>{escape(one.detail)}</td></tr>"
            for one in self.findings
        )
        caption = f"<caption style='text-align:left'>{escape(self.model)}: {escape(self.about)}</caption>"
        return f"<table>{caption}{rows}</table><p>{escape(self._verdict())}</p>"


def _word(passed: bool) -> str:
    return "holds" if passed else "FAILS"
