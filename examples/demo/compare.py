"""The demo's accuracy table: base, full fine-tuning, naive sharing and the decode module on held-out items.

    python -m examples.demo.compare --items 100

Full fine-tuning has the decode module's budget: the same rows in the same order, batch size, steps and learning
rate. Naive sharing is its weights, decoding on the base's KV. All are read back from disk and decode greedily in
float32. What was trained or scored before is kept, so a run that was interrupted goes on where it stopped.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers import AutoTokenizer, PreTrainedModel

from examples.demo.prepare_base import prepare_base
from examples.demo.scoring import is_right
from examples.demo.tasks import TASKS, Row, Task, held_out_rows, training_rows, write_rows
from prefillshare.errors import UserError
from prefillshare.evaluation.statistics import wilson
from prefillshare.identity import compute_identity
from prefillshare.module import load_module
from prefillshare.training.base_cache import BaseKV, TokenIds, base_pass
from prefillshare.training.config import TrainConfig, load_train_config
from prefillshare.training.conversation import render_prompt
from prefillshare.training.dataset import read_examples
from prefillshare.training.progress import with_progress
from prefillshare.training.reference import generate_batch, load_base, load_decode
from prefillshare.training.run import make_trainer, save_weights, train
from prefillshare.training.sources import digest
from prefillshare.training.trainer import CacheConditionedTrainer

HERE = Path(__file__).parent
SYSTEMS = ("base", "full fine-tuning", "naive sharing", "decode module")
MAX_NEW_TOKENS = 64


class FullFineTuningTrainer(CacheConditionedTrainer):
    """Ordinary response-only fine-tuning: the model prefills for itself and gradients flow through its prefill."""

    def base_kv(self, model: torch.nn.Module, prefixes: Sequence[Sequence[TokenIds]]) -> BaseKV:
        with self.accelerator.autocast():
            return base_pass(model, prefixes)


@dataclass(frozen=True)
class Score:
    """One system on the items of one task. `weights` says what was scored: digests of prefill and decode weights."""

    weights: tuple[str, str]
    items: int
    right: int
    right_short: int  # of the half behind the schema alone; the others have a session's context
    seconds: float

    def cell(self) -> str:
        share = wilson(self.right, self.items)
        return f"{share.estimate:.2f} ({share.low:.2f}-{share.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of the demo's modules against what they replace.")
    parser.add_argument("--items", type=int, default=100, help="held-out items a task (default 100)")
    items = parser.parse_args().items
    try:
        compare(items)
    except UserError as problem:
        sys.exit(f"error: {problem}")


def compare(items: int) -> None:
    """Scores what has not been scored with these weights and items, and prints the table."""
    configs = {task: load_train_config(HERE / f"{task}.yaml") for task in TASKS}
    prepare_base(configs[TASKS[0]].model_name_or_path)
    for task, config in configs.items():
        write_rows(config.dataset_name, training_rows(task, batch_size=config.get("per_device_train_batch_size")))
    results = configs[TASKS[0]].output_dir.parent.parent / "compare.json"
    for system, (task, config) in product(reversed(SYSTEMS), configs.items()):
        prefill, decode = _checkpoints(system, task, config)
        weights = (_weights(prefill), _weights(decode))
        score = _read(results).get(task, {}).get(system)
        if score is None or score.weights != weights or score.items != items:
            _write(results, task, system, _score(f"{task}: {system}", task, items, config, prefill, decode))
    print(_table(_read(results)))


def _checkpoints(system: str, task: Task, config: TrainConfig) -> tuple[Path, Path]:
    """Whose weights prefill and whose decode; trains what is not there."""
    base = config.model_name_or_path
    match system:
        case "base":
            return base, base
        case "decode module":
            _have_module(config)
            return base, config.output_dir
        case _:
            full = _have_full(task, config)
            return (full if system == "full fine-tuning" else base), full


def _have_module(config: TrainConfig) -> None:
    """Trains the decode module unless it was trained by this recipe."""
    try:
        record = load_module(config.output_dir).manifest.training
    except UserError:
        record = {}
    if (record.get("data", {}).get("digest"), record.get("hyper_parameters")) != _recipe(config):
        train(config.changed(overwrite_output_dir=True))


def _have_full(task: Task, config: TrainConfig) -> Path:
    """The fully fine-tuned checkpoint, trained unless it was by this recipe. It has no manifest: no server takes it."""
    folder = config.output_dir.parent.parent / "full-fine-tuning" / task
    stamp = folder / "recipe.json"
    recipe = json.dumps(_recipe(config))
    if stamp.is_file() and stamp.read_text() == recipe:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    examples = read_examples(config.dataset_name, tokenizer).examples
    trainer = make_trainer(config, examples, tokenizer, trainer_class=FullFineTuningTrainer)
    with_progress(trainer, f"full fine-tuning {task}")
    save_weights(trainer, config, folder)
    stamp.write_text(recipe)
    return folder


def _recipe(config: TrainConfig) -> tuple[str, dict[str, Any]]:
    return digest(config.dataset_name), config.hyper_parameters()


def _score(label: str, task: Task, items: int, config: TrainConfig, prefill: Path, decode: Path) -> Score:
    prefill_model = load_base(prefill)
    if decode == config.output_dir:
        decode_model = load_decode(load_module(decode), prefill)
    else:
        decode_model = prefill_model if decode == prefill else load_base(decode)
    started = time.monotonic()
    rows = held_out_rows(task, items=items)
    right = right_short = 0
    answers = _answer(prefill_model, decode_model, rows, config)
    for row, answer in track(zip(rows, answers, strict=True), total=len(rows), description=label):
        if is_right(task, answer, row.item.answer):
            right += 1
            right_short += row.is_short
    seconds = round(time.monotonic() - started, 1)
    return Score((_weights(prefill), _weights(decode)), len(rows), right, right_short, seconds)


def _answer(base: PreTrainedModel, decode: PreTrainedModel, rows: list[Row], config: TrainConfig) -> Iterator[str]:
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    known = None
    for _, group in groupby(rows, key=lambda row: row.context):
        outputs, known = generate_batch(
            base,
            decode,
            [render_prompt(row.prompt(), tokenizer) for row in group],
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_ids={tokenizer.eos_token_id},
            known=known,
        )
        yield from (str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in outputs)


def _weights(checkpoint: Path) -> str:
    return compute_identity(checkpoint).parts["weights"]


def _read(results: Path) -> dict[str, dict[str, Score]]:
    if not results.is_file():
        return {}
    return {
        task: {system: Score(**{**score, "weights": tuple(score["weights"])}) for system, score in scores.items()}
        for task, scores in json.loads(results.read_text()).items()
    }


def _write(results: Path, task: Task, system: str, score: Score) -> None:
    scores = _read(results)
    scores.setdefault(task, {})[system] = score
    plain = {name: {key: asdict(value) for key, value in of_task.items()} for name, of_task in scores.items()}
    results.write_text(json.dumps(plain, indent=2) + "\n")


def _table(scores: dict[str, dict[str, Score]]) -> str:
    """Markdown: share of right answers, with its 95 % interval."""
    lines = [f"| task (items) | {' | '.join(SYSTEMS)} |", f"|---|{'---|' * len(SYSTEMS)}"]
    for task, of_task in scores.items():
        cells = [of_task[system].cell() for system in SYSTEMS]
        lines.append(f"| {task} ({of_task[SYSTEMS[0]].items}) | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
