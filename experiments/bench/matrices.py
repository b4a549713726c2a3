"""What each command runs."""

from prefillshare.bench.matrix import FULL, Matrix, WorkloadConfig
from prefillshare.bench.systems import Machine

FLOAT32 = Matrix(
    workloads=(WorkloadConfig(source="tool_heavy", sessions=4),),
    systems=("shared", "per-model"),
    loads=("closed:4", "closed:8"),
    repeats=1,
    rounds=1,
    limit_s=5400.0,  # per-model needs an hour for eight
    machine=Machine(dtype="float32"),
)

# An ordinary vLLM whose steps are short decodes between the parts of a long prompt, where it otherwise stands still.
SMALL_STEPS = FLOAT32.model_copy(
    update={
        "systems": ("shared", "colocated"),
        "loads": ("closed:4",),
        "repeats": 2,
        "machine": Machine(dtype="float32", engine_args=("--max-num-batched-tokens", "256")),
    }
)

# Two rounds, so that the last session to end is not one of those that began together; nothing is cut off.
SHORT_CONTEXTS = Matrix(
    workloads=(
        WorkloadConfig(source="react", sessions=2),
        WorkloadConfig(source="reflexion", sessions=2, max_calls=12),
    ),
    loads=("closed:1", "closed:8"),
    systems=("shared", "shared-lora", "per-model", "colocated"),  # those that are published
    repeats=1,
    rounds=2,
    limit_s=1800.0,
    machine=Machine(dtype="float32"),
)

# Where answers are the limit, the two are nearest to each other: nearer than a machine that others share is to itself
# within the quarter of an hour that lies between them in `full`.
TOGETHER = FULL.model_copy(
    update={
        "workloads": FULL.workloads[:2],
        "systems": ("shared", "colocated"),
        "together": True,
    }
)

# The same with decode workers also on the core of the prefill worker, which has time left where answers are the limit.
BOTH_CORES = TOGETHER.model_copy(update={"machine": Machine(decode_cores=(1, 0))})

# Open loops: as many sessions a second as `shared` just keeps up with on two cores of an EPYC with bfloat16 units, of
# Reflexion also more; and for longer: in three minutes a system that falls behind has hardly begun to.
LIMITS = FULL.model_copy(
    update={
        "workloads": tuple(
            workload.model_copy(update={"loads": loads, "minutes": None})
            for workload, loads in zip(
                FULL.workloads,
                (
                    ("closed:1", "closed:8", "closed:24", "poisson:0.3"),
                    ("closed:1", "closed:8", "closed:24", "poisson:0.14", "poisson:0.17"),
                    ("closed:1", "closed:4", "closed:8", "poisson:0.03"),
                ),
                strict=True,
            )
        ),
        "systems": ("shared", "colocated"),
        "together": True,
        "minutes": 6.0,
    }
)
# Four systems at the same time would take 40 GB.
LIMITS_MORE = LIMITS.model_copy(update={"systems": ("shared-lora", "per-model")})

# What one model more costs, with sharing and without. With one model both systems are the same deployment: what their
# ratio is then other than 1 is noise. Eight would need sixteen workers under `per-model`, more memory than a machine
# with two cores has.
MODELS = SHORT_CONTEXTS.model_copy(
    update={
        "workloads": SHORT_CONTEXTS.workloads[:1],
        "loads": ("closed:8",),
        "systems": ("shared", "per-model"),
        "models": (1, 2, 4),
        "repeats": 2,
    }
)

# How far ratios spread, and what sharing alone is worth where both form one batch of all models' calls.
REPEATS = SHORT_CONTEXTS.model_copy(
    update={
        "workloads": SHORT_CONTEXTS.workloads[:1],
        "loads": ("closed:8",),
        "systems": ("shared", "shared-lora", "per-model", "colocated-lora"),
        "repeats": 3,
    }
)

# Tokens. Longer ones are computed for minutes where there are no bfloat16 units, and `short` has to end within 15.
SHORT_PROMPT = 1200
LONGEST_OF_REACT = 2048
