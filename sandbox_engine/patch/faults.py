"""Collects what is malformed in the text of a patch, so that all of it is told at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox_engine.errors import PatchSyntaxError
from sandbox_engine.patch.paths import show
from sandbox_engine.verdict import Finding

MAX_FINDINGS = 100


@dataclass(slots=True)
class Faults:
    """What is malformed so far; `form` is what the text was read as, `remedy` what to send."""

    form: str
    remedy: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether so much is wrong that reading on tells nothing new."""
        return len(self.findings) >= MAX_FINDINGS

    def add_if_none(self, message: str) -> None:
        """Note a fault of the whole text, unless faults of its lines explain it already."""
        if not self.findings:
            self.add(None, message)

    def add(
        self,
        line: int | None,
        message: str,
        *,
        source: bytes | None = None,
        hint: str | None = None,
    ) -> None:
        """Note that `line` (1-based, of the patch's text) is malformed."""
        if not self.is_full:
            shown = None if source is None else show(source.rstrip(b"\r\n"))
            self.findings.append(
                Finding("patch-malformed", message, line=line, source=shown, hint=hint)
            )

    def require_none(self) -> None:
        """Raise PatchSyntaxError with every fault in the order of the lines, if there is one."""
        if not self.findings:
            return
        self.findings.sort(key=lambda finding: finding.line or 0)
        first = self.findings[0]
        where = "" if first.line is None else f" at line {first.line}"
        raise PatchSyntaxError(
            f"the {self.form} malformed{where}: {first.message}",
            remedy=self.remedy,
            findings=self.findings,
        )
