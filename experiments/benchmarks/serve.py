"""A server under load, on loopback: latency by sub-model, what 8 slots give against one by one, and
slots that are given back.

    python experiments/benchmarks/serve.py --checkpoint=runs/quickstart

First one client and then 8 ask the TA for texts of 64 tokens. Then 64 clients at once send 2,000
requests of mixed budgets; of them one in ten leaves in mid-text, one in fifty reads slowly, and one
in fifty sends a body that is too large. At the end each request must have had its answer, and no
slot be in use. Each program is compiled before it is timed.
"""

import argparse
import collections
import contextlib
import http.client
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import threading
import time

SPECS = ("student", "d_ff=96", "d_ff=192", "ta")
TOKENS = 64
BODY_KB = 64


@contextlib.contextmanager
def server(checkpoint, slots, arguments):
    """A server of its own; yields its port."""
    command = [sys.executable, "-m", "matta_jax.bin.serve", f"--checkpoint={checkpoint}"]
    command += ["--port=0", f"--slots={slots}", f"--max_body_kb={BODY_KB}", "--queue=256"]
    command += [f"--sub_model={spec}" for spec in SPECS]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if address := re.search(r"serving at http://127\.0\.0\.1:(\d+)", line):
                break
        yield int(address[1])
        process.terminate()
        assert process.wait(60) == 0, "SIGTERM did not drain"
    finally:
        process.kill()


def get(port, path):
    """A page's text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def ask(port, body, *, chunks=None, pause=0.0):
    """Asks for a text; returns its status and what was read: all, or some chunks of a stream, with
    a pause after each.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body))
        answer = connection.getresponse()
        if chunks is None and not pause:
            return answer.status, answer.read()
        lines = []
        while chunks is None or len(lines) < 2 * chunks:
            line = answer.readline()
            if not line:
                break
            lines.append(line)
            time.sleep(pause)
        return answer.status, b"".join(lines)


def body_of(rng, sizes, **fields):
    """A request of some budget; a seed makes it one that can be repeated."""
    prompt = rng.choice(["def ", "class A:\n    ", "import os\n\n\ndef main(", "for i in range("])
    values = {"prompt": prompt, "max_tokens": rng.randint(8, TOKENS), "temperature": 0.8}
    return values | {"seed": rng.randrange(2**20), "max_params": rng.choice(sizes)} | fields


def rate(port, clients, requests):
    """Tokens a second of so many clients at once, each with the TA's texts one after another."""

    def work(client):
        for i in range(requests // clients):
            body = {"model": "ta", "prompt": "def ", "max_tokens": TOKENS, "temperature": 0.8}
            status, answer = ask(port, body | {"seed": 1000 * client + i})
            assert status == 200, answer
            counts.append(json.loads(answer)["usage"]["completion_tokens"])

    counts = []
    start_time = time.perf_counter()
    run_all(work, clients)
    return sum(counts) / (time.perf_counter() - start_time)


def run_all(work, count):
    """Calls `work(i)` in threads of their own, and waits."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def load(port, sizes, clients, requests, seed):
    """Seconds of each text by sub-model, and how many requests ended in which way."""
    seconds, outcomes = collections.defaultdict(list), collections.Counter()
    numbers, lock = iter(range(requests)), threading.Lock()

    def work(client):
        rng = random.Random(seed * 1000 + client)
        while True:
            with lock:
                if next(numbers, None) is None:
                    return
            chance = rng.random()
            body = body_of(rng, sizes)
            start_time = time.perf_counter()
            if chance < 0.1:
                status, _ = ask(port, body | {"stream": True}, chunks=rng.randint(0, 2))
                outcome = f"left ({status})"
            elif chance < 0.12:
                status, text = ask(port, body | {"stream": True}, pause=0.05)
                outcome = f"slow ({status})" if b"[DONE]" in text else "slow, lost"
            elif chance < 0.14:
                with contextlib.suppress(ConnectionError):
                    status, _ = ask(port, body | {"user": "x" * (2048 * BODY_KB)})
                outcome = "too large (413)" if status == 413 else f"too large, {status}"
            else:
                status, text = ask(port, body)
                outcome = str(status)
            with lock:
                outcomes[outcome] += 1
                if outcome == "200":
                    spec = json.loads(text)["model"]
                    seconds[spec].append(time.perf_counter() - start_time)

    run_all(work, clients)
    return seconds, outcomes


def quantile(values, share):
    """The value that a share of all does not exceed."""
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def metric(text, name):
    """The sum of a metric over its labels."""
    found = re.findall(rf"^matta_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def main():
    """Measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft", help="sub-model that proposes tokens")
    parser.add_argument("--output", default="runs/benchmarks/serve.json")
    flags = parser.parse_args()
    arguments = [f"--draft={flags.draft}"] if flags.draft else []
    result = {}
    with server(flags.checkpoint, flags.slots, arguments) as port:
        models = json.loads(get(port, "/v1/models"))["data"]
        sizes = [model["parameters"] for model in models]
        # Programs are for lengths of caches and turns: they are compiled here.
        load(port, sizes, 16, 100, seed=1)

        rates = {clients: [] for clients in (1, flags.slots)}
        for _ in range(flags.rounds):
            for clients, values in rates.items():
                values.append(rate(port, clients, 4 * flags.slots))
        result["tokens a second"] = {
            clients: statistics.median(values) for clients, values in rates.items()
        }
        one, many = result["tokens a second"].values()
        print(
            f"one by one {one:.0f} tokens/s, {flags.slots} at once {many:.0f}: {many / one:.2f} x"
        )

        before = get(port, "/metrics")
        start_time = time.perf_counter()
        seconds, outcomes = load(port, sizes, flags.clients, flags.requests, seed=0)
        wall = time.perf_counter() - start_time
        time.sleep(1)
        after = get(port, "/metrics")
        tokens = metric(after, "tokens_total") - metric(before, "tokens_total")
        ended = metric(after, "texts_total") - metric(before, "texts_total")
        print(f"{flags.requests} requests of {flags.clients} clients: {wall:.1f} s")
        print(f"{tokens / wall:.0f} tokens/s")
        print(dict(outcomes))
        large = sum(count for outcome, count in outcomes.items() if outcome.startswith("too large"))
        print(
            f"slots in use {metric(after, 'slots_busy'):.0f}, "
            f"waiting {metric(after, 'queue_texts'):.0f}, "
            f"texts that ended {ended:.0f} of {flags.requests - large}"
        )
        print("| sub-model | texts | p50, s | p99, s |\n|---|---|---|---|")
        rows = []
        for model in models:
            values = seconds[model["id"]]
            row = [len(values), quantile(values, 0.5), quantile(values, 0.99)]
            rows.append([model["id"], *row])
            print(f"| {model['id']} | {row[0]} | {row[1]:.2f} | {row[2]:.2f} |")
        accepted, proposed = (metric(after, f"draft_{w}_total") for w in ("accepted", "proposed"))
        if proposed:
            print(f"drafts: {accepted / proposed:.2f} of {proposed:.0f} proposed tokens stood")
        result |= {"rows": rows, "outcomes": dict(outcomes), "seconds": wall, "tokens": tokens}
        assert metric(after, "slots_busy") == metric(after, "queue_texts") == 0
        assert ended == flags.requests - large and "slow, lost" not in outcomes
    output = pathlib.Path(flags.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
