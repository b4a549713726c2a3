"""Cache-conditioned fine-tuning: next-token loss on the responses, of decode weights that read the base's KV.

After PrefillShare (arXiv 2602.12029). A prompt of n tokens is cut at the split: the frozen base computes KV for
positions 0..n-2, the decode module computes position n-1 and the response on top of it. Serving does the same.

A conversation with several responses takes one base pass over all of it and one decode pass over the responses alone:
each response reads the base KV of everything before its split, earlier responses included, and its own KV.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import SFTConfig, SFTTrainer

from prefillshare.errors import UserError
from prefillshare.module import base_kv_length
from prefillshare.training.base_cache import BaseKV, SharedKV, TokenIds, base_pass, common_length
from prefillshare.training.conversation import Example
from prefillshare.training.masks import PADDING, ResponseColumns, padded, response_mask
from prefillshare.training.packing import from_record

IGNORED = -100  # label of a column that carries no loss
_KEPT = 3  # contexts whose KV is kept, so that batches of a few contexts can alternate

PackedRow = Sequence[Example]  # the conversations of one row


def collate(rows: Sequence[PackedRow]) -> dict[str, Any]:
    """A batch: `prefixes` for the base pass, and tensors [rows, columns] for the decode pass, padded on the right.

    A response's first column holds the prompt's last token, whose label is the response's first token.
    """
    lines = [_Line(row) for row in rows]
    columns = max(len(line.input_ids) for line in lines)
    labels = padded([line.labels for line in lines], columns, IGNORED)
    return {
        "prefixes": [[example.ids[: base_kv_length(example.spans[-1][0])] for example in row] for row in rows],
        "input_ids": padded([line.input_ids for line in lines], columns, 0),
        "owners": padded([line.owners for line in lines], columns, PADDING),
        "position_ids": padded([line.positions for line in lines], columns, 0),
        "responses": padded([line.responses for line in lines], columns, PADDING),
        "splits": padded([line.splits for line in lines], columns, 0),
        # Trainer counts the tokens of an accumulated batch on `shift_labels`, but only where there are `labels` too.
        "labels": labels,
        "shift_labels": labels,
        "tokens": torch.tensor(sum(len(example.ids) for row in rows for example in row)),
    }


class _Line:
    """The decode pass's columns of one row."""

    def __init__(self, row: PackedRow) -> None:
        self.input_ids: list[int] = []
        self.labels: list[int] = []
        self.owners: list[int] = []
        self.positions: list[int] = []
        self.responses: list[int] = []
        self.splits: list[int] = []
        for owner, example in enumerate(row):
            for start, end in example.spans:
                split = base_kv_length(start)
                self.responses += [self.responses[-1] + 1 if self.responses else 0] * (end - start)
                self.input_ids += example.ids[split : end - 1]
                self.labels += example.ids[start:end]
                self.owners += [owner] * (end - start)
                self.positions += range(split, end - 1)
                self.splits += [split] * (end - start)


def decode_inputs(model: torch.nn.Module, kv: BaseKV, batch: dict[str, Any]) -> dict[str, Any]:
    """What a decode pass over a collated batch gives to the model."""
    columns = ResponseColumns(batch["owners"], batch["position_ids"], batch["responses"], batch["splits"])
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": response_mask(model, columns, kv.columns),
        "position_ids": batch["position_ids"],
        "past_key_values": kv.cache(),
        "use_cache": False,
    }


class CacheConditionedTrainer(SFTTrainer):
    """TRL's SFTTrainer, training `model` on the KV of `base`.

    Args:
        base: the frozen model, or None when `model` is or becomes a PEFT model: then its own weights with the adapter
            disabled are the base, and one copy serves both roles.
        kwargs: as for SFTTrainer. A dataset's rows are packed rows: {"conversations": [{"ids": ..., "spans": ...}]},
            as `packing.to_dataset` makes them.
    """

    def __init__(self, *, base: PreTrainedModel | None, args: SFTConfig, **kwargs: Any) -> None:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        args.assistant_only_loss = False  # the loss is on responses anyway; TRL would look for messages in the rows
        super().__init__(args=args, data_collator=_collate_records, **kwargs)
        assert isinstance(self.model, torch.nn.Module)
        self._module = self.model
        self.tensor_names = frozenset(self.model.state_dict())  # before the training loop wraps the model
        self._loss_type = args.loss_type
        if base is None and not isinstance(self.model, PeftModel):
            raise ValueError("without a PEFT model the base has to be given")
        self._base = None if base is None else base.requires_grad_(False).eval().to(self.args.device)
        self._known: list[SharedKV] = []
        if args.gradient_checkpointing:
            _allow_checkpointing_with_cache(self._module)

    def base_kv(self, model: torch.nn.Module, prefixes: Sequence[Sequence[TokenIds]]) -> BaseKV:
        """KV that the decode pass reads. What the prompts share with those of a recent batch is not recomputed.

        Args:
            model: the model that is trained, as the training loop has wrapped it.
            prefixes: by row, the prefix of each of its conversations.
        """
        known = max(self._known, key=lambda shared: common_length([shared.ids, prefixes[0][0]]), default=None)
        with torch.no_grad(), self._base_role(model) as base:
            kv = base_pass(base, prefixes, known)
        others = [shared for shared in self._known if common_length([shared.ids, kv.shared.ids]) < len(shared.ids)]
        # Without the earlier stages of the same context; of prompts that share nothing there is nothing to keep.
        kept = [kv.shared, *others] if kv.shared.ids else others
        self._known = kept[:_KEPT]
        return kv

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """As Trainer.

        Raises:
            UserError: it cannot be made of the config, or what it needs is not installed.
        """
        with _named("optim", self.args.optim):
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """As Trainer.

        Raises:
            UserError: it cannot be made of the config.
        """
        with _named("lr_scheduler_type", self.args.lr_scheduler_type):
            return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Summed loss over the response tokens, divided by their number in the whole accumulated batch."""
        kv = self.base_kv(model, inputs["prefixes"])
        outputs = model(**decode_inputs(model, kv, inputs), shift_labels=inputs["shift_labels"], fused_lm_head=True)
        losses = -outputs.log_probs  # zero on ignored columns
        if self._loss_type == "dft":  # Dynamic Fine-Tuning, arXiv 2508.05629
            losses = losses * outputs.log_probs.exp().detach()
        tokens = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / tokens
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # by which DDP divides the gradients
        self._note(inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def _note(self, inputs: dict[str, Any], outputs: Any) -> None:
        """SFTTrainer's metrics: entropy and accuracy over response tokens, and the tokens of all conversations."""
        mode = "train" if self._module.training else "eval"
        sums = (outputs.label_mask.sum(), outputs.entropy.detach().sum(), outputs.is_top1.sum(), inputs["tokens"])
        own = torch.stack([value.float() for value in sums]).unsqueeze(0)  # one row a process, in one exchange
        count, entropy, right, tokens = self.accelerator.gather_for_metrics(own).sum(dim=0).tolist()
        self._metrics[mode]["entropy"].append(entropy / count)
        self._metrics[mode]["mean_token_accuracy"].append(right / count)
        if mode == "train":
            self._total_train_tokens += int(tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    @contextmanager
    def _base_role(self, model: torch.nn.Module) -> Iterator[torch.nn.Module]:
        if self._base is not None:
            # As a server of the base computes it, without mixed precision.
            with torch.autocast(self.args.device.type, enabled=False):
                yield self._base
            return
        adapted = self.model
        assert isinstance(adapted, PeftModel)
        training = adapted.training
        adapted.eval()  # no dropout in the base's KV, and no checkpoints of a pass without gradients
        with adapted.disable_adapter():
            yield model
        adapted.train(training)


@contextmanager
def _named(field: str, value: Any) -> Iterator[None]:
    """What goes wrong here is wrong with the field, its arguments or what it needs."""
    try:
        yield
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        shown = value.value if isinstance(value, Enum) else value
        raise UserError(f"{field}: {shown!r} cannot be used with this config: {error}") from error


def _collate_records(records: list[dict[str, Any]]) -> dict[str, Any]:
    return collate([from_record(record) for record in records])


def _allow_checkpointing_with_cache(model: torch.nn.Module) -> None:
    """Lets checkpointed layers read base KV: Transformers drops the cache unless a layer says it only reads it.

    Raises:
        RuntimeError: this version of Transformers has no such switch, so the layers would see no prompt.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            if not hasattr(layer, "_can_checkpoint_with_cache"):
                raise RuntimeError("this version of Transformers cannot checkpoint layers that read a cache")
            layer._can_checkpoint_with_cache = True
