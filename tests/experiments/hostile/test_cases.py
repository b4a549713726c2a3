import json
from collections import Counter

from experiments.hostile.cases import SHARES, Known, draw
from experiments.hostile.report import KINDS

KNOWN = Known(("key-a", "key-b"), "module", ("honest-0",), "the-mark", 5600)


def test_a_seed_has_its_cases_and_every_kind_its_share() -> None:
    cases = draw(KNOWN, 200, 1)
    assert cases == draw(KNOWN, 200, 1)
    assert cases != draw(KNOWN, 200, 2)
    counts = Counter(case.kind for case in cases)
    assert {kind: counts[kind] for kind in SHARES} == {kind: 2 * share for kind, share in SHARES.items()}
    assert sum(SHARES.values()) == 100
    assert KINDS.keys() == SHARES.keys()


def test_forged_parameters_stand_in_the_body_in_many_places() -> None:
    raw = [case.pieces[-1].unit for case in draw(KNOWN, 2000, 1) if case.kind == "forged"]
    assert sum(b"kv_transfer_params" in body for body in raw) > len(raw) / 2
    assert any(b"vllm_xargs" in body for body in raw)
    assert any(b"kv_transfer_p\\u0061rams" in body for body in raw)


def test_bodies_are_in_order_but_for_what_was_changed() -> None:
    fields = [case for case in draw(KNOWN, 300, 1) if case.kind == "fields"]
    parsed = [json.loads(case.pieces[-1].unit) for case in fields]
    assert all(isinstance(body, dict) and len(body) >= 4 for body in parsed)
    assert sum(body["model"] == "module" for body in parsed) > len(parsed) / 2
