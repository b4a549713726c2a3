"""How fast a run's work can be done at best: at the measured costs, with every token computed once and nobody waiting.

Five limits that no system on the same cores can go below: prompts (every token that no earlier prompt of its session
holds is computed once), answers (all calls that the load can have under way at once form one batch, whichever model
they call), bytes (the KV of every new token is handed over once), the session that takes longest when nobody else is
there, and, in a closed loop, as many at a time as it lets in. Ordinary vLLMs hand nothing over, have all cores for both
prompts and answers, and serve a call in one leg, whose first token comes out of the prompt's last step; elsewhere a
decode worker computes that one too. One on all cores at once is at best that many times as fast as on a single one.

Steps are those of models without adapters: what adapters add to them is a choice of one system, and no limit of the
cores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefillshare.bench.systems import ORDINARY, Machine, calls_at_a_time
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.workloads.arrivals import Closed, parse_arrivals


@dataclass(frozen=True, slots=True)
class Bound:
    """In seconds, for a whole run."""

    prefill_s: float
    decode_s: float
    handoff_s: float
    session_s: float
    turns_s: float

    @property
    def limit(self) -> str:
        limits = {
            "prompts": self.prefill_s,
            "answers": self.decode_s,
            "bytes": self.handoff_s,
            "the longest session": self.session_s,
            "sessions in turn": self.turns_s,
        }
        return max(limits, key=lambda name: limits[name])

    @property
    def seconds(self) -> float:
        return max(self.prefill_s, self.decode_s, self.handoff_s, self.session_s, self.turns_s)


def bound(
    facts: Mapping[str, Any],
    calls: Sequence[Mapping[str, Any]],
    think_s: Mapping[str, float],
    profile: WorkerProfile,
) -> Bound | None:
    """Of the calls that were answered; None for runs whose records do not say which tokens of a prompt were new.

    `think_s` are seconds between a session's calls, where they are known. The preamble that all prompts begin with is
    left out: it is computed once in a run.
    """
    if not calls or any("new_tokens" not in call for call in calls):
        return None
    cost, system, machine = profile.cost, facts["system"], Machine.model_validate(facts["machine"])
    engine_cores = len(machine.cores) if system == "colocated-lora" else 1
    prefill = [
        cost.token_s * call["new_tokens"] + cost.pair_s * _pairs(call["prompt_tokens"], call["new_tokens"])
        for call in calls
    ]
    at_once = _at_once(facts["load"], calls_at_a_time(system, machine))
    legs, with_prompt = (1, 1) if system in ORDINARY else (2, 0)  # the latter: tokens without a decode step
    sessions: dict[str, float] = {}
    decode_s = 0.0
    for call, prefill_s in zip(calls, prefill, strict=True):
        read, steps = call["prompt_tokens"] + call["output_tokens"] / 2, call["output_tokens"] - with_prompt
        decode_s += steps * cost.step(0, 0.0, at_once, at_once * read) / at_once
        computed_s = prefill_s + steps * cost.step(0, 0.0, 1, read)
        alone = legs * profile.leg_s + computed_s / engine_cores
        name = call["session"]
        sessions[name] = sessions.get(name, max(0.0, think_s.get(name, 0.0))) + alone
    prefill_s, session_s = sum(prefill), max(sessions.values())
    arrivals = parse_arrivals(facts["load"])
    turns_s = sum(sessions.values()) / arrivals.concurrent if isinstance(arrivals, Closed) else 0.0
    both_s = (prefill_s + decode_s) / len(machine.cores)
    if system in ORDINARY:
        return Bound(both_s, both_s, 0.0, session_s, turns_s)
    moved = sum(call["new_tokens"] for call in calls) * profile.kv_bytes_per_token
    handoff_s = moved / profile.link.bytes_per_s
    prefill_s, decode_s = prefill_s / len(machine.prefill_cores), decode_s / len(machine.decode_cores)
    if set(machine.prefill_cores) & set(machine.decode_cores):  # what one kind of worker takes, the other has not
        prefill_s, decode_s = max(prefill_s, both_s), max(decode_s, both_s)
    return Bound(prefill_s, decode_s, handoff_s, session_s, turns_s)


def _pairs(prompt: int, new: int) -> float:
    """Pairs of a new token with one that it attends to."""
    return new * (prompt - new + (new + 1) / 2)


def _at_once(load: str, most: int) -> int:
    arrivals = parse_arrivals(load)
    return min(arrivals.concurrent, most) if isinstance(arrivals, Closed) else most
