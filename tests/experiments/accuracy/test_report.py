"""The table comes from the records alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.accuracy.cells import ANSWERERS, Cell, Record, System, save
from experiments.accuracy.families import FAMILIES
from experiments.accuracy.report import DETAILS, START, write_report
from experiments.section import END
from prefillshare.errors import UserError

RECIPE = {"data": "sha256:0", "steps": 2}


def fill(
    folder: Path,
    seed: int,
    *,
    family: str = "sql",
    bits: str = "1100",
    best: float = 1e-3,
    recipe: dict[str, object] = RECIPE,
    dtype: str = "float32",
) -> None:
    """base 0, full 3/4, naive 1/4, decode 2/4 on the test items, at the given rate of two."""
    environment = {"dtype": dtype}
    base = Record(Cell(family, seed, "base"), recipe, environment)
    base.scores["test"] = {"base": {"right": "0000", "seconds": 1.0}}
    save(base, folder)
    for rate in (1e-4, 1e-3):
        full, decode = (
            Record(Cell(family, seed, s, rate), recipe, environment, {"seconds": 9.0}) for s in ("full", "decode")
        )
        good = "1" if rate == best else "0"
        full.scores["validation"] = {
            "full": {"right": "1" + good, "seconds": 1.0},
            "naive": {"right": "00", "seconds": 1.0},
        }
        decode.scores["validation"] = {"decode": {"right": "0" + good, "seconds": 1.0}}
        if rate == best:
            full.scores["test"] = {
                "full": {"right": "1110", "seconds": 1.0},
                "naive": {"right": "1000", "seconds": 1.0},
            }
            decode.scores["test"] = {"decode": {"right": bits, "seconds": 1.0}}
        save(full, folder)
        save(decode, folder)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    (docs / "results").mkdir(parents=True)
    (docs / "accuracy.md").write_text(f"before\n{START}\nold\n{END}\nafter\n")
    return docs


def details_of(docs: Path) -> str:
    """The page of the tables by seed and by rate."""
    return (docs / "results" / DETAILS).read_text()


def test_the_table_replaces_what_stands_between_the_marks(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    fill(results, 1, best=1e-4)
    text = write_report(results, docs)
    page = (docs / "accuracy.md").read_text()
    assert page == f"before\n{START}\n{text}\n{END}\nafter\n"
    assert "| sql, wording of the question | 4 x 2 | 0.0 | 75.0 | 25.0 | 50.0 | -25.0 (" in text
    details = details_of(docs)
    assert "| sql | 0.001 | 75.0 | 0.0 | 25.0 | 1 | 1 |" in details
    assert "| sql | 1 | 75.0 | 25.0 | 50.0 | -25.0 (-67.4 to +17.4) | -50.0 (-99.0 to -1.0) |" in details
    assert "8 trainings" in details
    summary = json.loads((docs / "results" / "accuracy.json").read_text())
    assert summary["points"]["decode"]["points"] == pytest.approx(-25)
    assert summary["families"]["sql"]["best_rates"] == {"full": [1e-3, 1e-4], "decode": [1e-3, 1e-4]}
    assert (docs / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_trial_stands_below_the_mean_and_outside_it(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    fill(results, 0, family="gsm", bits="1111")
    rows = [line for line in write_report(results, docs).splitlines() if line.startswith("|")]
    assert [row.split(",")[0].split(" | ")[0] for row in rows[2:5]] == ["| sql", "| mean of 1", "| gsm"]
    summary = json.loads((docs / "results" / "accuracy.json").read_text())
    assert summary["mean_of"] == ["sql"]
    assert summary["points"]["decode"]["points"] == pytest.approx(-25)
    assert summary["families"]["gsm"]["points"]["decode"]["points"] == pytest.approx(25)


def test_writing_it_again_changes_nothing(docs: Path) -> None:
    fill(docs / "results" / "accuracy", 0)
    write_report(docs / "results" / "accuracy", docs)
    once = {file: file.read_bytes() for file in docs.rglob("*.*")}
    write_report(docs / "results" / "accuracy", docs)
    assert {file: file.read_bytes() for file in docs.rglob("*.*")} == once


def test_a_seed_without_all_systems_is_left_out(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    fill(results, 1)
    (results / "sql-s1-decode-0.001.json").unlink()
    assert "| 4 x 1 |" in write_report(results, docs)


def test_a_rate_that_only_one_system_was_trained_at_does_not_count(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    before = write_report(results, docs) + details_of(docs)
    wider = Record(Cell("sql", 0, "decode", 1e-5), RECIPE, {"dtype": "float32"}, {"seconds": 9.0})
    wider.scores["validation"] = {"decode": {"right": "11", "seconds": 1.0}}  # the best of all
    wider.scores["test"] = {"decode": {"right": "1111", "seconds": 1.0}}
    save(wider, results)
    after = write_report(results, docs) + details_of(docs)
    assert after.partition(" trainings")[0][:-1] == before.partition(" trainings")[0][:-1]
    full = Record(Cell("sql", 0, "full", 1e-5), RECIPE, {"dtype": "float32"}, {"seconds": 9.0})
    full.scores["validation"] = {key: {"right": "00", "seconds": 1.0} for key in ("full", "naive")}
    save(full, results)
    assert "| 100.0 |" in write_report(results, docs)


def longer(folder: Path, seed: int, *, validation: str, test: str, system: System = "decode", passes: int = 2) -> None:
    record = Record(Cell("sql", seed, system, 1e-3, passes=passes), RECIPE, {"dtype": "float32"}, {"seconds": 12.0})
    for part, right in (("validation", validation), ("test", test)):
        record.scores[part] = {key: {"right": right, "seconds": 1.0} for key in ANSWERERS[system]}
    save(record, folder)


def leave_room(folder: Path, seed: int) -> None:
    """Full fine-tuning gets a validation item wrong, so that a longer training can be better."""
    for rate, was, now in (("0.0001", "10", "00"), ("0.001", "11", "10")):
        file = folder / f"sql-s{seed}-full-{rate}.json"
        file.write_text(file.read_text().replace(f'"right": "{was}"', f'"right": "{now}"'))


def slow_down(folder: Path, seed: int, seconds: str) -> None:
    """Steps of full fine-tuning, which were as long as the decode module's: 9 seconds."""
    for rate in ("0.0001", "0.001"):
        file = folder / f"sql-s{seed}-full-{rate}.json"
        file.write_text(file.read_text().replace('"seconds": 9.0', f'"seconds": {seconds}'))


def test_the_longer_training_counts_in_a_table_of_its_own(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    fill(results, 1)
    before = write_report(results, docs)
    longer(results, 0, validation="11", test="1111")  # better on the validation items
    assert "With as much time" not in write_report(results, docs)  # only one of two seeds has it
    longer(results, 1, validation="00", test="1111")  # not better there: the shorter one stays, with 2 of 4
    after = write_report(results, docs)
    assert after.startswith(before)
    # Four trainings of one pass and two of two, and steps that take as long, against four of full fine-tuning's.
    assert "| sql | 75.0 | 75.0 | +0.0 (" in after
    assert "| 1 of 2 | 2.00x |" in after
    summary = json.loads((docs / "results" / "accuracy.json").read_text())["families"]["sql"]["same_time"]
    assert (summary["passes"], summary["accuracy_by_seed"]) == ([2, 1], [1.0, 0.5])


def test_cheaper_steps_leave_time(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    longer(results, 0, validation="11", test="1111")
    slow_down(results, 0, "36.0")
    assert "| 1 of 1 | 0.50x |" in write_report(results, docs)


def test_the_longer_trainings_of_both_are_compared_for_the_seeds_that_have_them(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    fill(results, 1)
    leave_room(results, 1)
    before = write_report(results, docs)
    longer(results, 0, validation="11", test="1110")
    longer(results, 1, validation="11", test="1110")
    assert "With more steps" not in write_report(results, docs)  # full fine-tuning has none
    longer(results, 1, validation="11", test="1111", system="full")
    after = write_report(results, docs)
    assert after.startswith(before)
    assert "| sql, as many steps | 4 x 1 | 100.0 | 100.0 | 75.0 | -25.0 (" in after
    longer(results, 0, validation="00", test="1111", system="full")  # no better: the shorter one stays, with 3 of 4
    after = write_report(results, docs)
    assert "| sql, as many steps | 4 x 2 | 87.5 | 62.5 | 75.0 | -12.5 (" in after
    assert after.count("| 1 | 2 | 1.00x |") == 1  # seeds that chose more passes
    summary = json.loads((docs / "results" / "accuracy.json").read_text())["families"]["sql"]["more_passes"]
    assert summary["passes"] == {"full": [1, 2], "decode": [2, 2]}
    assert summary["accuracy_by_seed"]["full"] == [0.75, 1.0]


def test_the_longest_training_of_the_decode_module_is_compared_with_the_longer_one_of_full_fine_tuning(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "sql", replace(FAMILIES["sql"], longest=((1e-3, 4),)))
    results = docs / "results" / "accuracy"
    fill(results, 0)
    leave_room(results, 0)
    slow_down(results, 0, "18.0")
    longer(results, 0, validation="11", test="1111", system="full")
    longer(results, 0, validation="11", test="1110", passes=4)
    after = write_report(results, docs)
    # Six passes, of which one takes half as long, against four.
    assert "| sql, as much time | 4 x 1 | 100.0 | 100.0 | 75.0 | -25.0 (" in after
    assert "| 1 | 1 | 0.75x |" in after
    assert "With as much time" not in after  # it is none of the choices there
    assert "| sql, as many steps | 4 x 1 | 100.0 |" not in after
    longer(results, 0, validation="11", test="1111")
    after = write_report(results, docs)
    assert "| sql, as many steps | 4 x 1 | 100.0 | 100.0 | 100.0 | +0.0 (" in after  # without the longest one
    assert "| sql, as much time | 4 x 1 | 100.0 | 100.0 | 75.0 | -25.0 (" in after
    summary = json.loads((docs / "results" / "accuracy.json").read_text())["families"]["sql"]
    assert summary["as_long"]["passes"] == {"full": [2], "decode": [4]}
    assert summary["more_passes"]["passes"] == {"full": [2], "decode": [2]}


def test_decode_modules_that_started_from_full_fine_tuning_are_shown_beside_it(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    before = write_report(results, docs)
    cell = Cell("sql", 0, "decode", 1e-3, after=2)
    record = Record(cell, RECIPE, {"dtype": "float32"}, {"seconds": 9.0})
    record.scores["test"] = {"decode": {"right": "1101", "seconds": 1.0}}
    save(record, results)
    assert "start_from" not in write_report(results, docs)  # what it started from has no scores yet
    longer(results, 0, validation="11", test="1111", system="full")
    after = write_report(results, docs)
    assert after.startswith(before)
    assert "| sql | 4 x 1 | 100.0 | 100.0 | 75.0 | -25.0 (" in after
    assert after.count("| 100.0, 100.0, 75.0 |") == 1
    summary = json.loads((docs / "results" / "accuracy.json").read_text())["families"]["sql"]["from_full"]
    assert summary == {"full": [1.0], "naive": [1.0], "decode": [0.75]}


def test_adapters_are_shown_beside_what_trains_all_weights_once_they_have_all_their_rates(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "sql", replace(FAMILIES["sql"], adapters=(1e-3, 2e-3)))
    results = docs / "results" / "accuracy"
    fill(results, 0)
    fill(results, 1)
    before = write_report(results, docs)
    for rate, validation, test in ((1e-3, "10", "0000"), (2e-3, "11", "1111")):
        record = Record(Cell("sql", 1, "decode", rate, rank=16), RECIPE, {"dtype": "float32"}, {"seconds": 9.0})
        record.scores["validation"] = {"decode": {"right": validation, "seconds": 1.0}}
        record.scores["test"] = {"decode": {"right": test, "seconds": 1.0}}
        assert "LoRA" not in write_report(results, docs)
        save(record, results)
    after = write_report(results, docs)
    assert "| sql | 4 x 1 | 75.0 | 50.0 | 100.0 | +25.0 (" in after
    assert "| 0.001: 50.0, 0; 0.002: 100.0, 1 |" in after
    assert after.startswith(before)  # elsewhere they do not count
    summary = json.loads((docs / "results" / "accuracy.json").read_text())["families"]["sql"]["adapters"]
    assert summary["accuracy_by_seed"] == [1.0]
    assert summary["best_rates"] == [2e-3]


def test_no_complete_seed_is_said(docs: Path) -> None:
    with pytest.raises(UserError, match="no family"):
        write_report(docs / "results" / "accuracy", docs)


def test_records_of_two_recipes_do_not_make_one_table(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    fill(results, 1, recipe={**RECIPE, "steps": 3})
    with pytest.raises(UserError, match="different recipes"):
        write_report(results, docs)


def test_both_systems_are_compared_at_a_rate_in_one_dtype_and_rates_may_differ(docs: Path) -> None:
    results = docs / "results" / "accuracy"
    fill(results, 0)
    for system in ("full", "decode"):
        change_dtype(results / f"sql-s0-{system}-0.001.json")
    write_report(results, docs)
    assert "Settings: dtype bfloat16; dtype float32." in details_of(docs)
    assert "| sql | 0.001 |" in details_of(docs)
    change_dtype(results / "sql-s0-decode-0.0001.json")
    write_report(results, docs)
    assert "| sql | 0.001 |" in details_of(docs)
    assert "| sql | 0.0001 |" not in details_of(docs)


def change_dtype(file: Path) -> None:
    file.write_text(file.read_text().replace("float32", "bfloat16"))


def test_a_page_without_marks_is_refused(docs: Path) -> None:
    fill(docs / "results" / "accuracy", 0)
    (docs / "accuracy.md").write_text("nothing")
    with pytest.raises(UserError, match="are missing"):
        write_report(docs / "results" / "accuracy", docs)
