"""What extension would find and waste in recorded agent sessions: the same sessions with it and without, in tokens.

    python -m experiments.extension.replay react:trajectories.jsonl    # or any other source of docs/workloads.md

No worker is needed: prompts are made by the router's own code and cut into tokens by the demo base's tokenizer, and a
cache without end keeps a session's blocks. Every tool takes
long enough, and a session's last turn is extended like the others, since nobody knows that it is the last. Writes
docs/results/extension-replay.json and a table of docs/extension.md.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from examples.demo.prepare_base import prepare_base
from experiments.section import write_section
from prefillshare.instructions import Placement
from prefillshare.router.call import Call
from prefillshare.router.extension.next_prompt import adds_blocks, next_prompt
from prefillshare.router.extension.tally import Tally
from prefillshare.router.legs import prefill_body
from prefillshare.router.placement.chunks import block_hashes, chain_of_tokens
from prefillshare.workloads.conversation import Conversation
from prefillshare.workloads.session import Session, Workload
from prefillshare.workloads.sources import open_workload
from prefillshare.workloads.tokens import Tokenise, load_tokenise

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "extension-replay.json"
PAGE = ROOT / "docs" / "extension.md"
START = "<!-- table: python -m experiments.extension.replay -->"
BLOCK_SIZE = 128
_WORKER = "prefill-0"


@dataclass
class Sums:
    """Tokens, but for the numbers of turns and extensions."""

    placement: Placement
    extends: bool
    turns: int = 0
    answers: int = 0
    computed: int = 0  # while somebody waits
    extensions: int = 0
    ahead: int = 0
    found: int = 0
    wasted: int = 0


def replay(workload: Workload, tokenise: Tokenise, placement: Placement, *, extends: bool) -> Sums:
    """Plays each session alone, every role a model of its own."""
    sums = Sums(placement, extends)

    def waste(_: str, tokens: int) -> None:
        sums.wasted += tokens

    for session in workload.sessions:
        tally = Tally(BLOCK_SIZE, waste)
        cache: set[bytes] = set()
        for call, answer in _turns(workload, session):
            ids = _rendered(prefill_body(call, "base", placement), tokenise)
            cached = _prefill(cache, ids)
            answered = len(tokenise(answer)) + 1
            sums.turns += 1
            sums.answers += answered
            sums.computed += len(ids) - cached
            sums.found += tally.used(_WORKER, chain_of_tokens(ids, BLOCK_SIZE), cached)
            if extends and adds_blocks(call, placement, len(ids), answered, BLOCK_SIZE):
                choice = {"message": {"role": "assistant", "content": answer}}
                ids = _rendered(next_prompt(call, "base", placement, choice) or {}, tokenise)
                sums.extensions += 1
                chain = chain_of_tokens(ids, BLOCK_SIZE)
                sums.ahead += tally.extended(_WORKER, call.model, chain, _prefill(cache, ids))
    sums.wasted = sums.ahead - sums.found  # with the blocks that no turn has come for
    return sums


def _turns(workload: Workload, session: Session) -> Iterator[tuple[Call, str]]:
    conversation = Conversation(workload.preamble)
    for turn in session.turns:
        request = {"model": turn.role, "messages": conversation.prompt(turn)}
        yield Call("", "chat/completions", turn.role, request, False, None), turn.output
        conversation.answered(turn, turn.output)


def _rendered(body: dict, tokenise: Tokenise) -> list[int]:
    ids: list[int] = []
    for message in body["messages"]:
        ids.extend(tokenise(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"))
    if body.get("add_generation_prompt", True):
        ids.extend(tokenise("<|im_start|>assistant\n"))
    return ids


def _prefill(cache: set[bytes], ids: Sequence[int]) -> int:
    """How many of the tokens were in the cache; afterwards all whole blocks are. The last token is always computed."""
    blocks = list(block_hashes(ids, BLOCK_SIZE))
    known = next((index for index, block in enumerate(blocks) if block not in cache), len(blocks))
    cache.update(blocks)
    return min(known, (len(ids) - 1) // BLOCK_SIZE) * BLOCK_SIZE


def table(found: Sequence[Sums]) -> str:
    lines = [
        "| instructions | extension | the base computes in a turn, tokens | turns extended | computed ahead, a turn "
        "| found by a later turn | wasted |",
        "|---|---|---|---|---|---|---|",
    ]
    for sums in found:
        ahead = "| | | | |"
        if sums.extends:
            shares = [f"{100 * part / max(1, sums.ahead):.0f} %" for part in (sums.found, sums.wasted)]
            turns = f"{100 * sums.extensions / sums.turns:.0f} %"
            ahead = f"| {turns} | {sums.ahead / sums.turns:.0f} | {shares[0]} | {shares[1]} |"
        mode = "on" if sums.extends else "off"
        lines.append(f"| `{sums.placement}` | {mode} | {sums.computed / sums.turns:.0f} {ahead}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.extension.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workload", help="where sessions come from, e.g. react:trajectories.jsonl or tool_heavy")
    parser.add_argument("--sessions", type=int, help="how many; drawn ones need it")
    options = parser.parse_args()
    tokenise = load_tokenise(prepare_base(ROOT / "artifacts" / "base"))
    workload = open_workload(options.workload, tokenise, sessions=options.sessions)
    found = [
        replay(workload, tokenise, placement, extends=extends)
        for placement in get_args(Placement)
        for extends in (False, True)
    ]
    about = {
        "sessions": workload.name,
        "number_of_sessions": len(workload.sessions),
        "token": "SmolLM2-135M-Instruct",
        "block_size": BLOCK_SIZE,
    }
    RESULTS.write_text(json.dumps({**about, "replays": [asdict(sums) for sums in found]}, indent=1) + "\n")
    write_section(PAGE, START, table(found))
    print(table(found))


if __name__ == "__main__":
    main()
