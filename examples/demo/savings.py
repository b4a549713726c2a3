"""What a session costs to prefill with and without sharing, and the table that shows it.

The cost without sharing is counted, not measured: every model is taken to have a prefill worker of its own with an
ideal prefix cache, in which a prompt reuses all whole blocks it has in common with the prompts of the same model's
earlier calls. At least one token of a prompt is always computed. Counted in the same way for one cache that
all models share, the cost must be what the base's worker reported; `count_agrees` says whether it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from rich.table import Table

from examples.demo.play import Call


@dataclass(frozen=True, slots=True)
class Savings:
    """Prompt tokens that have to be computed for all calls of a session."""

    shared: int  # as the base's worker reported
    shared_counted: int  # the same, counted
    unshared: int  # counted: a prefix cache for every model
    uncached: int  # counted: no prefix cache at all

    @property
    def count_agrees(self) -> bool:
        return self.shared == self.shared_counted

    @property
    def factor(self) -> float:
        return self.unshared / self.shared


def count_savings(calls: Sequence[Call], *, block_size: int) -> Savings:
    prompts = [(call.model, call.prompt_token_ids) for call in calls]
    return Savings(
        shared=sum(call.computed_tokens for call in calls),
        shared_counted=sum(computed_tokens([("base", ids) for _, ids in prompts], block_size)),
        unshared=sum(computed_tokens(prompts, block_size)),
        uncached=sum(call.prompt_tokens for call in calls),
    )


def computed_tokens(prompts: Sequence[tuple[str, Sequence[int]]], block_size: int) -> list[int]:
    """For each (model, prompt) the tokens its prefill computes, given the earlier prompts of the same model."""
    computed = []
    for index, (model, prompt) in enumerate(prompts):
        common = [_common_prefix(prompt, earlier) for other, earlier in prompts[:index] if other == model]
        reusable = min(max(common, default=0), len(prompt) - 1)
        computed.append(len(prompt) - reusable // block_size * block_size)
    return computed


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def calls_table(calls: Sequence[Call]) -> Table:
    """One row a call, in the order they were made, and their sums."""
    table = Table(title="The session, call by call", title_justify="left", show_footer=True)
    tokens = [
        ("prompt\ntokens", [call.prompt_tokens for call in calls]),
        ("base\ncomputed", [call.computed_tokens for call in calls]),
        ("reused", [call.reused_tokens for call in calls]),
        ("paid by\nanother", [call.reused_from_others_tokens for call in calls]),
    ]
    table.add_column("call", footer="all", justify="right")
    table.add_column("model")
    for heading, values in tokens:
        table.add_column(heading, footer=f"{sum(values):,}", justify="right")
    table.add_column("handoff\nMB", footer=f"{sum(call.handoff_bytes for call in calls) / 1e6:.1f}", justify="right")
    table.add_column("handoff\nms", footer=f"{sum(call.handoff_ms for call in calls):.1f}", justify="right")
    table.add_column("first\ntoken ms", justify="right")
    table.add_column("answer", footer=f"{sum(call.correct for call in calls)}/{len(calls)}")
    for number, call in enumerate(calls, 1):
        table.add_row(
            str(number),
            call.model,
            *(f"{values[number - 1]:,}" for _, values in tokens),
            f"{call.handoff_bytes / 1e6:.1f}",
            f"{call.handoff_ms:.1f}",
            f"{call.first_token_ms:,.0f}",
            "[green]right[/]" if call.correct else "[red]wrong[/]",
        )
    return table


def savings_table(savings: Savings) -> Table:
    """The session's prefill with sharing against what it would be without."""
    table = Table("prompt tokens to compute", "tokens", "", title="What sharing saved", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("one shared prefill", f"{savings.shared:,}", "measured: the base's worker reported it")
    table.add_row(
        "without sharing", f"{savings.unshared:,}", "counted: every model prefills, with its own prefix cache"
    )
    table.add_row("without any cache", f"{savings.uncached:,}", "counted: every prompt in full")
    table.add_row(
        "[bold]saved by sharing[/]", f"[bold]{savings.factor:.2f}x[/]", "without sharing / one shared prefill"
    )
    return table


def shortcomings(calls: Sequence[Call], savings: Savings, in_transformers: Mapping[int, str]) -> list[str]:
    """What a demonstration must not show, and what it would mean; empty when the counts agree and nothing was served
    other than Transformers has it.

    `in_transformers` has the reference's answer to every call that was answered wrong (see blame.py).
    """
    found = []
    for number, text in in_transformers.items():
        if calls[number - 1].answer != text:
            found.append(
                f"call {number}: {calls[number - 1].model} answered {calls[number - 1].answer!r}, in Transformers, in "
                f"float32, it answers {text!r}: it was served other KV than it was trained on, or, in bfloat16, two "
                "tokens were nearly as probable"
            )
    if not savings.count_agrees:
        found.append(
            f"the base's worker computed {savings.shared:,} prompt tokens, by counting it should have been "
            f"{savings.shared_counted:,}: its cache gave up blocks, or others called it meanwhile; what sharing saved "
            "is not what the table says"
        )
    return found


def own_mistakes(calls: Sequence[Call], in_transformers: Mapping[int, str]) -> str | None:
    """What there is to say of wrong answers that the modules give in Transformers, too; None without one."""
    own = [number for number, text in in_transformers.items() if calls[number - 1].answer == text]
    if not own:
        return None
    return (
        f"{len(own)} of {len(calls)} answers were wrong (call {', '.join(map(str, own))}), as they are in "
        "Transformers: a minute's training was not enough for them, serving did not change them"
    )


def as_json(calls: Sequence[Call], savings: Savings, in_transformers: Mapping[int, str]) -> dict[str, Any]:
    rows = []
    for number, call in enumerate(calls, 1):
        row = asdict(call)
        del row["prompt_token_ids"]
        rows.append(row | {"correct": call.correct, "in_transformers": in_transformers.get(number)})
    return {
        "calls": rows,
        "prefill_tokens": {
            "shared_measured": savings.shared,
            "unshared_counted": savings.unshared,
            "uncached_counted": savings.uncached,
            "count_agrees_with_measurement": savings.count_agrees,
            "how_counted": __doc__,
        },
    }
