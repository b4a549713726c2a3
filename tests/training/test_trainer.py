import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, PreTrainedModel, TrainingArguments

from prefillshare.training.conversation import Example
from prefillshare.training.trainer import CacheConditionedTrainer, collate
from tests.training.tiny import ARCHITECTURES, ordinary_loss, ragged_examples, tiny_model, tokens_computed


def make_trainer(
    folder: Path, model: torch.nn.Module, base: PreTrainedModel | None, examples: list[Example], **options: Any
) -> CacheConditionedTrainer:
    defaults = {"learning_rate": 1e-2, "max_steps": 3, "per_device_train_batch_size": len(examples)}
    arguments = TrainingArguments(
        output_dir=str(folder),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        use_cpu=True,
        **{**defaults, **options},
    )
    return CacheConditionedTrainer(model=model, base=base, args=arguments, train_dataset=examples)


@torch.no_grad()
def stepwise_loss(base: torch.nn.Module, decode: torch.nn.Module, examples: list[Example]) -> float:
    """Mean of -log p(token), the decode module fed one token at a time on the base's KV."""
    losses = []
    for example in examples:
        cache = DynamicCache()
        *prefix, token = example.prompt_ids
        if prefix:
            base(input_ids=torch.tensor([prefix]), past_key_values=cache)
        for target in example.response_ids:
            logits = decode(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
            losses.append(-logits.log_softmax(-1)[target].item())
            token = target
    return sum(losses) / len(losses)


@pytest.mark.parametrize("start", [0, 4], ids=["nothing-shared", "shared-start"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_the_bases_weights_loss_and_base_agree_with_ordinary_training(
    tmp_path: Path, architecture: str, start: int
) -> None:
    model = tiny_model(architecture=architecture)
    examples = ragged_examples(start=start)
    trainer = make_trainer(tmp_path, model, copy.deepcopy(model), examples)
    loss = trainer.compute_loss(model, collate(examples))
    torch.testing.assert_close(loss, ordinary_loss(model, examples), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_decoding_token_by_token_on_base_kv(tmp_path: Path, architecture: str) -> None:
    base, model = tiny_model(0, architecture), tiny_model(1, architecture)
    examples = ragged_examples(start=0)
    trainer = make_trainer(tmp_path, model, base, examples)
    loss = trainer.compute_loss(model, collate(examples)).item()
    assert loss == pytest.approx(stepwise_loss(base, model, examples), abs=1e-5)
    assert abs(loss - stepwise_loss(model, model, examples)) > 1e-2  # its own KV would give another loss


def test_the_base_gets_no_gradients_and_keeps_its_bits(tmp_path: Path) -> None:
    model = tiny_model()
    base, before = copy.deepcopy(model), copy.deepcopy(model)
    trainer = make_trainer(tmp_path, model, base, ragged_examples())
    trainer.train()
    for weight, original in zip(base.parameters(), before.parameters(), strict=True):
        assert weight.grad is None
        assert torch.equal(weight, original)
    for (name, weight), original in zip(model.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(weight, original), f"{name} was not trained"


def test_two_contexts_may_alternate_without_being_computed_again(tmp_path: Path) -> None:
    base = tiny_model()
    contexts = [list(range(first, first + 40)) for first in (0, 100)]
    batches = [[Example([*contexts[i % 2], i, j], [7]) for j in range(2)] for i in range(6)]
    trainer = make_trainer(tmp_path, tiny_model(1), base, batches[0])
    counts = tokens_computed(base)
    losses = [trainer.compute_loss(trainer.model, collate(batch)).item() for batch in batches]
    # The context with its last two tokens, then the one token by which the next context of its kind differs.
    assert counts == [41, 41, 1, 1, 1, 1]
    assert losses == pytest.approx([stepwise_loss(base, trainer.model, batch) for batch in batches], abs=1e-5)


def test_the_first_logged_loss_is_the_loss_and_training_lowers_it(tmp_path: Path) -> None:
    base, model = tiny_model(0), tiny_model(1)
    examples = ragged_examples()
    expected = stepwise_loss(base, model, examples)
    trainer = make_trainer(tmp_path, model, base, examples, logging_steps=1, max_steps=10)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(expected, abs=1e-4)
    assert losses[-1] < losses[0] / 2


def test_accumulating_over_small_batches_changes_nothing(tmp_path: Path) -> None:
    """Responses differ in length, so a mean of means would give other weights."""
    examples = ragged_examples(count=8)
    trained = []
    for batch, accumulate in ((8, 1), (2, 4), (1, 8)):
        model = tiny_model(1)
        # SGD: Adam would hide a wrong scale of the gradient. No clipping, for the same reason.
        options = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 2, "logging_steps": 1}
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate}
        trainer = make_trainer(tmp_path, model, tiny_model(0), examples, **options, **sizes)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trained.append((losses, torch.cat([weight.flatten() for weight in model.parameters()])))
    for losses, weights in trained[1:]:
        assert losses == pytest.approx(trained[0][0], abs=1e-4)
        torch.testing.assert_close(weights, trained[0][1], atol=1e-5, rtol=1e-4)


def lora_model(seed: int) -> torch.nn.Module:
    """Adapters with weights that matter: PEFT starts them at zero, where every mistake is invisible."""
    model = get_peft_model(tiny_model(), LoraConfig(r=2, lora_dropout=0.0, target_modules="all-linear"))
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def test_lora_uses_one_copy_of_the_base_for_both_roles(tmp_path: Path) -> None:
    base, model = tiny_model(), lora_model(7)
    examples = ragged_examples()
    trainer = make_trainer(tmp_path, model, None, examples)
    assert trainer.compute_loss(model, collate(examples)).item() == pytest.approx(
        stepwise_loss(base, model.eval(), examples), abs=1e-5
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer.train()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name


def test_a_plain_model_without_a_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="base has to be given"):
        make_trainer(tmp_path, tiny_model(), None, ragged_examples())
