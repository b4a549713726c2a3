"""What `prefillshare plan` answers: the need of each system beside the others'."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from prefillshare.errors import UserError
from prefillshare.simulate.bounds import Demand
from prefillshare.simulate.cost import WorkerProfile
from prefillshare.simulate.goals import Goal, GoalMissed, Missed
from prefillshare.simulate.hardware import worker_profile
from prefillshare.simulate.layout import SystemName
from prefillshare.simulate.models import MODELS, model_of
from prefillshare.simulate.plan import Need, plan
from prefillshare.simulate.workload import has_texts, model_names, rough_tokenise, shapes_of
from prefillshare.workloads.alike import shared_by_some
from prefillshare.workloads.family import family_names
from prefillshare.workloads.sources import open_workload
from prefillshare.workloads.tokens import load_tokenise

_WORTH_A_WORD = 0.01
_ONE_ACCELERATOR = "A worker is one accelerator: no model is split over several (no tensor parallelism)."
_ESTIMATED = (
    "Tokens of the workload's texts are estimated, not counted, and may be off by a third, in some languages by more: "
    "with --base CHECKPOINT they are counted by its tokenizer."
)
_GOALS = {"ttft": "TTFT", "tpot": "TPOT", "kept_up": "load"}
_FIGURES = (
    *("prefill workers", "decode workers", "workers in all", "TTFT p95, s", "TPOT p95, ms"),
    *("hit ratio", "prompt tokens computed/s", "prefill busy", "decode busy", "kept up"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    asked: Mapping[str, Any]
    needs: Mapping[SystemName, Need | Missed]
    shared_by_some: float = 0.0  # of what sessions begin with; not simulated
    uncalled: int = 0  # models that no session calls
    tokens_estimated: bool = False  # of recorded texts, without a tokenizer

    def as_dict(self) -> dict[str, Any]:
        needs = {system: need.as_dict() for system, need in self.needs.items()}
        return {
            "asked": dict(self.asked),
            "systems": needs,
            "saved": self.saved(),
            "shared_by_some": self.shared_by_some,
            "uncalled_models": self.uncalled,
            "tokens_estimated": self.tokens_estimated,
            "accelerators_per_worker": 1,
        }

    def saved(self) -> dict[str, dict[str, float]]:
        """By each other system: the share of its workers that sharing does without, and its computed tokens to ours."""
        ours = self.needs["shared"]
        if isinstance(ours, Missed):
            return {}
        return {
            system: {
                "workers": 1 - ours.workers / need.workers,
                "computed_tokens_ratio": need.computed_tokens_per_s / ours.computed_tokens_per_s,
            }
            for system, need in self.needs.items()
            if system != "shared" and isinstance(need, Need)
        }

    def as_table(self) -> Table:
        """A column for each system, so that it fits into a narrow terminal."""
        columns = [column for system, need in self.needs.items() for column in _columns(system, need)]
        table = Table("")
        for title, _ in columns:
            table.add_column(title, justify="right", overflow="fold")
        for number, name in enumerate(_FIGURES):
            table.add_row(name, *(cells[number] for _, cells in columns))
        return table

    def in_words(self) -> str:
        lines = [need.in_words() for need in self.needs.values() if isinstance(need, Missed)]
        for system, saved in self.saved().items():
            share, ratio = saved["workers"], saved["computed_tokens_ratio"]
            change = f"{share:.0%} fewer workers" if share >= 0 else f"{-share:.0%} more workers"
            lines.append(f"Sharing needs {change} than {system}, which computes {ratio:.1f} times the prompt tokens.")
        cells = {need.cells for need in self.needs.values() if isinstance(need, Need)}
        if max(cells, default=1) > 1:
            lines.append(
                f"Planned as {' or '.join(map(str, sorted(cells)))} equal cells, each with a router of its own."
            )
        if self.uncalled:
            lines.append(
                f"No session calls {self.uncalled} of the {self.asked['models']} models. They have workers of their "
                "own all the same: for what the load needs, plan without them."
            )
        if self.shared_by_some >= _WORTH_A_WORD:
            lines.append(
                f"{self.shared_by_some:.0%} of what sessions begin with, other sessions begin with too, but not all of "
                "them. That is not simulated: less would be computed, by every system."
            )
        if self.tokens_estimated:
            lines.append(_ESTIMATED)
        return "\n".join((*lines, _ONE_ACCELERATOR))


def answer(
    *,
    source: str,
    rate: float,
    model: str,
    hardware: str,
    models: int,
    ttft_s: float,
    tpot_s: float,
    link: str = "network",
    lora: bool = False,
    sessions: int = 200,
    base: Path | None = None,
    seed: int = 0,
) -> Answer:
    """
    Args:
        model: what `model_of` takes. The tokenizer of a checkpoint counts the tokens of texts, unless that of `base`
            does.
        hardware: what `accelerator_of` takes.

    Raises:
        UserError: what cannot be planned for, by the option that says it; goals that every system misses.
    """
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in locals().items()}
    for field, number in (("models", models), ("sessions", sessions)):
        if number < 1:
            raise UserError(f"{field}: at least 1, found {number}")
    profile, goal = worker_profile(hardware, model, link=link), Goal(ttft_s, tpot_s)
    names = model_names(models)
    # A family has nothing to count, and not every tokenizer can make texts of its lengths.
    counts = base or (None if source in family_names() else _with_tokenizer(model))
    try:
        tokenise = rough_tokenise if counts is None else load_tokenise(counts)
        workload = open_workload(source, tokenise, sessions=sessions, seed=seed)
    except UserError:
        if base is not None or counts is None:
            raise
        counts = None  # nobody asked for the model's own tokenizer: if it is to blame, it is done without
        workload = open_workload(source, rough_tokenise, sessions=sessions, seed=seed)
    demand = Demand(shapes_of(workload, names), names, rate, workload.preamble_tokens)
    _check_fits(model, hardware, source, demand, profile)
    needs: dict[SystemName, Need | Missed] = {}
    for system in get_args(SystemName):
        try:
            needs[system] = plan(demand, profile, goal, system, decode_pools=1 if lora else None, seed=seed)
        except GoalMissed as error:
            needs[system] = error.missed
    missed = [need.in_words() for need in needs.values() if isinstance(need, Missed)]
    if len(missed) == len(needs):
        raise UserError("\n".join(("no system meets the goals; allow more time, or choose other hardware:", *missed)))
    called = {call.model for shape in demand.shapes for call in shape}
    estimated = counts is None and source not in family_names() and has_texts(workload)
    return Answer(asked, needs, shared_by_some(workload), len(names) - len(called), estimated)


def _with_tokenizer(model: str) -> Path | None:
    """The model's folder, if it is a checkpoint's and has a tokenizer.json."""
    folder = Path(model).expanduser()
    return folder if model not in MODELS and (folder / "tokenizer.json").is_file() else None


def _check_fits(model: str, hardware: str, source: str, demand: Demand, profile: WorkerProfile) -> None:
    longest = max(call.prompt + call.output for shape in demand.shapes for call in shape)
    positions, room = model_of(model).positions, profile.kv_tokens // profile.block_size * profile.block_size
    most = min(positions, room)
    if longest <= most:
        return
    if positions <= room:
        why, way_out = f"takes {most:,} tokens", ""
    else:
        why = f"leaves memory for the KV of {most:,} tokens on one {hardware}, and a worker is one accelerator"
        way_out = ", or choose hardware with more memory"
    raise UserError(
        f"model: {model} {why}, and a prompt of {source!r} has {longest:,} with its output; have its sessions end "
        f"earlier with `prefillshare bench workload --context {most}`, and plan for that file with the same "
        f"--base{way_out}"
    )


def _columns(system: SystemName, need: Need | Missed) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Title and `_FIGURES` of a system. One that misses goals has what it reaches at best, for steps of each size."""
    if isinstance(need, Need):
        yield (
            system,
            (
                _pools(need.prefill_workers),
                _pools(need.decode_workers),
                str(need.workers),
                f"{need.ttft_p95_s:.2f}",
                f"{need.tpot_p95_s * 1000:.1f}",
                f"{need.hit_ratio:.3f}",
                f"{need.computed_tokens_per_s:,.0f}",
                f"{need.prefill_busy:.0%}" if need.prefill_workers else "-",
                f"{need.decode_busy:.0%}",
                f"{need.kept_up:.2f}",
            ),
        )
        return
    for reached in need.at_best:
        goals = " and ".join(_GOALS[name] for name, _, _ in need.goal.missed(reached))
        # Only the sizes of steps tell the columns of one system apart.
        steps = f", steps of {reached.max_num_batched_tokens:,}" if len(need.at_best) > 1 else ""
        kept_up = "-" if reached.kept_up is None else f"{reached.kept_up:.2f}"
        ttft, tpot = f"{reached.ttft_p95_s:.3f}", f"{reached.tpot_p95_s * 1000:.2f}"
        yield system + steps, ("-", "-", f"misses {goals}", ttft, tpot, *["-"] * 4, kept_up)


def _pools(workers: tuple[int, ...]) -> str:
    """The sum, and what it is made of."""
    if len(workers) < 2:
        return str(sum(workers))
    return f"{sum(workers)} ({' + '.join(map(str, workers))})"
