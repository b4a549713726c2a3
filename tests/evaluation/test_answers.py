from pathlib import Path

from prefillshare.evaluation.answers import Answer, AnswerFile

INPUTS = {"data": "sha256:1", "share": 1.0}
ONE, TWO = Answer(3, "four\ntwo\u2028", 0.5, False), Answer(1, "\ud800", 0.25, True)


def test_answers_are_there_again(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "answers" / "a.jsonl", INPUTS) as file:
        assert file.known == {}
        file.append(ONE)
        file.append(TWO)
    with AnswerFile(tmp_path / "answers" / "a.jsonl", INPUTS) as file:
        assert file.known == {3: ONE, 1: TWO}


def test_answers_to_anything_else_are_not_used(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "a.jsonl", INPUTS) as file:
        file.append(ONE)
    with AnswerFile(tmp_path / "a.jsonl", {**INPUTS, "data": "sha256:2"}) as file:
        assert file.known == {}
    with AnswerFile(tmp_path / "a.jsonl", INPUTS) as file:
        assert file.known == {}


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with AnswerFile(path, INPUTS) as file:
        file.append(ONE)
        file.append(TWO)
    path.write_bytes(path.read_bytes()[:-20])
    with AnswerFile(path, INPUTS) as file:
        assert file.known == {3: ONE}
        file.append(TWO)
    with AnswerFile(path, INPUTS) as file:
        assert file.known == {3: ONE, 1: TWO}


def test_every_answer_is_on_disk_at_once(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "a.jsonl", INPUTS) as file:
        file.append(ONE)
        assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2
