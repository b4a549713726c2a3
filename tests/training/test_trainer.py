import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import example as hypothesis_example
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention
from trl import SFTConfig

from prefillshare.training.conversation import Example
from prefillshare.training.packing import to_dataset
from prefillshare.training.trainer import CacheConditionedTrainer, collate
from tests.training.tiny import (
    ARCHITECTURES,
    byte_tokenizer,
    conversation,
    ordinary_loss,
    ragged_examples,
    single,
    tiny_model,
    tokens_computed,
    turn_by_turn_loss,
)

PACKED = [  # rows of different lengths, with one, two and three responses, and a prompt of a single token
    [conversation(5, 3, 2, 4, seed=1), conversation(1, 2, seed=2)],
    [conversation(9, 1, 1, 2, 6, 3, seed=3)],
    [conversation(2, 5, seed=4), conversation(3, 1, 1, 1, seed=5), conversation(4, 2, seed=6)],
]
PACKED_WITH_SHARED_START = [
    [conversation(5, 3, 2, 4, seed=1, start=(7, 8, 9)), conversation(1, 2, seed=2, start=(7, 8, 9))],
    [conversation(2, 1, 3, 3, seed=3, start=(7, 8, 9))],
]


def make_trainer(
    folder: Path, model: torch.nn.Module, base: PreTrainedModel | None, rows: list[list[Example]], **options: Any
) -> CacheConditionedTrainer:
    defaults = {"learning_rate": 1e-2, "max_steps": 3, "per_device_train_batch_size": len(rows), "bf16": False}
    arguments = SFTConfig(
        output_dir=str(folder),
        report_to="none",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        use_cpu=True,
        **{"save_strategy": "no", "gradient_checkpointing": False, **defaults, **options},
    )
    return CacheConditionedTrainer(
        model=model, base=base, args=arguments, train_dataset=to_dataset(rows), processing_class=byte_tokenizer()
    )


def alone(examples: list[Example]) -> list[list[Example]]:
    return [[example] for example in examples]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def loss_and_gradients(
    trainer: CacheConditionedTrainer, rows: list[list[Example]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = trainer.compute_loss(trainer.model, collate(rows))
    loss.backward()
    return loss.detach(), gradients(trainer.model)


def assert_equal_to_turn_by_turn(
    trainer: CacheConditionedTrainer, base: torch.nn.Module, rows: list[list[Example]]
) -> None:
    loss, ours = loss_and_gradients(trainer, rows)
    expected = turn_by_turn_loss(base, trainer.model, [example for row in rows for example in row])
    expected.backward()
    theirs = gradients(trainer.model)
    torch.testing.assert_close(loss.double(), expected.detach().double(), atol=1e-5, rtol=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("rows", [PACKED, PACKED_WITH_SHARED_START], ids=["nothing-shared", "shared-start"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_pass_over_packed_conversations_equals_turn_by_turn(
    tmp_path: Path, architecture: str, rows: list[list[Example]]
) -> None:
    base, model = tiny_model(0, architecture), tiny_model(1, architecture)
    trainer = make_trainer(tmp_path, model, base, rows)
    assert_equal_to_turn_by_turn(trainer, base, rows)
    flat = [example for row in rows for example in row]
    with torch.no_grad():  # the base makes a difference: own KV would give another loss
        assert abs(turn_by_turn_loss(base, model, flat) - turn_by_turn_loss(model, model, flat)) > 1e-3


part = st.integers(1, 6)
example = st.builds(
    lambda parts, seed, start: conversation(*(n for pair in parts for n in pair), seed=seed, start=start),
    st.lists(st.tuples(part, part), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.sampled_from([(), (1, 2, 3)]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(example, min_size=1, max_size=3), min_size=1, max_size=3),
    architecture=st.sampled_from(ARCHITECTURES),
)
@hypothesis_example(
    rows=[[Example(ids=[1, 2, 3, 68, 32, 130, 60, 253, 230], spans=[(4, 5), (6, 7), (8, 9)])]], architecture="llama"
)
def test_loss_and_gradients_equal_turn_by_turn_for_random_conversations(
    tmp_path: Path, rows: list[list[Example]], architecture: str
) -> None:
    # In float32 the rounding of a rare draw is ten times the tolerance: 1e-4 of a gradient of 4, here 1e-6.
    base, model = tiny_model(0, architecture).double(), tiny_model(1, architecture).double()
    assert_equal_to_turn_by_turn(make_trainer(tmp_path, model, base, rows), base, rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_bfloat16_they_are_those_of_float32_but_for_rounding(tmp_path: Path, architecture: str) -> None:
    base, model = tiny_model(0, architecture), tiny_model(1, architecture)
    exact, gradient = loss_and_gradients(make_trainer(tmp_path, model, base, PACKED), PACKED)
    trainer = make_trainer(tmp_path, model, copy.deepcopy(base).to(torch.bfloat16), PACKED, bf16=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, ours = loss_and_gradients(trainer, PACKED)
    torch.testing.assert_close(rounded, exact, atol=0, rtol=0.01)
    ours, theirs = (torch.cat([part.flatten() for part in found.values()]) for found in (ours, gradient))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_the_bases_weights_the_loss_is_that_of_ordinary_training(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture=architecture)
    for examples in (ragged_examples(start=0), ragged_examples(start=4), [e for row in PACKED for e in row]):
        trainer = make_trainer(tmp_path, copy.deepcopy(model), copy.deepcopy(model), alone(examples))
        loss = trainer.compute_loss(trainer.model, collate(alone(examples)))
        torch.testing.assert_close(loss, ordinary_loss(model, examples), atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_padding_and_packing_change_nothing(tmp_path: Path, architecture: str) -> None:
    base, model = tiny_model(0, architecture), tiny_model(1, architecture)
    examples = [example for row in PACKED for example in row]
    trainer = make_trainer(tmp_path, model, base, alone(examples))
    packed, padded = loss_and_gradients(trainer, PACKED), loss_and_gradients(trainer, alone(examples))
    torch.testing.assert_close(packed[0], padded[0], atol=1e-5, rtol=1e-5)
    for name, gradient in packed[1].items():
        torch.testing.assert_close(gradient, padded[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, architecture: str, peft: bool) -> None:
    base = tiny_model(0, architecture)
    found = []
    for checkpointing in (False, True):
        model = lora_model(7, architecture) if peft else tiny_model(1, architecture)
        trainer = make_trainer(tmp_path, model, None if peft else base, PACKED, gradient_checkpointing=checkpointing)
        if checkpointing:
            trainer.model.gradient_checkpointing_enable()
        trainer.model.train()
        found.append(loss_and_gradients(trainer, PACKED))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert found[1][1].keys() == found[0][1].keys()
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(gradient, found[0][1][name])


def test_the_base_gets_no_gradients_and_keeps_its_bits(tmp_path: Path) -> None:
    model = tiny_model()
    base, before = copy.deepcopy(model), copy.deepcopy(model)
    make_trainer(tmp_path, model, base, PACKED).train()
    for weight, original in zip(base.parameters(), before.parameters(), strict=True):
        assert weight.grad is None
        assert torch.equal(weight, original)
    for (name, weight), original in zip(model.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(weight, original), f"{name} was not trained"


def test_contexts_may_alternate_and_grow_without_being_computed_again(tmp_path: Path) -> None:
    base = tiny_model()
    contexts = [list(range(first, first + 40)) for first in (0, 80, 160)]
    order = [0, 1, 1, 1, 2, 0, 1, 2]
    grown = [order[:turn].count(which) for turn, which in enumerate(order)]
    batches = [
        [[single([*contexts[which], *range(200, 202 + more), j], [7])] for j in range(2)]
        for which, more in zip(order, grown, strict=True)
    ]
    trainer = make_trainer(tmp_path, tiny_model(1), base, batches[0])
    counts = tokens_computed(base)
    losses = [trainer.compute_loss(trainer.model, collate(batch)).item() for batch in batches]
    assert counts == [42, 42, 1, 1, 42, 1, 1, 1]  # every context once, and of the other batches what is new
    expected = [turn_by_turn_loss(base, trainer.model, [row[0] for row in batch]).item() for batch in batches]
    assert losses == pytest.approx(expected, abs=1e-5)


def test_prompts_that_share_nothing_push_no_context_out(tmp_path: Path) -> None:
    base = tiny_model()
    first = [[single([*range(start, start + 40), 7], [7])] for start in (0, 60, 120)]
    alone = [[single([200 + start], [7, 8])] for start in range(2)]  # no base KV, or none in common
    trainer = make_trainer(tmp_path, tiny_model(1), base, first[:1])
    counts = tokens_computed(base)
    for batch in ([first[0]], [first[1]], [first[2]], alone, [first[0]]):
        trainer.compute_loss(trainer.model, collate(batch))
    assert counts == [40, 40, 40]


def test_the_first_logged_loss_is_the_loss_and_training_lowers_it(tmp_path: Path) -> None:
    base, model = tiny_model(0), tiny_model(1)
    expected = turn_by_turn_loss(base, model, [example for row in PACKED for example in row]).item()
    trainer = make_trainer(tmp_path, model, base, PACKED, logging_steps=1, max_steps=10)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert logged[-1]["loss"] < logged[0]["loss"] / 2
    assert 0 <= logged[0]["mean_token_accuracy"] <= 1
    assert logged[0]["num_tokens"] == sum(len(example.ids) for row in PACKED for example in row)


def test_accumulating_over_small_batches_changes_nothing(tmp_path: Path) -> None:
    """Responses differ in length, so a mean of means would give other weights."""
    examples = ragged_examples(count=8)
    trained = []
    for batch, accumulate in ((8, 1), (2, 4), (1, 8)):
        model = tiny_model(1)
        # SGD: Adam would hide a wrong scale of the gradient. No clipping, for the same reason.
        options = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 2, "logging_steps": 1}
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate}
        trainer = make_trainer(tmp_path, model, tiny_model(0), alone(examples), **options, **sizes)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trained.append((losses, torch.cat([weight.flatten() for weight in model.parameters()])))
    for losses, weights in trained[1:]:
        assert losses == pytest.approx(trained[0][0], abs=1e-4)
        torch.testing.assert_close(weights, trained[0][1], atol=1e-5, rtol=1e-4)


def test_dynamic_fine_tuning_weighs_tokens_by_their_probability(tmp_path: Path) -> None:
    base, model = tiny_model(0), tiny_model(1)
    rows = [[single([1, 2, 3], [4])]]
    plain, weighed = (
        make_trainer(tmp_path, model, base, rows, loss_type=kind).compute_loss(model, collate(rows)).item()
        for kind in ("nll", "dft")
    )
    assert weighed == pytest.approx(plain * torch.tensor(-plain).exp().item(), rel=1e-4)


def lora_model(seed: int, architecture: str = "llama") -> torch.nn.Module:
    """Adapters with weights that matter: PEFT starts them at zero, where every mistake is invisible."""
    linear = ["q_proj", "v_proj", "down_proj"]
    model = get_peft_model(
        tiny_model(architecture=architecture), LoraConfig(r=2, lora_dropout=0.0, target_modules=linear)
    )
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def test_lora_uses_one_copy_of_the_base_for_both_roles(tmp_path: Path) -> None:
    base, model = tiny_model(), lora_model(7)
    trainer = make_trainer(tmp_path, model, None, PACKED)
    expected = turn_by_turn_loss(base, model.eval(), [example for row in PACKED for example in row]).item()
    assert trainer.compute_loss(model, collate(PACKED)).item() == pytest.approx(expected, abs=1e-5)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer.train()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name


def test_the_base_pass_of_a_lora_model_has_no_dropout_and_restores_the_mode(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=2, lora_dropout=0.9, target_modules="all-linear"))
    for module in model.modules():
        if isinstance(module, LlamaAttention):
            module.attention_dropout = 0.9
    trainer = make_trainer(tmp_path, model, None, PACKED)
    for training in (True, False):
        model.train(training)
        kv = trainer.base_kv(model, [[[1, 2, 3]]])
        assert model.training is training
        own = tiny_model()(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
        torch.testing.assert_close(kv.layers[-1][0], own.layers[-1].keys)


def test_a_plain_model_without_a_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="base has to be given"):
        make_trainer(tmp_path, tiny_model(), None, PACKED)
