"""Counts of a server as Prometheus reads them."""

from collections.abc import Iterable, Mapping

from matta_jax.serving.server._feed import EngineThread

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Samples = Iterable[tuple[Mapping[str, str], float]]
"""Labels and a value."""


def metrics_text(thread: EngineThread) -> str:
    """All metrics of an engine and its thread."""
    engine = thread.engine
    lines: list[str] = []

    def describe(name: str, kind: str, words: str) -> None:
        lines.append(f"# HELP matta_{name} {words}")
        lines.append(f"# TYPE matta_{name} {kind}")

    def count(name: str, labels: Mapping[str, str], value: float) -> None:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"matta_{name}{'{' + shown + '}' if shown else ''} {value}")

    def tell(name: str, kind: str, words: str, samples: _Samples) -> None:
        describe(name, kind, words)
        for labels, value in samples:
            count(name, labels, value)

    def gauge(name: str, words: str, value: float) -> None:
        tell(name, "gauge", words, [({}, value)])

    weights, caches = engine.bytes
    gauge("queue_texts", "Texts that wait for a slot.", engine.num_waiting)
    gauge("slots", "Texts that are written at once, at most.", engine.num_slots)
    gauge("slots_busy", "Texts that are written now.", engine.num_running)
    gauge("weights_bytes", "Of the weights.", weights)
    gauge("caches_bytes", "Of the caches of all slots.", caches)
    tell("refused_total", "counter", "Requests of a full queue.", [({}, thread.num_refused)])

    usages = {spec: engine.usage[spec] for spec in engine.specs}
    for name, attribute, words in (
        ("tokens_total", "tokens", "Tokens that were written."),
        ("prompt_tokens_total", "read", "Tokens of prompts that were read."),
        ("engine_seconds_total", "seconds", "Seconds of the programs of a model."),
        ("engine_turns_total", "turns", "Programs that drew tokens."),
        ("draft_proposed_total", "proposed", "Tokens that a draft proposed."),
        ("draft_accepted_total", "accepted", "Proposed tokens that stood."),
    ):
        samples = [
            ({"spec": spec}, float(getattr(usage, attribute))) for spec, usage in usages.items()
        ]
        tell(name, "counter", words, samples)

    totals = thread.totals
    reasons = [
        ({"spec": spec, "reason": reason}, float(count))
        for spec, total in totals.items()
        for reason, count in sorted(total.reasons.items())
    ]
    tell("texts_total", "counter", "Texts that ended, and why.", reasons)
    # A summary without quantiles: seconds over texts is the mean.
    for name, attribute, words in (
        ("text_seconds", "seconds", "Seconds from asking to the end of a text."),
        ("first_token_seconds", "first_seconds", "Seconds from asking to the first token."),
    ):
        describe(name, "summary", words)
        for spec, total in totals.items():
            texts = total.num_begun if name.startswith("first") else sum(total.reasons.values())
            count(f"{name}_sum", {"spec": spec}, getattr(total, attribute))
            count(f"{name}_count", {"spec": spec}, texts)
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
