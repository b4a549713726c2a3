import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prefillshare.simulate.layout import Layout
from prefillshare.simulate.records import Records, summarise
from prefillshare.simulate.simulation import Simulation
from prefillshare.simulate.workload import has_texts, many, model_names, rough_tokenise, shapes_of
from prefillshare.workloads.arrivals import Closed
from prefillshare.workloads.family import load_family
from prefillshare.workloads.mooncake import read_trace
from prefillshare.workloads.session import Session, Turn, Workload, new_tokens
from tests.simulate.shapes import PROFILE


def workload(*roles: str) -> Workload:
    turns = tuple(Turn(role, "", 10, "", 5, 0.0, "") for role in roles)
    return Workload("w", "", 30, (Session("s", turns), Session("t", turns[:2])))


@pytest.mark.parametrize(
    ("models", "called"),
    [(1, [0, 0, 0, 0, 0]), (2, [0, 1, 0, 0, 1]), (3, [0, 1, 0, 2, 1]), (6, [0, 1, 3, 2, 4]), (4, [0, 1, 3, 2, 1])],
)
def test_roles_are_spread_over_the_models(models: int, called: list[int]) -> None:
    names = model_names(models)
    shapes = shapes_of(workload("a", "b", "a", "c", "b"), names)
    assert [call.model for call in shapes[0]] == [names[index] for index in called]
    assert [len(shape) for shape in shapes] == [5, 2]
    assert shapes[0][0].context == 40


def test_roles_that_no_session_has_keep_their_models() -> None:
    names = model_names(4)
    declared = replace(workload("b", "c"), declared=("a", "b", "c"))
    assert [call.model for call in shapes_of(declared, names)[0]] == [names[1], names[2]]


def test_many_sessions_are_drawn_and_the_same_ones_again() -> None:
    shapes = shapes_of(workload("a", "b", "c"), model_names(3))
    drawn = list(many(shapes, 50, seed=1))
    assert len(drawn) == 50
    assert set(drawn) == set(shapes)
    assert drawn == list(many(shapes, 50, seed=1)) != list(many(shapes, 50, seed=2))


def test_what_all_sessions_of_a_trace_begin_with_is_computed_once(tmp_path: Path) -> None:
    requests = [
        {"timestamp": 1000 * n, "input_length": 4608, "output_length": 20, "hash_ids": [*range(8), 100 + n]}
        for n in range(60)
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    read = read_trace(file, rough_tokenise)
    names, records = model_names(1), Records()
    sessions, layout = shapes_of(read, names), Layout("shared", names)
    Simulation(layout, PROFILE, sessions, Closed(4), records, preamble_tokens=read.preamble_tokens).run()
    at_best = 59 * 8 / (60 * 9)
    # The first four come before any of them is computed.
    assert at_best - 0.06 < summarise(records)["hit_ratio"] <= at_best
    assert sum(sum(new_tokens(session)) for session in read.sessions) == 60 * 512


HASHES = " ".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(20))
# And how many tokens the tokenizer of SmolLM2 makes of them.
TEXTS = {
    "words": ("The session goes on from where the other model stopped, with what both have seen so far. " * 5, 96),
    "hexadecimal": (HASHES, 1148),
    "numbers": (" ".join(f"{number / 7:.6f}" for number in range(200)), 1929),
    "json": (json.dumps([{"step_s": n / 9, "name": f"worker-{n}", "ok": True} for n in range(40)], indent=1), 1711),
    "log": ("\n".join(f"2024-05-02T12:01:{n} INFO GET /v1/models?x={991 * n} 200 {13 * n}ms" for n in range(40)), 1765),
    "code": (
        "def kept(self, rows):\n    for row in rows:\n        if row.size > 3:\n            yield row\n\n" * 5,
        134,
    ),
    "sql": ("SELECT name, SUM(total) FROM orders WHERE created_at > '2024-01-01' GROUP BY name;\n" * 5, 165),
    "constants": ("raise CUSTOMER_ID_UNKNOWN, MAX_SEQUENCE_LENGTH and ORDER_TOTAL_AMOUNT\n" * 5, 155),
    "chinese": ("我们在这里讨论如何部署大型语言模型,共享前缀缓存可以减少计算量。" * 5, 275),
    "french": ("Les modèles partagés décodent à partir du cache, ce qui réduit la quantité de calcul. " * 5, 141),
    "arabic": ("نناقش هنا كيفية نشر نماذج اللغة الكبيرة ومقارنة الأنظمة المختلفة. " * 5, 325),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_tokens_are_estimated_at_what_a_tokenizer_makes_or_somewhat_more(kind: str) -> None:
    text, tokens = TEXTS[kind]
    assert 0.9 * tokens <= len(rough_tokenise(text)) <= 1.3 * tokens


def test_ordinary_words_count_as_they_do_in_what_is_published() -> None:
    """The figures of docs/simulation.md were made with these lengths of the roles' instructions."""
    counts = {
        name: [len(rough_tokenise(text)) for text in load_family(name).instructions.values()]
        for name in ("react", "reflexion", "tool_heavy")
    }
    assert counts == {"react": [21, 26, 22], "reflexion": [21, 26, 22, 22], "tool_heavy": [18, 15, 18, 23]}
    assert rough_tokenise("") == []


def test_a_text_of_one_endless_word_is_counted_in_no_time() -> None:
    began = time.process_time()
    assert len(rough_tokenise("a" * 600_000)) == 100_000
    assert time.process_time() - began < 5
    assert len(rough_tokenise("\ud800")) == 2  # half a character, which JSON can have


def test_recorded_texts_are_told_from_those_that_are_made_up() -> None:
    made = workload("a", "b")
    assert not has_texts(replace(made, preamble_tokens=0, sessions=()))
    salad = Turn("a", "big red sun", 3, "so it is", 3, 0.0, "")
    assert not has_texts(Workload("w", "hot day", 2, (Session("s", (salad,)),)))
    for change in (
        {"observed": "big, red sun", "observed_tokens": 4},
        {"output": "so it is.", "output_tokens": 4},
        {"instructions": "You act.", "instructions_tokens": 3},
    ):
        assert has_texts(Workload("w", "", 0, (Session("s", (salad, replace(salad, **change))),)))
    assert has_texts(Workload("w", "Hot day.", 3, ()))
