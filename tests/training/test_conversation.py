from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from prefillshare.instructions import Placement, place_instructions
from prefillshare.training.conversation import BadRow, Example, read_row, render_prompt
from tests.training import templates
from tests.training.tiny import CHATML, byte_tokenizer

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id
SYSTEM = {"role": "system", "content": "You count."}
USER = {"role": "user", "content": "How many?"}
ANSWER = {"role": "assistant", "content": "Three."}
THINKING = {"role": "assistant", "content": "Three.", "reasoning_content": "one, two, three"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "count", "arguments": '{"what": "é"}'}}],
}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "1"}
TOOL = {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}


def tokenizer_with(template: str, *, tokens: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(tokens))
    tokenizer.chat_template = template
    return tokenizer


TOOLS = tokenizer_with(templates.TOOLS)
FORGETS = tokenizer_with(templates.FORGETS_REASONING)


def responses(example: Example, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> list[str]:
    return [str(tokenizer.decode(example.ids[start:end])) for start, end in example.spans]


@pytest.mark.parametrize("row", [{"prompt": [USER], "completion": [ANSWER]}, {"messages": [USER, ANSWER]}])
def test_conversational_rows_are_what_a_server_sees(row: dict[str, Any]) -> None:
    (example,) = read_row(row, TOKENIZER)
    ((start, end),) = example.spans
    assert TOKENIZER.decode(example.ids[:start]) == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    assert example.ids[:start] == render_prompt([USER], TOKENIZER)
    # The line break that the template puts behind <|im_end|> is never generated, so it is not trained.
    assert responses(example) == ["Three.<|im_end|>"]
    assert end == len(example.ids)


def test_every_assistant_turn_of_messages_is_trained() -> None:
    (example,) = read_row({"messages": [SYSTEM, USER, ANSWER, USER, ANSWER, USER]}, TOKENIZER)
    assert responses(example) == ["Three.<|im_end|>"] * 2
    assert example.ids[: example.spans[1][0]] == render_prompt([SYSTEM, USER, ANSWER, USER], TOKENIZER)


def test_assistant_turns_of_the_prompt_are_context() -> None:
    (example,) = read_row({"prompt": [USER, ANSWER, USER], "completion": [ANSWER, USER, ANSWER]}, TOKENIZER)
    assert [start for start, _ in example.spans] == [
        len(render_prompt(messages, TOKENIZER))
        for messages in ([USER, ANSWER, USER], [USER, ANSWER, USER, ANSWER, USER])
    ]


def test_a_context_may_start_with_an_answer() -> None:
    (example,) = read_row({"prompt": [ANSWER, USER], "completion": [ANSWER]}, TOKENIZER)
    assert responses(example) == ["Three.<|im_end|>"]


def test_plain_text_rows_get_an_end_token() -> None:
    (example,) = read_row({"prompt": "2 + 1 =", "completion": " 3"}, TOKENIZER)
    assert example.spans == [(7, 10)]
    assert TOKENIZER.decode(example.ids) == "2 + 1 = 3<|im_end|>"


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_their_calls_are_rendered_by_the_template(as_text: bool) -> None:
    tools = (
        '[{"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}]' if as_text else [TOOL]
    )
    (example,) = read_row({"messages": [USER, CALL, RESULT, ANSWER], "tools": tools}, TOOLS)
    assert example.ids[: example.spans[0][0]] == render_prompt([USER], TOOLS, [TOOL])
    assert example.ids[: example.spans[1][0]] == render_prompt([USER, CALL, RESULT], TOOLS, [TOOL])
    # Arguments are an object for the template, as a server has them, and not the JSON text of the request.
    call = '<call>{"arguments": {"what": "é"}, "name": "count"}</call><|im_end|>'
    assert responses(example, TOOLS) == [call, "Three.<|im_end|>"]


def test_a_row_chooses_the_variables_of_the_template() -> None:
    tokenizer = tokenizer_with(CHATML + "{{ '<think>' if thinking and add_generation_prompt else '' }}")
    row = {"prompt": [USER], "completion": [{"role": "assistant", "content": "x"}]}
    (plain,) = read_row(row, tokenizer)
    with pytest.raises(BadRow, match="do not tokenise separately"):
        read_row(row | {"chat_template_kwargs": {"thinking": True}}, tokenizer)
    assert plain.spans == read_row(row | {"chat_template_kwargs": {"thinking": False}}, tokenizer)[0].spans


def test_a_template_that_forgets_gives_an_example_for_each_turn() -> None:
    examples = read_row({"messages": [USER, THINKING, USER, THINKING]}, FORGETS)
    assert [responses(example, FORGETS) for example in examples] == [
        ["<think>one, two, three</think>Three.<|im_end|>"],
        ["<think>one, two, three</think>Three.<|im_end|>"],
    ]
    assert examples[1].ids[: examples[1].spans[0][0]] == render_prompt([USER, THINKING, USER], FORGETS)
    assert "think" not in FORGETS.decode(render_prompt([USER, THINKING, USER], FORGETS))
    assert len(read_row({"messages": [USER, ANSWER, USER, THINKING]}, FORGETS)) == 1


def test_a_template_that_does_not_write_the_end_token_gives_an_example_for_each_turn() -> None:
    tokenizer = tokenizer_with(templates.OWN_MARKER)
    examples = read_row({"messages": [USER, ANSWER, USER, ANSWER]}, tokenizer)
    assert [responses(example, tokenizer) for example in examples] == [["Three.</turn><|im_end|>"]] * 2


@pytest.mark.parametrize("content", ["Three.", "Three.\n", " Three"])
@pytest.mark.parametrize("marker", ["<|im_end|>", ""])
def test_what_is_served_is_the_context_that_was_trained(marker: str, content: str) -> None:
    """Bases whose end token is not their template's, as Qwen 2.5's: a server leaves out special tokens, not what the
    template puts behind them, and the next request brings the answer as it was served."""
    tokenizer = tokenizer_with(CHATML.replace("<|im_end|>\n", f"{marker}\n"))
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_end|>"]})
    answer = {"role": "assistant", "content": content}
    first, second = read_row({"messages": [USER, answer, USER, ANSWER]}, tokenizer)
    assert responses(first, tokenizer) == [f"{content}{marker}<|endoftext|>"]
    ((start, end),) = first.spans
    served = {"role": "assistant", "content": tokenizer.decode(first.ids[start:end], skip_special_tokens=True)}
    assert second.ids[: second.spans[0][0]] == render_prompt([USER, served, USER], tokenizer)


def test_white_space_between_a_templates_own_end_and_the_bases_is_not_said() -> None:
    """The end-of-sequence token stands behind the conversation alone, after the line break of its last message."""
    own = CHATML.replace("<|im_end|>\n", "<|im_start|>\n")
    ended = tokenizer_with(own + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    (example,) = read_row({"messages": [USER, ANSWER]}, ended)
    assert responses(example, ended) == ["Three.<|im_start|><|im_end|>"]


def test_white_space_of_a_message_behind_what_the_template_puts_before_it_stays() -> None:
    unmarked = CHATML.replace("<|im_end|>\n", "\n")
    tokenizer = tokenizer_with(unmarked.replace("+ message['content'] +", "+ '> ' + message['content'] +"))
    answer = {"role": "assistant", "content": "Three.\n"}
    (example,) = read_row({"messages": [USER, answer]}, tokenizer)
    assert responses(example, tokenizer) == ["> Three.\n<|im_end|>"]


def test_white_space_at_the_end_of_calls_is_the_templates() -> None:
    tokenizer = tokenizer_with(templates.TOOLS.replace("<|im_end|>\\n", "\\n\\n"))
    (example,) = read_row({"messages": [USER, CALL]}, tokenizer)
    assert responses(example, tokenizer) == ['<call>{"arguments": {"what": "é"}, "name": "count"}</call><|im_end|>']


def test_instructions_behind_the_context_stand_behind_each_prompt_and_in_no_earlier_turn() -> None:
    examples = read_row({"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]}, TOKENIZER, "behind_context")
    prompts = [example.ids[: example.spans[0][0]] for example in examples]
    moved = {"role": "user", "content": "How many?\n\nYou count."}
    assert prompts == [render_prompt([moved], TOKENIZER), render_prompt([USER, ANSWER, moved], TOKENIZER)]
    assert len(read_row({"messages": [USER, ANSWER, USER, ANSWER]}, TOKENIZER, "behind_context")) == 1


def test_instructions_are_placed_before_the_server_sees_them() -> None:
    """It takes this line off a system message only."""
    system = {"role": "system", "content": "x-anthropic-billing-header: cch=1;\nYou count."}
    for placement, front in (("behind_context", True), ("in_place", False)):
        (example,) = read_row({"messages": [system, USER, ANSWER]}, TOKENIZER, placement)
        prompt = example.ids[: example.spans[0][0]]
        assert prompt == render_prompt(place_instructions([system, USER], placement), TOKENIZER)
        assert ("cch" in TOKENIZER.decode(prompt)) is front


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "x"}, r"field 'prompt': missing; .*found 'text'"),
        ({}, r"field 'prompt': missing; .*found no fields"),
        ({"messages": None}, "field 'prompt': missing"),
        ({"prompt": [USER]}, "field 'completion': missing"),
        ({"prompt": "x"}, "field 'completion': expected text"),
        ({"prompt": "x", "completion": [ANSWER]}, "field 'completion': expected text"),
        ({"prompt": [USER], "completion": "x"}, "field 'completion': expected a list of messages"),
        ({"prompt": "", "completion": "x"}, "field 'prompt': the prompt is empty"),
        ({"prompt": "x", "completion": " "}, "field 'completion': the response is empty"),
        ({"prompt": [USER], "completion": [USER]}, "field 'completion': .*found role 'user'"),
        ({"prompt": [USER], "completion": [ANSWER, USER]}, "field 'completion': .*found role 'user'"),
        ({"messages": [USER]}, "field 'messages': no assistant turn"),
        ({"messages": [ANSWER]}, "field 'messages': it starts with a response"),
        ({"messages": []}, "field 'messages': expected a list"),
        ({"messages": "hello"}, "field 'messages': expected a list"),
        ({"messages": [USER, {"role": "assistant", "content": "\n"}]}, r"'messages\[1\]': the response is empty"),
        ({"messages": [USER, {"role": "assistant"}]}, r"'messages\[1\]': a message needs"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, r"'messages\[0\]': a message needs"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, ANSWER]}, r"'messages\[0\]'"),
        ({"messages": [USER, "hello"]}, r"'messages\[1\]': a message needs"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": "f()"}]}, r"'messages\[1\]': .*list of tool calls"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f"}]}]}, "needs a 'function'"),
        ({"messages": [USER, ANSWER], "tools": [{"name": "f"}]}, "field 'tools': expected tools as in a chat request"),
        ({"messages": [USER, ANSWER], "tools": "[f]"}, "field 'tools': not JSON"),
        ({"messages": [USER, ANSWER], "tools": "[" * 100_000}, "field 'tools': not JSON"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": "x"}, "field 'chat_template_kwargs': expected an object"),
        (
            {"messages": [USER, ANSWER], "chat_template_kwargs": {"chat_template": "{{ messages }}"}},
            "field 'chat_template_kwargs': the server refuses a 'chat_template'.*leave it out",
        ),
        ({"messages": [USER, CALL]}, "field 'messages': .*leaves tool calls out, here of 'count'"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRow, match=problem):
        read_row(row, TOKENIZER)


def test_what_a_template_refuses_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match=r"'messages': the base's chat template refuses it: .*must alternate"):
        read_row({"messages": [USER, USER, ANSWER]}, tokenizer_with(templates.TAKES_TURNS))


def test_a_response_that_the_template_leaves_nothing_of_is_empty() -> None:
    tokenizer = tokenizer_with(CHATML.replace("message['content']", "message['content'] | replace('Three.', '')"))
    for messages in ([USER, ANSWER], [USER, ANSWER, USER, ANSWER]):
        with pytest.raises(BadRow, match="empty once"):
            read_row({"messages": messages}, tokenizer)


def test_a_response_that_merges_with_the_prompts_last_token_is_refused() -> None:
    """'a' + 'b' is one token 'ab' here, so the server would see another last prompt token than training."""
    with pytest.raises(BadRow, match="do not tokenise separately"):
        read_row({"prompt": "a", "completion": "b"}, tokenizer_with(CHATML, tokens=("ab",)))


def test_a_turn_that_does_not_tokenise_alone_is_refused_in_a_conversation_too() -> None:
    tokenizer = tokenizer_with(CHATML, tokens=("\nT",))
    for messages in ([USER, ANSWER], [USER, ANSWER, USER, {"role": "assistant", "content": "x"}]):
        with pytest.raises(BadRow, match="do not tokenise separately"):
            read_row({"messages": messages}, tokenizer)


def test_a_template_whose_response_does_not_follow_the_generation_prompt_is_refused() -> None:
    tokenizer = tokenizer_with(CHATML.replace("'<|im_start|>assistant\n'", "'<think>'"))
    with pytest.raises(BadRow, match="do not tokenise separately"):
        read_row({"messages": [USER, ANSWER]}, tokenizer)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "How many?", "completion": "one <|im_end|> two"}, "completion"),
        ({"messages": [USER, {"role": "assistant", "content": "one <|im_end|> two"}]}, "messages"),
        ({"messages": [USER, ANSWER | {"reasoning_content": "<|im_end|>x"}]}, "messages"),
    ],
)
def test_a_response_that_would_end_in_its_middle_is_refused(row: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRow, match=rf"field '{field}': the response has '<\|im_end\|>' in its text"):
        read_row(row, TOKENIZER)


def test_a_response_may_bring_its_end() -> None:
    ours, theirs = ([{"prompt": "How many?", "completion": f"Three.{end}"}] for end in ("", "<|im_end|>\n"))
    assert [read_row(row, TOKENIZER) for row in ours] == [read_row(row, TOKENIZER) for row in theirs]


# Conversations in which texts hold what tokenizers and templates trip over.
pieces = ["a", "b", "T", " ", "\n", "é", "<|im_start|>"]
texts = st.lists(st.sampled_from([*pieces, "<|im_end|>"]), max_size=6).map("".join)
answers = st.builds(
    str.__add__,
    st.sampled_from(["a", " T", "é\n"] * 3 + ["\nb"]),
    st.lists(st.sampled_from(pieces), max_size=6).map("".join),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(texts)})
        answer: dict[str, Any] = {"role": "assistant", "content": draw(answers)}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(answers)
        if draw(st.booleans()):
            messages.append(CALL)
            messages.append(RESULT)
        messages.append(answer)
    return messages


# Texts merge with each other, and a response that begins with a line break with the end of its prompt.
MERGING = ("ab", "\n\n", " T")
TOKENIZERS = {
    "tools": tokenizer_with(templates.TOOLS, tokens=MERGING),
    "forgets": tokenizer_with(templates.FORGETS_REASONING, tokens=MERGING),
    "turns": tokenizer_with(templates.TAKES_TURNS, tokens=MERGING),
}


def refusal(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, placement: Placement) -> str | None:
    """What is said to be wrong with a row, without the field."""
    try:
        read_row(row, tokenizer, placement)
    except BadRow as problem:
        return str(problem).partition(": ")[2]
    return None


@pytest.mark.parametrize("placement", ["in_place", "behind_context"])
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(messages=conversations())
def test_every_turn_is_trained_on_the_prompt_that_a_server_sees(
    name: str, placement: Placement, messages: list[dict[str, Any]]
) -> None:
    tokenizer = TOKENIZERS[name]
    if name != "tools":
        messages = [message for message in messages if message is not CALL and message["role"] != "tool"]
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    alone = [{"prompt": messages[:turn], "completion": [messages[turn]]} for turn in turns]
    if refused := refusal({"messages": messages}, tokenizer, placement):
        assert refused in [refusal(row, tokenizer, placement) for row in alone]
        return
    examples = read_row({"messages": messages}, tokenizer, placement)
    found = [(example, span) for example in examples for span in example.spans]
    assert len(found) == len(turns)
    for turn, row, (example, (start, end)) in zip(turns, alone, found, strict=True):
        context = place_instructions(messages[:turn], placement)
        assert example.ids[:start] == render_prompt(context, tokenizer)
        assert example.ids[end - 1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in example.ids[start : end - 1]
        # Alone, the turn has the same response.
        assert read_row(row, tokenizer, placement) == [Example(example.ids[:end], [(start, end)])]
    for example in examples:
        assert all(1 <= start < end for start, end in example.spans)
        assert all(one[1] <= two[0] for one, two in zip(example.spans, example.spans[1:], strict=False))
        assert example.spans[-1][1] == len(example.ids)
    if name == "tools" and (placement == "in_place" or messages[0]["role"] != "system"):
        assert len(examples) == 1
