"""Rounds over a network, by Flower (extra `federated`): the server and the clients as its apps.

A Flower app is a folder whose pyproject.toml names both:

    [tool.flwr.app.components]
    serverapp = "matta_jax.federated.flower:server_app"
    clientapp = "matta_jax.federated.flower:client_app"

    [tool.flwr.app.config]
    config = '{"training": {"rounds": 20}}'
    workdir = "/data/fedmrl"

`config` holds sections as JSON. A SuperNode is a client: `--node-config "client=3"` says which. It
keeps what is private under `workdir` of its machine, and the server what it writes under that of
its own. The bits are those of `federate`: clients and server call the same functions. Whichever
process is killed, `flwr run` goes on from the last round that is whole; a SuperNode is started
again before it, with its client's number and the same workdir.

A client's model is extracted on its machine, when the run has ended: `matta-federate --extract`
wants config.json, state.json and metrics.jsonl of the server's folder beside the client's files.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.federated._config import FederatedConfig, from_dict
from matta_jax.federated._federate import read_clients, run_rounds
from matta_jax.federated._networks import Weights
from matta_jax.federated._participant import Participant, Scores
from matta_jax.federated._state import RunFolder
from matta_jax.nesting import flatten, unflatten

# How long the server waits for clients to join, and how often it looks.
_JOIN_SECONDS = 600.0
_LOOK_SECONDS = 1.0

client_app = ClientApp()
server_app = ServerApp()


def pack_theta(theta: Weights) -> ArrayRecord:
    """Theta as Flower sends it: arrays by path, bit for bit."""
    return ArrayRecord(array_dict={name: Array(array) for name, array in flatten(theta).items()})


def unpack_theta(record: Mapping[str, Any]) -> Weights:
    """Undoes `pack_theta`; the arrays are new ones."""
    return unflatten({name: array.numpy() for name, array in record.items()})


@functools.lru_cache(maxsize=1)
def _participant(config_text: str, workdir: str, client: int) -> tuple[Participant, str]:
    """A client, and the fingerprint of the images that it has its own of."""
    config = _config(config_text)
    parts, fingerprint = read_clients(config)
    folder = RunFolder(storage.resolve(workdir))
    return Participant(config, client, parts[client], folder), fingerprint


def _config(text: str) -> FederatedConfig:
    try:
        values = storage.parse_json(text)
    except ValueError as error:
        raise UserError(f"config of the Flower app is no JSON ({error}); mend it") from None
    return from_dict(values)


def _client_of(context: Context) -> int:
    client = context.node_config.get("client")
    if not storage.is_whole(client):
        raise UserError('a SuperNode must say which client it is: --node-config "client=0"')
    return client


def _asked(context: Context) -> tuple[Participant, str]:
    run = context.run_config
    return _participant(str(run["config"]), str(run["workdir"]), _client_of(context))


@client_app.query()
def describe(message: Message, context: Context) -> Message:
    """Answers which client this is, and of which images."""
    _, fingerprint = _asked(context)
    about = ConfigRecord({"client": _client_of(context), "fingerprint": fingerprint})
    return Message(RecordDict({"about": about}), reply_to=message)


@client_app.query("begin")
def begin(message: Message, context: Context) -> Message:
    """Writes what the client begins with."""
    participant, _ = _asked(context)
    participant.begin(unpack_theta(message.content["theta"]))
    return Message(RecordDict(), reply_to=message)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Learns for a round; theta and the number of images go back."""
    participant, _ = _asked(context)
    ask = message.content["ask"]
    theta = unpack_theta(message.content["theta"])
    theta, images = participant.train(theta, ask["round"], ask["slot"])
    content = {"theta": pack_theta(theta), "about": MetricRecord({"images": images})}
    return Message(RecordDict(content), reply_to=message)


@client_app.evaluate()
def score(message: Message, context: Context) -> Message:
    """Answers its scores."""
    participant, _ = _asked(context)
    theta = unpack_theta(message.content["theta"])
    by_copy, by_mean = participant.score(theta, message.content["ask"]["slot"])
    scores = MetricRecord({"by_copy": by_copy, "by_mean": by_mean})
    return Message(RecordDict({"scores": scores}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The server of a run: as `federate`, of clients that have joined."""
    config = _config(str(context.run_config["config"]))
    folder = storage.resolve(str(context.run_config["workdir"]))
    run_rounds(config, folder, ClientsOfGrid(grid, config.clients.count), print)


def _check_answered(failures: Mapping[int, str]) -> None:
    """Raises UserError for the first node that has failed."""
    for node, reason in failures.items():
        raise UserError(f"the SuperNode {node} failed ({reason}); mend that, and start again")


class ClientsOfGrid:
    """Clients that are SuperNodes."""

    def __init__(self, grid: Grid, count: int):
        self._grid = grid
        nodes = self._joined(count)
        # For a minute a node that was killed still counts as joined. It fails, which is no matter
        # where another has taken its place.
        replies, failures = self._answers({node: ("query", RecordDict()) for node in nodes})
        about = {node: reply["about"] for node, reply in replies.items()}
        self._nodes = {int(facts["client"]): node for node, facts in about.items()}
        clients = sorted(int(facts["client"]) for facts in about.values())
        if clients != list(range(count)):
            _check_answered(failures)
            raise UserError(
                f"SuperNodes are clients {clients} of clients.count={count}; start one for each, "
                "from 0"
            )
        fingerprints = {str(facts["fingerprint"]) for facts in about.values()}
        if len(fingerprints) > 1:
            raise UserError("clients have read different images.source; give all the same")
        [self._fingerprint] = fingerprints

    def _joined(self, count: int) -> list[int]:
        """The nodes, once all clients are there."""
        deadline = time.monotonic() + _JOIN_SECONDS
        while len(nodes := list(self._grid.get_node_ids())) < count:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{len(nodes)} of clients.count={count} SuperNodes have joined in "
                    f"{_JOIN_SECONDS:.0f} s; start the others"
                )
            time.sleep(_LOOK_SECONDS)
        return nodes

    def _answers(
        self, asks: Mapping[int, tuple[str, RecordDict]]
    ) -> tuple[dict[int, RecordDict], dict[int, str]]:
        """What nodes answer, and why others do not, both by node.

        Args:
          asks: a kind of message and its content for each node.
        """
        messages = [
            Message(content, dst_node_id=node, message_type=kind)
            for node, (kind, content) in asks.items()
        ]
        answers = list(self._grid.send_and_receive(messages))
        # Messages get their ids as they are sent. For a node that is gone the SuperLink answers, so
        # that not the source of an answer says whose it is, but what it is an answer to.
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        replies: dict[int, RecordDict] = {}
        failures = dict.fromkeys(asks, "it did not answer")
        for reply in answers:
            node = nodes[reply.metadata.reply_to_message_id]
            if reply.has_error():
                failures[node] = reply.error.reason
            else:
                del failures[node]
                replies[node] = reply.content
        return replies, failures

    def _replies(self, asks: Mapping[int, tuple[str, RecordDict]]) -> dict[int, RecordDict]:
        """What nodes answer, each of which must."""
        replies, failures = self._answers(asks)
        _check_answered(failures)
        return replies

    def _ask(self, kind: str, theta: Weights, asks: Mapping[int, dict[str, Any]]) -> list[Any]:
        """What clients answer, in the order of `asks`."""
        contents = {
            self._nodes[client]: (
                kind,
                RecordDict({"theta": pack_theta(theta), "ask": ConfigRecord(ask)}),
            )
            for client, ask in asks.items()
        }
        replies = self._replies(contents)
        return [replies[self._nodes[client]] for client in asks]

    def fingerprint(self) -> str:
        """As `Clients`."""
        return self._fingerprint

    def begin(self, theta: Weights) -> None:
        """As `Clients`."""
        self._ask("query.begin", theta, {client: {} for client in self._nodes})

    def train(
        self, theta: Weights, round_number: int, slots: Mapping[int, str]
    ) -> list[tuple[Weights, int]]:
        """As `Clients`."""
        asks = {client: {"round": round_number, "slot": slot} for client, slot in slots.items()}
        replies = self._ask("train", theta, asks)
        return [(unpack_theta(reply["theta"]), int(reply["about"]["images"])) for reply in replies]

    def score(self, theta: Weights, slots: Sequence[str]) -> list[Scores]:
        """As `Clients`."""
        asks = {client: {"slot": slot} for client, slot in enumerate(slots)}
        replies = [reply["scores"] for reply in self._ask("evaluate", theta, asks)]
        return [(scores["by_copy"], scores["by_mean"]) for scores in replies]
