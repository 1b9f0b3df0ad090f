"""Rounds by Flower: the same bits as in one process, and theta alone in what clients answer."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from matta_jax import federated
from matta_jax.errors import UserError

pytest.importorskip("flwr", reason="the extra `federated` is not installed")

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from matta_jax.federated import flower

ROOT = pathlib.Path(__file__).parents[2]


class GridHere:
    """Nodes in this process: each message goes through the client app, and comes back later ones
    first.
    """

    def __init__(self, run_config, clients):
        self.run_config, self.clients, self.answers = run_config, clients, []
        self.fails = False

    def get_node_ids(self):
        return list(self.clients)

    def send_and_receive(self, messages):
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            TaskIdentity._node_id = node
            if self.fails:
                replies.append(Message(Error(code=0, reason="disk full"), reply_to=message))
                continue
            config = {"client": self.clients[node]}
            context = Context(1, node, config, RecordDict(), self.run_config)
            replies.append(flower.client_app(message, context))
        self.answers += replies
        return replies[::-1]


@pytest.fixture
def make_grid(monkeypatch, tmp_path):
    """`make_grid(config, clients)`: a grid of nodes 70, 71, ..., which are these clients."""
    for name, value in (("_run_id", 1), ("_task_id", 2), ("_node_id", 0)):
        monkeypatch.setattr(TaskIdentity, name, value)

    def make(config, clients=(1, 2, 0)):
        run_config = {
            "config": json.dumps(federated.to_dict(config)),
            "workdir": str(tmp_path / "flower"),
        }
        return GridHere(run_config, {70 + i: client for i, client in enumerate(clients)})

    return make


def serve(grid):
    flower.main(grid, Context(1, 0, {}, RecordDict(), grid.run_config))


@pytest.mark.parametrize("method", federated.METHODS)
def test_a_run_has_the_bits_of_one_process(
    make_config, make_grid, run_quietly, bits_of, tmp_path, method
):
    config = make_config(training__method=method, training__clients_per_round=2)
    serve(make_grid(config))
    run_quietly(config, tmp_path / "here")
    assert bits_of(tmp_path / "flower") == bits_of(tmp_path / "here")


def test_nothing_but_theta_and_numbers_is_answered(make_config, make_grid):
    config = make_config()
    grid = make_grid(config)
    serve(grid)
    theta = flower.pack_theta(federated.init_theta(config))
    shapes = {name: array.shape for name, array in theta.items()}
    trained = 0
    for answer in grid.answers:
        arrays = {name: record for name, record in answer.content.array_records.items()}
        if answer.metadata.message_type == "train":
            trained += 1
            assert list(arrays) == ["theta"]
            assert {n: a.shape for n, a in arrays["theta"].items()} == shapes
        else:
            assert not arrays
    assert trained == 6


def test_theta_is_packed_bit_for_bit(make_config, fingerprints):
    theta = federated.init_theta(make_config())
    theta["header"]["bias"][0] = np.nextafter(np.float32(0), np.float32(1))
    unpacked = flower.unpack_theta(flower.pack_theta(theta))
    assert fingerprints(unpacked) == fingerprints(theta)
    pairs = zip(jax.tree.leaves(theta), jax.tree.leaves(unpacked), strict=True)
    assert not any(np.shares_memory(*pair) for pair in pairs)
    assert flower.unpack_theta(flower.pack_theta({})) == {}


def test_what_is_wrong_is_one_line(make_config, make_grid, monkeypatch):
    config = make_config()
    with pytest.raises(UserError, match=r"SuperNodes are clients \[0, 1\] of clients.count=3"):
        serve(make_grid(config, (0, 1, 1)))
    monkeypatch.setattr(flower, "_JOIN_SECONDS", 0.0)
    with pytest.raises(UserError, match="2 of clients.count=3 SuperNodes have joined"):
        serve(make_grid(config, (0, 1)))
    grid = make_grid(config)
    grid.fails = True
    with pytest.raises(UserError, match=r"the SuperNode \d+ failed \(disk full\)"):
        serve(grid)
    grid = make_grid(config)
    grid.run_config["config"] = "{"
    with pytest.raises(UserError, match="config of the Flower app is no JSON"):
        serve(grid)
    with pytest.raises(UserError, match=r'--node-config "client=0"'):
        serve(make_grid(config, ("first", 1, 2)))


PYPROJECT = """[project]
name = "fedapp"
version = "1.0.0"
description = "Clients that share a small model."
license = {{text = "Apache-2.0"}}
dependencies = []

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "matta_jax.federated.flower:server_app"
clientapp = "matta_jax.federated.flower:client_app"

[tool.flwr.app.config]
config = '{config}'
workdir = "{workdir}"
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.mark.slow
def test_a_server_and_two_nodes_on_loopback_have_the_bits_of_one_process(
    make_config, run_quietly, bits_of, tmp_path
):
    config = make_config(clients__count=2)
    run_quietly(config, tmp_path / "here")
    link, *nodes = free_ports(3)
    app, home = tmp_path / "app", tmp_path / "home"
    (app / "fedapp").mkdir(parents=True)
    (app / "fedapp" / "__init__.py").write_text("")
    text = json.dumps(federated.to_dict(config))
    (app / "pyproject.toml").write_text(PYPROJECT.format(config=text, workdir=tmp_path / "flower"))
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "127.0.0.1:{link}"\n'
        "insecure = true\n"
    )
    bin_folder = os.path.dirname(sys.executable)
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join([str(ROOT), *filter(None, sys.path)]),
    }
    processes = []

    def start(name, *arguments):
        with open(tmp_path / f"{name}.log", "w") as log:
            command = [f"{bin_folder}/flower-{name.rstrip('01')}", "--insecure", *arguments]
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    try:
        start("superlink", f"--port={link}", "--disable-runtime-dependency-installation")
        for client, port in enumerate(nodes):
            start(
                f"supernode{client}",
                f"--superlink=127.0.0.1:{link}",
                f"--port={port}",
                f"--node-config=client={client}",
            )
        deadline = time.monotonic() + 240
        run = [f"{bin_folder}/flwr", "run", str(app), "loop"]
        while subprocess.run(run, env=environment, capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(1)
        state = tmp_path / "flower" / "state.json"
        while not state.is_file() or json.loads(state.read_text())["round"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            time.sleep(3)
        for process in processes:
            process.wait()
    assert bits_of(tmp_path / "flower") == bits_of(tmp_path / "here")
