"""Tokens per CPU-second of an engine: slots against one text after another, a draft against none
(benchmark 23), and the memory of its models.

    matta-quickstart --config=configs/quickstart.py --workdir=runs/quickstart
    python experiments/benchmarks/engine.py --checkpoint=runs/quickstart

A round writes the same texts by each contender, after a round that compiles; the texts must be the
same. Without `--sub_model` all texts are the TA's; with several, requests take them in turn.
"""

import argparse
import sys

import harness  # isort: skip  (Pins the process before its children start.)

PROMPTS = (
    "def main(", "import os\n", "class Foo:\n    def __init__(self", "    return ",
    "for i in range(", "if __name__ ==", "try:\n", "raise ",
)  # fmt: skip
DRAFTS = (2, 4, 8)


def contender(models, tokenizer, flags, *, slots, draft=None):
    """Returns a contender that writes all texts, and its engine."""
    from matta_jax.serving import Engine, Request, Sampling, Vocabulary

    engine = Engine(models, Vocabulary(tokenizer.eos_id, tokenizer), slots=slots, draft=draft)
    specs = flags.sub_model or ["ta"]
    prompts = flags.prompt or PROMPTS

    def write():
        completions = []
        for i in range(flags.texts):
            ids = (tokenizer.start_id, *tokenizer.encode(prompts[i % len(prompts)]).tolist())
            sampling = Sampling(flags.temperature, seed=i)
            spec = specs[i % len(specs)]
            completions.append(engine.submit(Request(ids, spec, flags.num_tokens, sampling)))
        engine.run()
        return [completion.ids for completion in completions]

    return write, engine


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--sub_model", action="append")
    parser.add_argument("--draft", default="student")
    parser.add_argument("--prompt", action="append", help="begins texts, in turn with the others")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--num_tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="runs/benchmarks/engine.json")
    flags = parser.parse_args()

    from matta_jax.packages import load_in_place
    from matta_jax.serving import Draft
    from matta_jax.tokenizers import fitting_tokenizer

    specs = list(dict.fromkeys([*(flags.sub_model or ["ta"]), flags.draft]))
    models = load_in_place(flags.checkpoint, specs)
    config = models[0].config
    tokenizer = fitting_tokenizer(config.data.tokenizer, config.model.vocab_size)

    contenders, engines = {}, {}
    settings = {"one by one": (1, None), f"{flags.slots} slots": (flags.slots, None)}
    for count in DRAFTS:
        draft = Draft(flags.draft, count, is_fixed=True)
        settings[f"{flags.slots} slots, {count} drafted"] = (flags.slots, draft)
        settings[f"one by one, {count} drafted"] = (1, draft)
    for name, (slots, draft) in settings.items():
        contenders[name], engines[name] = contender(
            models, tokenizer, flags, slots=slots, draft=draft
        )
    texts = {name: write() for name, write in contenders.items()}
    if any(ids != texts["one by one"] for ids in texts.values()):
        sys.exit("contenders write other texts")

    num_tokens = sum(len(ids) for ids in texts["one by one"])
    rows = []
    times = harness.times_of(contenders, rounds=flags.rounds)
    for name, (seconds, spread) in times.items():
        usages = engines[name].usage.values()
        proposed = sum(usage.proposed for usage in usages)
        weights, caches = engines[name].bytes
        rows.append(
            {
                "engine": name,
                "tokens / CPU-s": num_tokens / seconds,
                "spread": spread,
                "x one by one": times["one by one"][0] / seconds,
                "stood": sum(usage.accepted for usage in usages) / proposed if proposed else None,
                "MB weights": weights / 1e6,
                "MB caches": caches / 1e6,
            }
        )
    harness.print_table(rows)
    harness.write_results(flags.output, {"rows": rows})


if __name__ == "__main__":
    main()
