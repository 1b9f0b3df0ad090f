"""Our models in the evaluation harness of EleutherAI (extra: `lm-eval`): its tasks, on any
sub-model.

import lm_eval, matta_jax.evaluation.lm_eval
lm_eval.simple_evaluate(model="matta_jax", model_args="model=models/small",
tasks=["lambada_openai"]) lm_eval.simple_evaluate(model="matta_jax",
model_args="checkpoint=runs/mine,sub_model=student", tasks=[...])
"""

from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from matta_jax.errors import UserError
from matta_jax.evaluation._likelihood import Request, encode_request, likelihoods
from matta_jax.packages import Model, load_chosen
from matta_jax.serving import Sampling, generate_ids
from matta_jax.tokenizers import make_tokenizer


@register_model("matta_jax")
class MattaLM(LM):
    """An extracted model, or a sub-model in place, behind the harness's interface."""

    def __init__(
        self,
        model: str | None = None,
        checkpoint: str | None = None,
        sub_model: str | None = None,
        batch_size: int | str = 16,
        **_: Any,
    ):
        super().__init__()
        models, sub_models = ([one] if one else [] for one in (model, sub_model))
        self._model: Model = load_chosen(models, checkpoint, sub_models)[0]
        if self._model.is_scorer:
            raise UserError(f"{model or checkpoint!r} is a scorer, and no language model")
        self._tokenizer = make_tokenizer(self._model.config.data.tokenizer)
        self._batch_size = int(batch_size) if str(batch_size).isdigit() else 16

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Returns of each (context, continuation) its log-probability, and whether it is the greedy
        one.
        """
        encoded = [encode_request(self._tokenizer, *request.args) for request in requests]
        found = likelihoods(self._model, encoded, batch_size=self._batch_size)
        return [(one.log_prob, bool(one.is_top.all())) for one in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns of each text its log-probability, in windows of the model's sequences, each token
        predicted once.
        """
        limit, sums = self._model.config.data.seq_len, []
        for request in requests:
            ids = np.asarray(self._tokenizer.encode(request.args[0]), np.int32)
            stream = np.concatenate([np.array([self._tokenizer.eos_id], np.int32), ids])
            windows = [
                Request(stream[start : start + 1], stream[start + 1 : start + limit + 1])
                for start in range(0, len(ids), limit)
            ]
            sums.append(
                sum(
                    one.log_prob
                    for one in likelihoods(self._model, windows, batch_size=self._batch_size)
                )
            )
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the continuation of each context, up to the first of the strings that end it."""
        texts = []
        for request in requests:
            context, options = request.args
            ends = options.get("until") or []
            sampling = Sampling(
                float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
            )
            start = np.array([self._tokenizer.eos_id, *self._tokenizer.encode(context)], np.int32)
            ids = generate_ids(
                self._model,
                start[None],
                num_tokens=int(options.get("max_gen_toks", 256)),
                eos_id=self._tokenizer.eos_id,
                sampling=sampling,
            )[0, len(start) :]
            ended = np.append(ids, self._tokenizer.eos_id).tolist().index(self._tokenizer.eos_id)
            text = self._tokenizer.decode(ids[:ended])
            for end in [ends] if isinstance(ends, str) else ends:
                text = text.split(end)[0] if end else text
            texts.append(text)
        return texts
