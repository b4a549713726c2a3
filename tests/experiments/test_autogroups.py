from typing import Any

from experiments.autogroups import table


def call(ttft_s: float, **fields: Any) -> dict[str, Any]:
    row = {"kind": "call", "error": None, "ttft_s": ttft_s, "queue_s": 0.5, "prefill_s": 1.0, "output_tokens": 600}
    return row | fields


def test_waits_are_what_the_queue_and_the_first_leg_leave_of_the_time_to_the_first_token() -> None:
    rows = [call(2.0), call(2.0), call(9.5), call(99.0, error="HTTP 500"), {"kind": "session"}]
    last = table({"on": rows, "off": [call(2.0), call(2.0)]}).splitlines()[-2:]
    assert last[0].startswith("| on | 3 | 1,800 | 0.50 | ")
    assert last[0].endswith(" | 8.00 |")
    assert last[1] == "| off | 2 | 1,200 | 0.50 | 0.50 | 0.50 |"
