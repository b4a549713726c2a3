import json
from pathlib import Path
from typing import Any

import pytest

from prefillshare.errors import UserError
from prefillshare.training.conversation import read_examples, render_prompt
from tests.training.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id
USER = {"role": "user", "content": "How many?"}
ANSWER = {"role": "assistant", "content": "Three."}


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("row", [{"prompt": [USER], "completion": [ANSWER]}, {"messages": [USER, ANSWER]}])
def test_conversational_rows_are_what_a_server_sees(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = read_examples(write(tmp_path, row), TOKENIZER)
    text = "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(example.prompt_ids) == text
    assert example.prompt_ids == render_prompt([USER], TOKENIZER)
    # The line break that the template puts behind <|im_end|> is never generated, so it is not trained.
    assert TOKENIZER.decode(example.response_ids) == "Three.<|im_end|>"
    assert example.response_ids[-1] == END


def test_earlier_assistant_turns_belong_to_the_prompt(tmp_path: Path) -> None:
    (example,) = read_examples(write(tmp_path, {"messages": [USER, ANSWER, USER, ANSWER]}), TOKENIZER)
    assert example.prompt_ids == render_prompt([USER, ANSWER, USER], TOKENIZER)
    assert TOKENIZER.decode(example.response_ids) == "Three.<|im_end|>"


def test_plain_text_rows_get_an_end_token(tmp_path: Path) -> None:
    (example,) = read_examples(write(tmp_path, {"prompt": "2 + 1 =", "completion": " 3"}), TOKENIZER)
    assert TOKENIZER.decode(example.prompt_ids) == "2 + 1 ="
    assert TOKENIZER.decode(example.response_ids) == " 3<|im_end|>"


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    file = write(tmp_path, {"messages": [USER, ANSWER]})
    file.write_text("\n" + file.read_text() + "\n")
    assert len(read_examples(file, TOKENIZER)) == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "x"}, "field 'prompt': missing; .*found 'text'"),
        ({"prompt": [USER]}, "field 'completion': missing"),
        ({"prompt": "x"}, "field 'completion': expected text"),
        ({"prompt": "", "completion": "x"}, "field 'prompt': the prompt is empty"),
        ({"prompt": "x", "completion": " "}, "field 'completion': the response is empty"),
        ({"prompt": [USER], "completion": [USER]}, "field 'completion': .*found role 'user'"),
        ({"prompt": [USER], "completion": [ANSWER, USER]}, "field 'completion': .*found 2 messages"),
        ({"messages": [USER]}, "field 'messages': only one message"),
        ({"messages": [USER, USER]}, "field 'messages': the last message must be the assistant's"),
        ({"messages": [USER, {"role": "assistant", "content": "\n"}]}, "field 'messages': the response is empty"),
        ({"messages": [USER, {"role": "assistant"}]}, "field 'messages': a message needs"),
        ({"messages": "hello"}, "field 'messages': expected a list"),
        ([1], "expected an object, found list"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    file = write(tmp_path, {"messages": [USER, ANSWER]}, row)
    with pytest.raises(UserError, match=f"rows.jsonl, line 2.*{problem}"):
        read_examples(file, TOKENIZER)


def test_broken_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for content, problem in ((b"{\n", "line 1: not JSON"), (b"\xff\n", "line 1: not UTF-8"), (b"\n", "no rows")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=problem):
            read_examples(file, TOKENIZER)
    with pytest.raises(UserError, match="cannot read it"):
        read_examples(tmp_path / "absent.jsonl", TOKENIZER)


def test_rows_longer_than_the_limit_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, {"prompt": "abcd", "completion": "ef"})
    assert len(read_examples(file, TOKENIZER, max_length=7)) == 1
    with pytest.raises(UserError, match="line 1: the row has 7 tokens but max_length is 6"):
        read_examples(file, TOKENIZER, max_length=6)


def test_a_response_that_merges_with_the_prompts_last_token_is_refused(tmp_path: Path) -> None:
    """'a' + 'b' is one token 'ab' here, so the server would see another last prompt token than training."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["ab"])
    with pytest.raises(UserError, match="do not tokenise separately"):
        read_examples(write(tmp_path, {"prompt": "a", "completion": "b"}), tokenizer)


def test_a_template_whose_response_does_not_follow_the_generation_prompt_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_start|>assistant\n'", "'<think>'")
    with pytest.raises(UserError, match="do not tokenise separately"):
        read_examples(write(tmp_path, {"messages": [USER, ANSWER]}), tokenizer)
