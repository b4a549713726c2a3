import json
from pathlib import Path

import pytest

from experiments import workload_fit
from prefillshare.workloads.family import load_family, parse_family
from prefillshare.workloads.generate import generate
from tests.workloads.tokenisers import words


def test_the_table_says_how_far_apart_recorded_and_drawn_sessions_are() -> None:
    family = load_family("react")
    near = generate(family, 200, words), generate(family, 200, words, seed=1)
    lines = workload_fit.table({"react": near}).splitlines()[2:]
    assert len(lines) == 10
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(float(distance) < 2 * float(critical) for *_, distance, critical in cells)
    far = generate(family, 200, words), generate(load_family("tool_heavy"), 200, words)
    with pytest.raises(KeyError):  # roles that the recorded sessions have and the drawn ones lack
        workload_fit.table({"react": far})


def test_a_refit_writes_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_fit, "FAMILIES", tmp_path)
    search = {"thought": "so far", "action": "Search[x]", "observation": "x is y"}
    finish = {"thought": "so y", "action": "Finish[y]", "observation": "Answer is CORRECT"}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": q, "steps": [search, search, finish]}) + "\n" for q in "abcd"))
    recorded, drawn = workload_fit.refit("react", file, words)
    family = parse_family((tmp_path / "react.json").read_text(), "react")
    assert family.about.startswith("Fitted to 2 recorded ReAct HotpotQA sessions")
    assert len(drawn.sessions) == workload_fit.DRAWN
    assert recorded.preamble_tokens == family.preamble_tokens == drawn.preamble_tokens
