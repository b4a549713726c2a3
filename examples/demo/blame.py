"""Whose mistake is a wrong answer: the module's own, or the serving's?

Trained for a minute on whatever CPU there is, a module may get a question wrong. What must never happen is that,
served, it answers something else than in Transformers; so that is what a wrong answer is checked for.
"""

from collections.abc import Sequence

from transformers import AutoTokenizer

from examples.demo.play import MAX_ANSWER_TOKENS, Call
from prefillshare.config import Deployment
from prefillshare.module import load_module
from prefillshare.training.reference import generate, load_base, load_decode


def answers_in_transformers(calls: Sequence[Call], deployment: Deployment) -> dict[int, str]:
    """What the modules answer to the prompts of the wrong calls on the base's KV, greedily in float32.

    Keys are the calls' numbers, from 1. Loads models only if there is a wrong call.
    """
    modules = {module.name: module for module in deployment.modules}

    def answer(call: Call) -> str:
        module = modules[call.model]
        checkpoint = deployment.base_of(module).path
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        tokens = generate(
            load_base(checkpoint),
            load_decode(load_module(module.path), checkpoint),
            call.prompt_token_ids,
            max_new_tokens=MAX_ANSWER_TOKENS,
            eos_token_ids={tokenizer.eos_token_id},
        )
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    return {number: answer(call) for number, call in enumerate(calls, 1) if not call.correct}
