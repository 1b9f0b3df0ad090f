"""Rounds by Flower's own processes: a server and two nodes, of which any may be killed.

Whatever is killed, the run that is started again ends with the bits of one process.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from matta_jax import federated

pytest.importorskip("flwr", reason="the extra `federated` is not installed")

# Each message is a process, which imports JAX anew.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 600

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


def wait_until(is_so):
    deadline = time.monotonic() + PATIENCE
    while not (answer := is_so()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return answer


class Network:
    """A SuperLink and two SuperNodes on loopback, each the first process of a group."""

    def __init__(self, folder, config):
        self.folder, self.workdir = folder, folder / "flower"
        self.link_port, *self.node_ports = free_ports(3)
        self.groups = {}
        app, home = folder / "app", folder / "home"
        (app / "fedapp").mkdir(parents=True)
        (app / "fedapp" / "__init__.py").write_text("")
        text = json.dumps(federated.to_dict(config))
        (app / "pyproject.toml").write_text(PYPROJECT.format(config=text, workdir=self.workdir))
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "loop"\n[superlink.loop]\n'
            f'address = "127.0.0.1:{self.link_port}"\ninsecure = true\n'
        )
        self.bin = os.path.dirname(sys.executable)
        self.environment = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join([str(ROOT), *filter(None, sys.path)]),
        }

    def start(self, kind, name, *arguments):
        command = [f"{self.bin}/flower-{kind}", "--insecure", *arguments]
        with open(self.folder / f"{name}.log", "a") as log:
            self.groups[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def start_link(self):
        flag = "--disable-runtime-dependency-installation"
        self.start("superlink", "link", f"--port={self.link_port}", flag)

    def start_node(self, client):
        self.start(
            "supernode",
            f"node{client}",
            f"--superlink=127.0.0.1:{self.link_port}",
            f"--port={self.node_ports[client]}",
            f"--node-config=client={client}",
        )

    def kill_node(self, client):
        """The node, and the process in which its client is learning."""
        process = self.groups.pop(f"node{client}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_server(self):
        """The process in which the rounds are run: it holds the lock of their folder."""
        os.kill(int((self.workdir / ".lock").read_text()), signal.SIGKILL)

    def flwr(self, command, *arguments):
        line = [f"{self.bin}/flwr", command, *arguments, "loop", "--format=json"]
        return subprocess.run(line, env=self.environment, capture_output=True, text=True)

    def run(self):
        wait_until(lambda: not self.flwr("run", str(self.folder / "app")).returncode)

    def runs(self):
        return json.loads(self.flwr("list").stdout)["runs"]

    def has_ended(self):
        return all(run["status"].startswith("finished") for run in self.runs())

    def round(self):
        state = self.workdir / "state.json"
        return json.loads(state.read_text())["round"] if state.is_file() else 0

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.groups.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            time.sleep(3)
        for process in self.groups.values():
            process.wait()


@pytest.fixture
def config(make_config):
    return make_config(clients__count=2, training__rounds=3)


@pytest.fixture
def network(config, tmp_path):
    network = Network(tmp_path, config)
    try:
        network.start_link()
        for client in (0, 1):
            network.start_node(client)
        yield network
    finally:
        network.stop()


@pytest.fixture
def expected(config, run_quietly, bits_of, tmp_path):
    """The bits of a run in one process."""
    run_quietly(config, tmp_path / "here")
    return bits_of(tmp_path / "here")


def is_learning(network, client, number):
    """Whether a client has been asked for a round, and has not answered."""
    log = (network.folder / f"node{client}.log").read_text()
    return log.count("Receiving: train message") == number > log.count("Sending: train message")


def test_a_run_that_nobody_kills_has_the_bits_of_one_process(network, expected, bits_of):
    network.run()
    wait_until(lambda: network.round() == 3)
    assert bits_of(network.workdir) == expected


def test_a_server_that_is_killed_goes_on_to_the_same_bits(network, expected, bits_of):
    network.run()
    wait_until(lambda: network.round() == 1 and is_learning(network, 1, 2))
    network.kill_server()
    assert network.round() == 1
    # At once: the client may still do in vain what the server that was had asked it for.
    network.run()
    wait_until(lambda: network.round() == 3)
    assert bits_of(network.workdir) == expected
    assert len(network.runs()) == 2


def test_a_client_that_is_killed_goes_on_to_the_same_bits(network, expected, bits_of):
    network.run()
    wait_until(lambda: network.round() == 1 and is_learning(network, 1, 2))
    network.kill_node(1)
    network.start_node(1)
    # The server waits for the node that was, until that is taken for gone.
    wait_until(network.has_ended)
    [ended] = network.runs()
    assert re.search(r"SuperNode \d{9,} failed \(.*Node Unavailable", ended["status-details"])
    assert network.round() == 1
    network.run()
    wait_until(lambda: network.round() == 3)
    assert bits_of(network.workdir) == expected
    assert len(network.runs()) == 2
