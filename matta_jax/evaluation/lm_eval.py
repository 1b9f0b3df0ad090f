"""Our models in the evaluation harness of EleutherAI (extra: `lm-eval`): its tasks, on any
sub-model.

    import lm_eval, matta_jax.evaluation.lm_eval
    lm_eval.simple_evaluate(
        model="matta_jax", model_args="model=models/small", tasks=["lambada_openai"]
    )
    lm_eval.simple_evaluate(
        model="matta_jax", model_args="checkpoint=runs/mine,sub_model=student", tasks=[...]
    )
"""

import math
from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from matta_jax.errors import UserError, shorten
from matta_jax.evaluation._likelihood import (
    Request,
    checked_request,
    likelihoods,
    warn_of_left_out,
    warn_of_lossy,
)
from matta_jax.packages import Model, load_chosen
from matta_jax.serving import Sampling, generate_ids, ids_with_token
from matta_jax.tokenizers import fitting_tokenizer

_BATCH_SIZE = 16

_EFFECT_ON_SUM = (
    "their probability is that of what the tokenizer keeps, and figures of a byte or a word, which "
    "count the whole text, are too good"
)
_EFFECT_ON_CONTEXT = "the model reads what the tokenizer keeps of them"


@register_model("matta_jax")
class MattaLM(LM):
    """An extracted model, or a sub-model in place, behind the harness's interface."""

    def __init__(
        self,
        model: str | None = None,
        checkpoint: str | None = None,
        sub_model: str | None = None,
        batch_size: int | str = _BATCH_SIZE,
        **_: Any,
    ):
        super().__init__()
        models = [model] if model else []
        sub_models = [sub_model] if sub_model else []
        self._model: Model = load_chosen(models, checkpoint, sub_models)[0]
        if self._model.reads_examples:
            raise UserError(f"{model or checkpoint!r} is a scorer, and no language model")
        config = self._model.config
        self._tokenizer = fitting_tokenizer(config.data.tokenizer, config.model.vocab_size)

        # The harness also knows sizes such as `auto`.
        self._batch_size = _BATCH_SIZE
        if str(batch_size).isdigit():
            self._batch_size = int(batch_size)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Returns of each (context, continuation) its log-probability, and whether it is the greedy
        one. A continuation that the tokenizer does not hold has none.
        """
        contexts = [request.args[0] for request in requests]
        warn_of_lossy("lm_eval", self._tokenizer, contexts, _EFFECT_ON_CONTEXT)
        encoded, reasons = [], {}
        for i, (context, continuation) in enumerate(request.args for request in requests):
            request, reason = checked_request(self._tokenizer, context, continuation)
            encoded.append(request)
            if reason:
                reasons[f"request {i}"] = f"{shorten(continuation)} {reason}"
        warn_of_left_out("lm_eval", reasons, len(requests) - len(reasons))

        results = likelihoods(self._model, encoded, batch_size=self._batch_size)
        answers = [(result.log_prob, bool(result.is_top.all())) for result in results]
        # The harness wants an answer to each: a model never writes what has no tokens.
        return [
            (-math.inf, False) if f"request {i}" in reasons else answer
            for i, answer in enumerate(answers)
        ]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns of each text its log-probability, in windows of the model's sequences, each token
        predicted once. Of a text that does not survive the tokenizer it is that of what is kept,
        and a line says so; a text without tokens has none.
        """
        texts = [request.args[0] for request in requests]
        warn_of_lossy("lm_eval", self._tokenizer, texts, _EFFECT_ON_SUM)
        sums = []
        for text in texts:
            windows = self._windows(text)
            if text and not windows:
                # A sum over nothing would be that of a text which is certain.
                sums.append(-math.inf)
                continue
            results = likelihoods(self._model, windows, batch_size=self._batch_size)
            sums.append(sum(result.log_prob for result in results))
        return sums

    def _windows(self, text: str) -> list[Request]:
        """A text in pieces of a sequence's length; each is scored after the token before it, the
        first after the separator of documents.
        """
        seq_len = self._model.config.data.seq_len
        ids = self._tokenizer.encode(text)
        stream = np.array([self._tokenizer.start_id, *ids], np.int32)

        windows = []
        for start in range(0, len(ids), seq_len):
            context = stream[start : start + 1]
            target = stream[start + 1 : start + seq_len + 1]
            windows.append(Request(context, target))
        return windows

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the continuation of each context, up to the first of the strings that end it."""
        contexts = [request.args[0] for request in requests]
        warn_of_lossy("lm_eval", self._tokenizer, contexts, _EFFECT_ON_CONTEXT)
        texts = []
        for request in requests:
            context, options = request.args
            texts.append(self._continuation(context, options))
        return texts

    def _continuation(self, context: str, options: dict[str, Any]) -> str:
        """Options are the harness's: until, do_sample, temperature, max_gen_toks."""
        eos_id = self._tokenizer.eos_id
        temperature = 0.0
        if options.get("do_sample"):
            temperature = float(options.get("temperature", 0.0))

        prompt_ids = self._tokenizer.encode(context)
        prompt = np.array([self._tokenizer.start_id, *prompt_ids], np.int32)
        ids = generate_ids(
            self._model,
            prompt[None],
            num_tokens=int(options.get("max_gen_toks", 256)),
            eos_id=eos_id,
            sampling=Sampling(temperature),
            allowed=ids_with_token(self._tokenizer, self._model.architecture.vocab_size),
        )[0]

        # A text that did not come to its end has no separator.
        continuation = ids[len(prompt) :]
        ends_at = np.flatnonzero(continuation == eos_id)
        if len(ends_at):
            continuation = continuation[: ends_at[0]]
        text = self._tokenizer.decode(continuation)

        ends = options.get("until") or []
        if isinstance(ends, str):
            ends = [ends]
        for end in filter(None, ends):
            text = text.split(end)[0]
        return text
