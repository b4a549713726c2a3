"""What is run: systems x workloads x loads x numbers of models x repeats."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from prefillshare.bench.systems import SYSTEMS, Machine, SystemName
from prefillshare.errors import UserError
from prefillshare.fields import Count, Section
from prefillshare.workloads.arrivals import Arrivals, Closed, Poisson, Trace, parse_arrivals
from prefillshare.workloads.conversation import STRETCH, Mode
from prefillshare.workloads.session import Workload
from prefillshare.workloads.sources import open_workload
from prefillshare.workloads.tokens import Tokenise
from prefillshare.yaml_files import describe_validation_error, read_yaml

# What a chat template puts around texts, as a share of the context.
_TEMPLATE = 0.05


class WorkloadConfig(Section):
    """`source` as in docs/workloads.md. Sessions end after `max_calls`, if that is given, or at the context's end.

    `loads`, `minutes` and `limit_s` of its own stand in place of the matrix's: what one workload is overloaded by
    leaves another idle, and sessions of one are ten times as long as those of another.
    """

    source: str
    sessions: Count = 12
    max_calls: Count | None = None
    seed: int = 0
    loads: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    limit_s: Annotated[float, Field(gt=0)] | None = None

    @property
    def title(self) -> str:
        """In tables and plots, where runs of one title are compared with each other."""
        kind, colon, file = self.source.partition(":")
        name = f"{kind}:{Path(file).stem}" if colon and "/" not in kind else Path(self.source).stem
        calls = f", {self.max_calls} calls" if self.max_calls else ""
        return name + calls + (f", seed {self.seed}" if self.seed else "")


class Matrix(Section):
    """The file that `prefillshare bench run` reads. A run ends after `limit_s`, whatever is under way by then.

    Systems are started one after the other, or all of one number of models `together`: then they play each load in
    turn, within minutes of each other. There must be memory for all of them.

    With `rounds`, a closed loop plays so many sessions for each that it has at a time, without it one, and with
    `minutes` an open loop as many as arrive in that time, on average or as recorded, if that is more than a workload's
    `sessions`.
    """

    workloads: Annotated[tuple[WorkloadConfig, ...], Field(min_length=1)]
    loads: Annotated[tuple[str, ...], Field(min_length=1)] = ("closed:4",)
    systems: Annotated[tuple[SystemName, ...], Field(min_length=1)] = ("shared", "per-model", "colocated")
    models: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(min_length=1)] = (4,)
    repeats: Count = 3
    together: bool = False
    rounds: Count | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    mode: Mode = "replay"
    limit_s: Annotated[float, Field(gt=0)] = 600.0
    machine: Machine = Machine()

    @model_validator(mode="after")
    def _sessions_arrive_before_the_end(self) -> Self:
        for workload in self.workloads:
            minutes, limit_s = self.minutes_of(workload), self.limit_of(workload)
            if minutes is not None and 60 * minutes >= limit_s:
                raise ValueError(
                    f"minutes={minutes:g} of arrivals do not end before limit_s={limit_s:g}; give fewer, or a higher "
                    "limit_s"
                )
        return self

    @model_validator(mode="after")
    def _no_run_twice(self) -> Self:
        names = Counter(run.name for run in runs(self))
        if twice := [name for name, times in names.items() if times > 1]:
            raise ValueError(
                f"{twice[0]} would be run twice; give each workload, load, system and number of models once"
            )
        return self

    @model_validator(mode="after")
    def _titles_tell_workloads_apart(self) -> Self:
        """Runs of one title and load would be taken for repeats of one cell."""
        shown: dict[str, WorkloadConfig] = {}
        played = set[tuple[str, str]]()
        for workload in self.workloads:
            title = workload.title
            if (other := shown.setdefault(title, workload)).source != workload.source:
                raise ValueError(
                    f"workloads {other.source!r} and {workload.source!r} would both be shown as {title!r}; give the "
                    "files names that differ"
                )
            for load in workload.loads or self.loads:
                if (title, load) in played:
                    raise ValueError(
                        f"workload {workload.source!r} is given twice with load {load!r}, with other `sessions` alone; "
                        "give each of them loads, `max_calls` or a `seed` of its own"
                    )
                played.add((title, load))
        return self

    def limit_of(self, workload: WorkloadConfig) -> float:
        """Seconds after which the workload's runs end."""
        return workload.limit_s or self.limit_s

    def minutes_of(self, workload: WorkloadConfig) -> float | None:
        """How long the sessions of its open loops arrive, at least."""
        return workload.minutes or self.minutes


@dataclass(frozen=True, slots=True)
class Run:
    """One cell of the matrix, once."""

    system: SystemName
    models: int
    workload: WorkloadConfig
    load: str
    repeat: int

    @property
    def name(self) -> str:
        """Names its files; the same for the same cell and repeat."""
        return f"{self.system}-{self._of_any_system}"

    @property
    def salt(self) -> str:
        """The same for all systems, so that their prompts are, and another one for every other run."""
        return f"[{self._of_any_system}]"

    @property
    def _of_any_system(self) -> str:
        cut = f"-{self.workload.max_calls}" if self.workload.max_calls else ""
        size = f"{_in_file_names(self.workload.source)}-{self.workload.sessions}{cut}-s{self.workload.seed}"
        return f"m{self.models}-{size}-{self.load.replace(':', '')}-r{self.repeat}"

    def arrivals(self, workload: Workload) -> Arrivals:
        """
        Args:
            workload: what `workload_of` opened, whose sessions may say when they began.

        Raises:
            UserError: a `trace` of a workload that does not say it.
        """
        arrivals = parse_arrivals(self.load, seed=self.repeat)
        if not isinstance(arrivals, Trace):
            return arrivals
        starts = workload.starts()
        if starts is None:
            raise UserError(
                f"load {self.load!r}: workload {self.workload.source!r} does not record when its sessions began; give "
                "it `loads` of its own, as `poisson:0.2`, or replay mooncake:FILE or sessions with `start_s`"
            )
        return replace(arrivals, starts=starts)


def _in_file_names(source: str) -> str:
    """With a digest of what does not show: files of one name in two folders, or read in two ways."""
    shown = "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in Path(source).name)
    return shown if shown == source else f"{shown}-{sha256(source.encode()).hexdigest()[:6]}"


def load_matrix(file: Path) -> Matrix:
    """Raises UserError: an unreadable file, fields that are unknown or out of range, or a load that is none."""
    try:
        matrix = Matrix.model_validate(read_yaml(file))
    except ValidationError as error:
        raise UserError(describe_validation_error(file, error)) from None
    for load in (*matrix.loads, *(load for workload in matrix.workloads for load in workload.loads or ())):
        parse_arrivals(load)
    return matrix


def runs(matrix: Matrix) -> Iterator[Run]:
    """Every run: one repeat after the other, so that what is stopped half-way has compared all systems, and a machine
    that grows slower meets all of them. Within a repeat those on the same workers come together, since starting a
    system takes minutes, but for systems that are started together: these take turns with every load."""
    for repeat in range(matrix.repeats):
        for models in matrix.models:
            cells = [(workload, load) for workload in matrix.workloads for load in workload.loads or matrix.loads]
            if matrix.together:
                order = [(system, *cell) for cell in cells for system in matrix.systems]
            else:
                order = [(system, *cell) for system in matrix.systems for cell in cells]
            for system, workload, load in order:
                yield Run(system, models, _long_enough(workload, load, matrix), load, repeat)


def _long_enough(workload: WorkloadConfig, load: str, matrix: Matrix) -> WorkloadConfig:
    arrivals, minutes, sessions = parse_arrivals(load), matrix.minutes_of(workload), workload.sessions
    if isinstance(arrivals, Closed):
        sessions = max(sessions, (matrix.rounds or 1) * arrivals.concurrent)
    if isinstance(arrivals, Poisson):
        sessions = max(sessions, ceil(60 * (minutes or 0.0) * arrivals.rate))
    # How many of a trace arrive in that time is known when it has been read.
    left = minutes if isinstance(arrivals, Trace) else None
    return workload.model_copy(update={"sessions": sessions, "loads": None, "minutes": left})


SHORT = Matrix(
    workloads=(WorkloadConfig(source="tool_heavy", sessions=8, max_calls=4),),
    systems=("shared", "per-model"),
    repeats=1,
    limit_s=150.0,
)
FULL = Matrix(
    # Open loops: as many sessions a second as `shared` just keeps up with on two cores with bfloat16 units and slow
    # memory. Every session is played to its end: the ones that would be cut off are those that waited longest.
    workloads=(
        WorkloadConfig(source="react", sessions=2, loads=("closed:1", "closed:8", "closed:24", "poisson:0.2")),
        WorkloadConfig(
            source="reflexion", sessions=2, max_calls=12, loads=("closed:1", "closed:8", "closed:24", "poisson:0.13")
        ),
        # To the end of the context; the baseline has room for one and a half such contexts a model. In three minutes
        # nine of these arrive, too few to say what was kept up with.
        WorkloadConfig(
            source="tool_heavy", sessions=2, loads=("closed:1", "closed:4", "closed:8", "poisson:0.05"), minutes=4.0
        ),
    ),
    systems=SYSTEMS,
    repeats=3,
    rounds=2,
    minutes=3.0,
    limit_s=3600.0,
)


def workload_of(run: Run, tokenise: Tokenise, max_model_len: int, mode: Mode = "replay") -> Workload:
    """The run's sessions: of drawn ones others for every repeat, and the same for all systems. They fit into the
    context, however long the outputs become that `mode` allows.

    Raises:
        UserError: as `open_workload`.
    """
    config, arrivals = run.workload, parse_arrivals(run.load)
    soon_s = 60 * config.minutes * arrivals.speed if config.minutes and isinstance(arrivals, Trace) else None
    return open_workload(
        config.source,
        tokenise,
        sessions=config.sessions,
        seed=config.seed + run.repeat,
        max_calls=config.max_calls,
        context_limit=context_for_texts(max_model_len),
        stretch=STRETCH[mode],
        begun_within_s=soon_s,
    )


def context_for_texts(max_model_len: int) -> int:
    """Tokens that the texts of a prompt and its output may have together."""
    return int(max_model_len * (1 - _TEMPLATE))
