"""What a training step costs: cache-conditioned fine-tuning against TRL's SFTTrainer on the same batches.

    python -m experiments.training_cost

For every ratio of prompt to response, both systems train the same rows in turns, each time in a process of its own.
Speed is all tokens of a batch (prompt and response) by the seconds of a step. Activation memory is what the process
grows by between the start of a forward pass and its end, when everything that the backward pass needs is held: base KV
included, weights, gradients and optimiser state left out. Writes docs/results/training-cost.json and prints the table.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
from datasets import Dataset
from rich.progress import track
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from examples.demo.prepare_base import prepare_base
from experiments.environment import environment
from prefillshare.hardware import preferred_dtype
from prefillshare.training.conversation import Example
from prefillshare.training.models import load_model
from prefillshare.training.packing import to_dataset
from prefillshare.training.trainer import IGNORED, CacheConditionedTrainer

REPOSITORY = Path(__file__).parent.parent
BASE = REPOSITORY / "artifacts" / "base"
RESULTS = REPOSITORY / "docs" / "results" / "training-cost.json"
SYSTEMS = ("full fine-tuning", "decode module")
RATIOS = (1, 4, 8, 16)
RESPONSE_TOKENS = 64
WARM_UP = 1  # the first step also allocates the optimiser's state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each system takes its turn (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="measured steps a turn (default 3)")
    parser.add_argument("--batch-size", type=int, default=2, help="rows of a batch (default 2)")
    parser.add_argument("--turn", nargs=2, metavar=("SYSTEM", "RATIO"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        system, ratio = arguments.turn
        print(json.dumps(measure(system, int(ratio), arguments.batch_size, arguments.steps)))
        return
    prepare_base(BASE)
    turns = [(ratio, system) for ratio in RATIOS for _ in range(arguments.rounds) for system in SYSTEMS]
    records = []
    for ratio, system in track(turns, description="training steps"):
        command = [sys.executable, "-m", "experiments.training_cost", "--turn", system, str(ratio)]
        command += ["--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]
        # Large blocks go back to the system when they are freed, so that the process's size is what is in use.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        records.append({"system": system, "ratio": ratio, **json.loads(output.splitlines()[-1])})
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment_record(arguments), "records": records}, indent=1) + "\n")
    print(table(records))


def measure(system: str, ratio: int, batch_size: int, steps: int) -> dict[str, Any]:
    """One turn: seconds of each measured step, and the memory its forward pass holds, in MB."""
    draw = random.Random(ratio)
    prompt = RESPONSE_TOKENS * ratio
    examples = []
    for _ in range(batch_size * (WARM_UP + steps)):
        ids = [draw.randrange(1000, 40000) for _ in range(prompt + RESPONSE_TOKENS)]
        examples.append(Example(ids, [(prompt, len(ids))]))
    meter = _Meter()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(system, examples, scratch, batch_size, WARM_UP + steps)
        trainer.add_callback(meter)
        inner = trainer.compute_loss

        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            before = _resident_mb()
            loss = inner(*args, **kwargs)
            meter.held_mb.append(_resident_mb() - before)
            return loss

        trainer.compute_loss = compute_loss
        trainer.train()
    tokens = batch_size * (prompt + RESPONSE_TOKENS)
    return {
        "tokens": tokens,
        "step_seconds": [round(seconds, 3) for seconds in meter.seconds[WARM_UP:]],
        "activation_mb": [round(held) for held in meter.held_mb[WARM_UP:]],
    }


class _Meter(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.held_mb: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(perf_counter() - self._started)


def _trainer(system: str, examples: list[Example], scratch: str, batch_size: int, steps: int) -> Any:
    dtype = preferred_dtype()
    arguments = SFTConfig(
        output_dir=scratch, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, max_steps=steps,
        per_device_train_batch_size=batch_size, bf16=dtype == "bfloat16", gradient_checkpointing=False,
        max_length=None, train_sampling_strategy="sequential",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = load_model(BASE)
    if system == "decode module":
        base = load_model(BASE, dtype=getattr(torch, dtype))
        rows = to_dataset([[example] for example in examples])
        return CacheConditionedTrainer(
            model=model, base=base, args=arguments, train_dataset=rows, processing_class=tokenizer
        )
    rows = Dataset.from_list(
        [{"input_ids": e.ids, "labels": [IGNORED] * e.spans[0][0] + e.ids[e.spans[0][0] :]} for e in examples]
    )
    return SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)


def _resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: medians over all measured steps, and the ratios with their range over the rounds."""
    lines = [
        "| prompt:response | tokens/s full | ours | speed-up (range of rounds) | activations MB full | ours | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for ratio in sorted({record["ratio"] for record in records}):
        full, ours = ([r for r in records if (r["ratio"], r["system"]) == (ratio, system)] for system in SYSTEMS)
        speeds = [[r["tokens"] / statistics.median(r["step_seconds"]) for r in turns] for turns in (full, ours)]
        gains = [b / a for a, b in zip(*speeds, strict=True)]
        held = [statistics.median(mb for r in turns for mb in r["activation_mb"]) for turns in (full, ours)]
        lines.append(
            f"| {ratio}:1 | {statistics.median(speeds[0]):.0f} | {statistics.median(speeds[1]):.0f} "
            f"| {statistics.median(gains):.2f}x ({min(gains):.2f}-{max(gains):.2f}) "
            f"| {held[0]:.0f} | {held[1]:.0f} | {held[1] / held[0]:.2f}x |"
        )
    return "\n".join(lines)


def environment_record(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": "SmolLM2-135M-Instruct",
        "response_tokens": RESPONSE_TOKENS,
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        **environment(),
    }


if __name__ == "__main__":
    main()
