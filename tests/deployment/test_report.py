import io

from rich.console import Console

from prefillshare.deployment.report import CheckFailed, CheckReport, Finding

REPORT = CheckReport(
    (
        Finding("base.path", "ok", "fine"),
        Finding("memory", "warning", "tight"),
        Finding("router.port", "problem", "taken [by 1]"),
        Finding("modules.0", "problem", "two\nlines"),
    )
)


def test_failure_lists_problems_and_keeps_the_report() -> None:
    failure = CheckFailed(REPORT)
    assert str(failure).splitlines() == [
        "2 problem(s), nothing was started:",
        "  router.port: taken [by 1]",
        "  modules.0: two",
        "    lines",
    ]
    assert failure.report is REPORT


def test_json_has_every_finding() -> None:
    found = REPORT.as_dict()
    assert found["ok"] is False
    assert found["findings"][1] == {"subject": "memory", "verdict": "warning", "detail": "tight"}
    assert len(found["findings"]) == 4


def test_table_shows_details_as_they_are() -> None:
    output = io.StringIO()
    Console(file=output, width=100).print(REPORT.as_table())
    shown = output.getvalue()
    assert "taken [by 1]" in shown
    assert "warning" in shown
