"""Cache-conditioned fine-tuning: next-token loss on the response, of decode weights that read the base's KV.

After PrefillShare (arXiv 2602.12029). A prompt of n tokens is cut at the split: the frozen base computes KV for
positions 0..n-2, the decode module computes position n-1 and the response on top of it. Serving does the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer

from prefillshare.module import base_kv_length
from prefillshare.training.base_cache import BaseKV, SharedKV, TokenIds, base_pass, common_length
from prefillshare.training.conversation import Example

IGNORED = -100  # label of a column that carries no loss
_KEPT = 2  # shared starts whose KV is kept, so that batches of two contexts can alternate


def collate(examples: list[Example]) -> dict[str, Any]:
    """A batch: `prefixes` for the base pass, and right-padded tensors [rows, columns] for the decode pass.

    Column 0 of `input_ids` is the prompt's last token, whose label is the response's first.
    """
    splits = [base_kv_length(len(example.prompt_ids)) for example in examples]
    columns = max(len(example.response_ids) for example in examples)
    input_ids = torch.zeros(len(examples), columns, dtype=torch.long)
    labels = torch.full((len(examples), columns), IGNORED)
    for row, (example, split) in enumerate(zip(examples, splits, strict=True)):
        response = torch.tensor(example.response_ids)
        labels[row, : len(response)] = response
        input_ids[row, 0] = example.prompt_ids[split]
        input_ids[row, 1 : len(response)] = response[:-1]
    return {
        "prefixes": [example.prompt_ids[:split] for example, split in zip(examples, splits, strict=True)],
        "input_ids": input_ids,
        # Trainer counts the tokens of an accumulated batch on `shift_labels`, but only where there are `labels` too.
        "labels": labels,
        "shift_labels": labels,
    }


def response_logits(model: torch.nn.Module, kv: BaseKV, input_ids: torch.Tensor) -> torch.Tensor:
    """The decode pass: logits [rows, columns, vocabulary] of right-padded `input_ids` on the given prompt KV.

    Padding on the right needs no masking: no token comes after it, and its logits carry no loss.
    """
    rows, columns = input_ids.shape
    mask = torch.cat([kv.mask, kv.mask.new_ones(rows, columns)], dim=1)
    positions = kv.lengths.unsqueeze(1) + torch.arange(columns, device=input_ids.device)
    logits: torch.Tensor = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=kv.cache(),
        use_cache=False,
    ).logits
    return logits


class CacheConditionedTrainer(Trainer):
    """Trains `model` on the KV of `base`.

    Args:
        base: the frozen model, or None when `model` is a PEFT model: then its own weights with the adapter disabled
            are the base, and one copy serves both roles.
        kwargs: as for Trainer. The dataset holds Examples.
    """

    def __init__(self, *, base: PreTrainedModel | None, **kwargs: Any) -> None:
        super().__init__(data_collator=collate, **kwargs)
        if base is None and not isinstance(self.model, PeftModel):
            raise ValueError("without a PEFT model the base has to be given")
        self.loss_is_scaled_for_ga = True
        self._base = None if base is None else base.requires_grad_(False).eval().to(self.args.device)
        self._known: list[SharedKV] = []

    def prompt_kv(self, prefixes: list[TokenIds]) -> BaseKV:
        """KV that the decode pass reads. What the prompts share with those of a recent batch is not recomputed."""
        known = max(self._known, key=lambda shared: common_length([shared.ids, prefixes[0]]), default=None)
        with torch.no_grad(), self._base_role() as base:
            kv = base_pass(base, prefixes, known)
        self._known = [kv.shared, *self._known][:_KEPT]
        return kv

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Summed cross-entropy over the response tokens of the whole accumulated batch."""
        logits = response_logits(model, self.prompt_kv(inputs["prefixes"]), inputs["input_ids"])
        labels = inputs["labels"]
        total = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        tokens = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / tokens
        return (loss, {"logits": logits}) if return_outputs else loss

    @contextmanager
    def _base_role(self) -> Iterator[PreTrainedModel | PeftModel]:
        if self._base is not None:
            yield self._base
            return
        model = self.model
        assert isinstance(model, PeftModel)
        model.eval()  # no dropout in the base's KV
        with model.disable_adapter():
            yield model
        model.train()
