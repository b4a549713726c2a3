import json

from experiments.hostile.honest import streamed


def event(content: str | None) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": content}}]}) + "\n\n"


def test_a_streams_text_is_put_together_and_a_bad_end_shows() -> None:
    body = event(None) + event("sup") + event("per")
    assert streamed(body + "data: [DONE]\n\n") == "supper"
    assert streamed(body) != "supper"
    broken = streamed(body + 'data: {"error": {"code": "x"}}\n\n' + "data: [DONE]\n\n")
    assert "then" in broken
    assert streamed("") == " (then nothing)"
