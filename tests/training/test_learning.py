"""The method itself, at the smallest size that tells the systems apart.

A model that can copy ten symbols is specialised to write them in a cipher. Ordinary fine-tuning solves it; its
weights fail on the base's KV, because training has moved what keys and values mean; weights trained on the base's KV
solve it there.
"""

import copy
import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from trl import SFTConfig

from examples.demo.compare import FullFineTuningTrainer
from prefillshare.training.conversation import Example
from prefillshare.training.packing import to_dataset
from prefillshare.training.reference import generate_batch
from prefillshare.training.trainer import CacheConditionedTrainer
from tests.training.tiny import byte_tokenizer, single

SYMBOLS, LENGTH, SEPARATOR, END = 16, 10, 16, 17
STEPS, BATCH = 60, 32
CIPHER = random.Random(4).sample(range(SYMBOLS), SYMBOLS)


def draw(seed: int, count: int, *, cipher: bool) -> list[Example]:
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        symbols = [rng.randrange(SYMBOLS) for _ in range(LENGTH)]
        examples.append(single([*symbols, SEPARATOR], [CIPHER[s] if cipher else s for s in symbols] + [END]))
    return examples


def small_model(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    # The default initializer_range of 0.02 does not learn at this size.
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4, vocab_size=18, initializer_range=0.125))


def learn_to_copy(model: PreTrainedModel, steps: int) -> PreTrainedModel:
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        rows = draw(1000 + step, BATCH, cipher=False)
        ids = torch.tensor([example.ids for example in rows])
        logits = model(input_ids=ids, use_cache=False).logits[:, LENGTH:-1]
        cross_entropy(logits.flatten(0, 1), ids[:, LENGTH + 1 :].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return model


def specialise(folder: Path, base: PreTrainedModel, trainer_class: type[CacheConditionedTrainer]) -> PreTrainedModel:
    arguments = SFTConfig(
        output_dir=str(folder), report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False,
        gradient_checkpointing=False, learning_rate=2e-3, max_steps=STEPS, per_device_train_batch_size=BATCH, seed=0,
    )  # fmt: skip
    model = copy.deepcopy(base)
    trainer_class(
        model=model,
        base=copy.deepcopy(base),
        args=arguments,
        train_dataset=to_dataset([[row] for row in draw(0, STEPS * BATCH, cipher=True)]),
        processing_class=byte_tokenizer(),
    ).train()
    return model.eval()


def accuracy(base: PreTrainedModel, decode: PreTrainedModel, *, cipher: bool = True) -> float:
    rows = draw(1, 100, cipher=cipher)
    outputs, _ = generate_batch(base, decode, [row.ids[: LENGTH + 1] for row in rows], max_new_tokens=LENGTH + 1)
    return sum(out == row.ids[LENGTH + 1 :] for out, row in zip(outputs, rows, strict=True)) / len(rows)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_naive_sharing_fails_where_the_decode_module_and_full_fine_tuning_succeed(tmp_path: Path, seed: int) -> None:
    base = learn_to_copy(small_model(seed), steps=100).eval()
    assert accuracy(base, base, cipher=False) > 0.95
    full = specialise(tmp_path, base, FullFineTuningTrainer)
    ours = specialise(tmp_path, base, CacheConditionedTrainer)
    assert accuracy(full, full) >= 0.95
    assert accuracy(base, full) <= 0.2
    assert accuracy(base, ours) >= 0.95
