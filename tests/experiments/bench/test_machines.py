import json
from pathlib import Path

import pytest

from experiments.bench import machines, places
from experiments.bench.publish import publish


@pytest.fixture
def published(results: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of two days, of which those of `shared` took turns, and the costs of another."""
    for file in (results / "runs").glob("*.json"):
        facts = json.loads(file.read_text())
        day = 27 if facts["system"] == "shared" else 28
        facts["environment"] |= {"when": f"2026-11-{day}T10:00:00+00:00", "autogroups": False}
        facts["machine"]["turn_s"] = 5.0 if facts["system"] == "shared" else 0.0
        file.write_text(json.dumps(facts))
    costs = json.loads((results / "costs.json").read_text())
    costs["cost"] = {"step_s": 0.02, "token_s": 0.001, "pair_s": 1e-6, "sequence_s": 0.001, "kv_token_s": 1e-6}
    costs["environment"] = {"when": "2026-11-29T10:00:00+00:00"}
    (results / "costs.json").write_text(json.dumps(costs))
    publish(results)
    monkeypatch.setattr(machines, "MACHINES", {"published": ("a machine", "there")})
    return places.PUBLISHED


def test_machines_are_told_by_their_speed_days_and_settings(published: Path, pages: tuple[Path, Path]) -> None:
    assert machines.machines(pages[0]).splitlines()[-1] == (
        "| [a machine](bench.md#there) | [published](published/tables.md) | a processor | 2026-11-27 to 2026-11-28 | "
        "2026-11-29 | 22 | 1.5 | off | in part |"
    )


def test_settings_that_records_do_not_say_are_not_known(published: Path, pages: tuple[Path, Path]) -> None:
    for file in (published / "runs").glob("*.json"):
        facts = json.loads(file.read_text())
        del facts["environment"]["autogroups"], facts["machine"]["turn_s"]
        file.write_text(json.dumps(facts))
    assert machines.machines(pages[0]).endswith("| not known | no |")
