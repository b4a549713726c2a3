"""What a check of a deployment found, as data, table and JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from prefillshare.errors import UserError

Verdict = Literal["ok", "warning", "problem"]
_STYLES: dict[Verdict, str] = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """`subject` is the field of the deployment file, `detail` what was found there and, if bad, the way out."""

    subject: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Everything that was checked, in the order of the deployment file."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "problem")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "warning")

    def as_dict(self) -> dict[str, Any]:
        return {"ok": not self.problems, "findings": [asdict(finding) for finding in self.findings]}

    def as_table(self) -> Table:
        table = Table("field", "verdict")
        table.add_column("detail", overflow="fold")  # nothing is cut off: digests are compared by eye
        for finding in self.findings:
            style = _STYLES[finding.verdict]
            table.add_row(finding.subject, Text(finding.verdict, style), Text(finding.detail))
        return table


class CheckFailed(UserError):
    """The deployment would not start. The message lists every problem; `report` has all findings."""

    def __init__(self, report: CheckReport) -> None:
        self.report = report
        lines = [
            f"{finding.subject}: {finding.detail.replace(chr(10), chr(10) + '    ')}" for finding in report.problems
        ]
        super().__init__(f"{len(lines)} problem(s), nothing was started:\n  " + "\n  ".join(lines))
