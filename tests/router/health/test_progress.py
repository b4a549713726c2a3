from prefillshare.router.health.progress import read_progress


def metrics(running: int = 0, waiting: int = 0, steps: int = 0, cpu: float = 0.0) -> str:
    return f"""# HELP vllm:num_requests_running Number of requests
vllm:num_requests_running{{engine="0",model_name="base"}} {running:.1f}
vllm:num_requests_waiting{{engine="0",model_name="base"}} {waiting:.1f}
vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} 7.0
vllm:iteration_tokens_total_count{{engine="0",model_name="base"}} {steps}
process_cpu_seconds_total {cpu}
"""


def test_what_the_engine_does_is_progress_and_what_its_server_does_is_not() -> None:
    assert read_progress(metrics(steps=1, cpu=1)) == read_progress(metrics(steps=1, cpu=2))
    assert read_progress(metrics(steps=1)) != read_progress(metrics(steps=2))


def test_an_engine_whose_requests_all_wait_is_blocked() -> None:
    assert read_progress(metrics(waiting=2)).blocked
    assert not read_progress(metrics(running=1, waiting=2)).blocked
    assert not read_progress(metrics()).blocked
    assert not read_progress("").blocked
