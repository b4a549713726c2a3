from pathlib import Path

from prefillshare.bench.environment import has_autogroups, kind_of_machine


def test_whether_linux_divides_cores_among_sessions(tmp_path: Path) -> None:
    setting = tmp_path / "sched_autogroup_enabled"
    assert not has_autogroups(setting)  # a kernel without them
    for written, expected in (("1\n", True), ("0\n", False)):
        setting.write_text(written)
        assert has_autogroups(setting) == expected


def test_figures_with_and_without_that_are_of_two_kinds_of_machine() -> None:
    assert kind_of_machine("float32")["autogroups"] == has_autogroups()
