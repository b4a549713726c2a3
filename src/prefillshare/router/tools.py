"""Which modules may be asked to call tools."""

from prefillshare.router.call import Call
from prefillshare.router.errors import bad_request
from prefillshare.router.route import ModelRoute


def check_tools(call: Call, route: ModelRoute) -> None:
    """Refuses tools that nobody would find in the answer.

    Without a parser vLLM 0.32 refuses every `tool_choice` but "none"; for null it returns the call as plain text.

    Raises:
        RouterError: 400, with the field of the deployment file that is missing.
    """
    if call.endpoint != "chat/completions" or route.tool_call_parser or not call.body.get("tools"):
        return
    if call.body.get("tool_choice", "auto") != "none":
        raise bad_request(
            f"`tools`: the model {call.model!r} has no `tool_call_parser` in the deployment file, without which no "
            'tool call is found in its answers. With `tool_choice: "none"` it reads the tools and answers in text.',
            "tools",
            "no_tool_call_parser",
        )
