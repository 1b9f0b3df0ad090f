"""Rounds by Flower: the same bits as in one process, and theta alone in what clients answer."""

import json

import jax
import numpy as np
import pytest

from matta_jax import federated
from matta_jax.errors import UserError

pytest.importorskip("flwr", reason="the extra `federated` is not installed")

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from matta_jax.federated import flower


class GridHere:
    """Nodes in this process: each message goes through the client app, and comes back later ones
    first.
    """

    def __init__(self, run_config, clients):
        self.run_config, self.clients, self.answers = run_config, clients, []
        self.fails, self.gone = False, ()

    def get_node_ids(self):
        return list(self.clients)

    def send_and_receive(self, messages):
        replies = []
        for message in messages:
            # As Flower's grid does.
            message.metadata.__dict__["_message_id"] = message.object_id
            node = message.metadata.dst_node_id
            TaskIdentity._node_id = node
            if self.fails or node in self.gone:
                reply = Message(Error(code=0, reason="disk full"), reply_to=message)
                if node in self.gone:
                    # The SuperLink's, which answers in its place.
                    reply.metadata.__dict__["_src_node_id"] = 1
                replies.append(reply)
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


def test_a_node_that_another_has_taken_the_place_of_is_left_out(
    make_config, make_grid, run_quietly, bits_of, tmp_path
):
    """Flower takes a node that was killed for one that is there, for a while."""
    config = make_config(training__rounds=1)
    grid = make_grid(config, (0, 1, 1, 2))
    grid.gone = (71,)
    serve(grid)
    run_quietly(config, tmp_path / "here")
    assert bits_of(tmp_path / "flower") == bits_of(tmp_path / "here")
    # Of the two that are gone the client is here no more.
    grid.gone = (71, 72)
    with pytest.raises(UserError, match=r"the SuperNode 71 failed \(disk full\); mend that, and"):
        serve(grid)
    grid.gone = (72, 73)
    with pytest.raises(UserError, match=r"the SuperNode 72 failed \(disk full\); mend that, and"):
        serve(grid)


def test_what_is_wrong_is_one_line(make_config, make_grid, monkeypatch):
    config = make_config()
    with pytest.raises(UserError, match=r"SuperNodes are clients \[0, 1, 1\] of clients.count=3"):
        serve(make_grid(config, (0, 1, 1)))
    with pytest.raises(UserError, match=r"SuperNodes are clients \[0, 1, 2, 2\] of clients.cou"):
        serve(make_grid(config, (0, 1, 2, 2)))
    monkeypatch.setattr(flower, "_JOIN_SECONDS", 0.0)
    with pytest.raises(UserError, match="2 of clients.count=3 SuperNodes have joined"):
        serve(make_grid(config, (0, 1)))
    grid = make_grid(config)
    grid.fails = True
    with pytest.raises(
        UserError, match=r"the SuperNode \d+ failed \(disk full\); mend that, and start"
    ):
        serve(grid)
    grid = make_grid(config)
    grid.run_config["config"] = "{"
    with pytest.raises(UserError, match="config of the Flower app is no JSON"):
        serve(grid)
    with pytest.raises(UserError, match=r'--node-config "client=0"'):
        serve(make_grid(config, ("first", 1, 2)))
