from prefillshare.workloads.conversation import Conversation
from prefillshare.workloads.session import Turn

PLAN = Turn("planner", "Question: why", 3, "look", 4, 0.0, "You plan.")
ACT = Turn("actor", "", 0, "Search", 5, 0.0, "You act.")
SEE = Turn("planner", "it is so", 3, "so", 6, 0.0, "You plan.")
AGAIN = Turn("planner", "Question: why, again", 3, "look", 4, 0.0, "You plan.", restarts=True)


def texts(body: dict) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in body["messages"]]


def test_context_grows_and_instructions_stand_behind_it() -> None:
    conversation = Conversation("Examples.")
    assert texts(conversation.request(PLAN, "m")) == [("user", "Examples.\n\nQuestion: why\n\nYou plan.")]
    conversation.answered(PLAN, "anything")
    context = [("user", "Examples.\n\nQuestion: why"), ("assistant", "look")]
    assert texts(conversation.request(ACT, "m")) == [*context, ("user", "You act.")]
    conversation.answered(ACT, "anything")
    context += [("assistant", "Search")]
    assert texts(conversation.request(SEE, "m")) == [*context, ("user", "it is so\n\nYou plan.")]
    conversation.answered(SEE, "")
    assert texts(conversation.request(AGAIN, "m")) == [("user", "Examples.\n\nQuestion: why, again\n\nYou plan.")]


def test_what_begins_with_white_space_goes_on_from_the_preamble() -> None:
    going_on = Turn("planner", "\nQuestion: why", 3, "look", 4, 0.0, "")
    assert texts(Conversation("Examples.").request(going_on, "m")) == [("user", "Examples.\nQuestion: why")]
    assert texts(Conversation("Examples.").request(Turn("planner", "", 0, "look", 4, 0.0, ""), "m")) == [
        ("user", "Examples.")
    ]


def test_replay_makes_every_model_put_out_as_many_tokens() -> None:
    body = Conversation("").request(PLAN, "sql")
    assert (body["model"], body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == ("sql", 4, 4, True)
    assert body["temperature"] == 0
    assert body["stream_options"] == {"include_usage": True}


def test_live_outputs_join_the_context_and_end_by_themselves() -> None:
    conversation = Conversation("", "live")
    body = conversation.request(PLAN, "m")
    assert body["max_tokens"] == 8
    assert "ignore_eos" not in body
    assert "min_tokens" not in body
    conversation.answered(PLAN, "what the model said")
    assert texts(conversation.request(ACT, "m"))[1] == ("assistant", "what the model said")


def test_a_request_is_not_changed_by_what_comes_later() -> None:
    conversation = Conversation("")
    body = conversation.request(PLAN, "m")
    before = texts(body)
    conversation.answered(PLAN, "")
    conversation.request(SEE, "m")
    assert texts(body) == before
