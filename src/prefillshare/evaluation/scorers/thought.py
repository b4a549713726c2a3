"""The thought with which models that reason begin an answer: `<think>...</think>`, possibly an empty one."""

_OPEN, _CLOSE = "<think>", "</think>"


def after_thought(text: str) -> str | None:
    """What is said behind a thought at the very beginning; all of a text without one, None if the thought never ends.

    Chat templates such as Qwen3's put an empty thought before the last answer of every row without reasoning, so that
    a model trained on such rows begins with one, and a server without a reasoning parser hands it on.
    """
    if not text.lstrip().startswith(_OPEN):
        return text
    _, closed, said = text.partition(_CLOSE)
    return said if closed else None
