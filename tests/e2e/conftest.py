"""What the end-to-end tests share: the base, decode modules trained on it, and one set of running workers."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.references import Reference
from prefillshare.config import BaseConfig, Deployment, ModuleConfig, WorkerConfig
from prefillshare.deployment.local import worker_facts
from prefillshare.engine.handoff import HANDOFF_KEY_VARIABLE
from prefillshare.engine.worker import WorkerSpec, plan_workers
from prefillshare.identity import compute_identity
from prefillshare.module import BaseReference, DecodeModule, load_module, save_manifest
from prefillshare.router.worker_facts import WorkerFacts
from prefillshare.training.models import load_model
from tests.e2e.support import free_ports, running

REPOSITORY = Path(__file__).parents[2]

# One secret for all workers that tests start, so that those of two fixtures take each other's word.
os.environ.setdefault(HANDOFF_KEY_VARIABLE, "of all tests")

BLOCK_SIZE = 32
MAX_MODEL_LEN = 384
LEASE_S = 15  # of blocks at the prefill worker that nobody fetches

# The `full` worker's KV cache: one request of MAX_MODEL_LEN fits, two long answers at once do not.
SMALL_KV_BLOCKS = 14

# The KV caches of the prefill and of the `lora` worker: room for a few sessions, not for all that are played. Three and
# four requests of MAX_MODEL_LEN fit.
PREFILL_KV_BLOCKS = 40
MEDIUM_KV_BLOCKS = 52

# Has a prefill worker compute a longer prompt in several steps, the ends of which are in mid-block.
IN_STEPS = ("--max-num-batched-tokens", "50")

# Where a grammar leaves it the choice, a small model prefers blank space to a closing brace.
COMPACT_JSON = ("--structured-outputs-config.disable_any_whitespace", "true")

ROWS = [
    ("Which colour has the sky?", "colour=blue; thing=sky; certain=yes"),
    ("How many legs has a spider?", "count=8; thing=spider; certain=yes"),
    ("Where does the Danube end?", "place=Black Sea; thing=Danube; certain=yes"),
    ("Who wrote the letters?", "person=unknown; thing=letters; certain=no"),
]


@pytest.fixture(scope="session")
def base() -> Path:
    """The base's checkpoint: PREFILLSHARE_TEST_BASE, or the demo's, which is made when it is missing."""
    given = os.environ.get("PREFILLSHARE_TEST_BASE")
    if given:
        return Path(given)
    from examples.demo.prepare_base import prepare_base

    return prepare_base(REPOSITORY / "artifacts" / "base")


@pytest.fixture(scope="session")
def other_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base with the same geometry and tokenizer: nothing but its identity tells its KV from the base's."""
    return with_noise(base, tmp_path_factory.mktemp("other"), seed=0)


@pytest.fixture(scope="session")
def other_module(full_module: DecodeModule, other_base: Path, tmp_path_factory: pytest.TempPathFactory) -> DecodeModule:
    """A module of the other base, by its manifest: no test asks what its weights have learned."""
    folder = with_noise(full_module.path, tmp_path_factory.mktemp("of_other"), seed=1)
    named = BaseReference(name="other", identity=compute_identity(other_base))
    save_manifest(folder, full_module.manifest.model_copy(update={"base": named}))
    return load_module(folder)


@pytest.fixture(scope="session")
def full_module(base: Path, tmp_path_factory: pytest.TempPathFactory) -> DecodeModule:
    """All weights trained for a few large steps: clearly not the base any more."""
    return train_module(base, tmp_path_factory.mktemp("full"), learning_rate=1e-3)


@pytest.fixture(scope="session")
def lora_module(base: Path, tmp_path_factory: pytest.TempPathFactory) -> DecodeModule:
    """A LoRA adapter of rank 4, which vLLM has to serve under a larger rank."""
    return train_module(base, tmp_path_factory.mktemp("lora"), learning_rate=7.5e-3, use_peft=True, lora_r=4)


@pytest.fixture(scope="session")
def wide_lora_module(base: Path, tmp_path_factory: pytest.TempPathFactory) -> DecodeModule:
    """A LoRA adapter of rank 8, trained to give each question the answer to another one."""
    rows = [(prompt, completion) for (prompt, _), (_, completion) in zip(ROWS, reversed(ROWS), strict=True)]
    folder = tmp_path_factory.mktemp("wide")
    return train_module(base, folder, rows, learning_rate=7.5e-3, use_peft=True, lora_r=8)


@pytest.fixture(scope="session")
def reference(
    base: Path, full_module: DecodeModule, lora_module: DecodeModule, wide_lora_module: DecodeModule
) -> Reference:
    """What the modules of the base have to answer, by the Transformers reference."""
    return Reference(base, {"full": full_module, "lora": lora_module, "wide": wide_lora_module})


def with_noise(checkpoint: Path, folder: Path, *, seed: int) -> Path:
    """Fills the folder with the checkpoint, every weight of which is changed a little."""
    for file in checkpoint.iterdir():
        if file.is_file() and (file.suffix not in (".safetensors", ".json") or file.name.startswith("tokenizer")):
            shutil.copy(file, folder)
    model = load_model(checkpoint, dtype=torch.float32)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.02 * torch.randn(weight.shape, generator=noise))
    model.save_pretrained(folder)
    return folder


def train_module(base: Path, folder: Path, rows: Sequence[tuple[str, str]] = ROWS, **settings: object) -> DecodeModule:
    """A module of the base, trained in float32 for a few steps."""
    from prefillshare.training.config import TrainConfig
    from prefillshare.training.run import train

    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    config = {
        "model_name_or_path": base,
        "dataset_name": file,
        "output_dir": folder / "module",
        "max_steps": 3,
        "per_device_train_batch_size": len(rows),
        "bf16": False,
        "gradient_checkpointing": False,  # TRL's default saves memory, at the price of a second forward pass
        "save_strategy": "no",
    }
    return train(TrainConfig.model_validate(config | settings), show_progress=False)


def worker_config(ports: int, count: int, **fields: Any) -> WorkerConfig:
    """Of `count` workers on the ports from `ports` on, of which they need twice as many."""
    return WorkerConfig(
        first_port=ports,
        first_side_channel_port=ports + count,
        dtype="float32",
        block_size=BLOCK_SIZE,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=4,
        cores=tuple(sorted(os.sched_getaffinity(0))),
        **fields,
    )


@dataclass(frozen=True)
class Workers:
    """Running workers. `lora` hosts two adapters, `stranger` decodes a module of another base."""

    log_dir: Path  # a file `<name>.log` of each
    pids: dict[str, int]  # of the API servers, by the worker's name
    prefill: WorkerSpec
    full: WorkerSpec
    lora: WorkerSpec
    stranger: WorkerSpec

    @property
    def facts(self) -> WorkerFacts:
        """For a router in front of them that lets their engines queue the calls which are too many at a time."""
        return replace(worker_facts(self.prefill), max_num_seqs=None)


@pytest.fixture(scope="session")
def workers(
    base: Path,
    full_module: DecodeModule,
    lora_module: DecodeModule,
    wide_lora_module: DecodeModule,
    other_module: DecodeModule,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Workers]:
    deployment = Deployment(
        bases=(BaseConfig(path=base, name="base"),),
        modules=(
            ModuleConfig(name="full", path=full_module.path),
            ModuleConfig(name="lora", path=lora_module.path, pool="adapters", tool_call_parser="hermes"),
            ModuleConfig(name="wide", path=wide_lora_module.path, pool="adapters", tool_call_parser="hermes"),
            ModuleConfig(name="stranger", path=other_module.path),
        ),
        workers=worker_config(free_ports(8), 4, kv_lease_s=LEASE_S),
    )
    prefill, full, lora, stranger = plan_workers(deployment)
    prefill = replace(prefill, engine_args=IN_STEPS)
    lora = replace(lora, engine_args=COMPACT_JSON)
    prefill, full, lora = (
        replace(spec, engine_args=(*spec.engine_args, "--num-gpu-blocks-override", str(blocks)))
        for spec, blocks in ((prefill, PREFILL_KV_BLOCKS), (full, SMALL_KV_BLOCKS), (lora, MEDIUM_KV_BLOCKS))
    )
    log_dir = tmp_path_factory.mktemp("logs")
    with running([prefill, full, lora, stranger], log_dir) as pids:
        yield Workers(log_dir, pids, prefill, full, lora, stranger)
