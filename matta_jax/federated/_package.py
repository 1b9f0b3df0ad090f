"""A client's model by itself: a folder that classifies images without the run that it is of.

    client.json    what it is and reads, how good it is, the fingerprint of each array; a seal
    weights.npz    `theta`, its copy of the shared model, and `weights`, its private ones
    README.md      the same for people

It is what the client serves with: its copy of the shared model is that of its last training, and
not the server's mean. SGD's velocity stays in the run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from matta_jax import storage
from matta_jax.config import VitConfig
from matta_jax.errors import DamageError, UserError, shorten
from matta_jax.federated._card import client_card
from matta_jax.federated._client import PrivateState, inference_logits
from matta_jax.federated._config import FederatedConfig, ImagesConfig, from_dict, to_dict
from matta_jax.federated._networks import ARCHITECTURES, SCALING, SHARED, Architecture, Weights
from matta_jax.federated._state import Commit, RunFolder, read_arrays, write_tree
from matta_jax.nesting import flatten, unflatten

_MANIFEST = "client.json"
_WEIGHTS = "weights.npz"
_CARD = "README.md"

_VERSION = 1
_DIGEST_BYTES = 16
_MEND = "extract it again"


@dataclasses.dataclass(frozen=True)
class ClientModel:
    """A client's model.

    Attributes:
      path: its folder.
      manifest: its `client.json`: `method`, `client`, `round`, `last_trained` (the round of its
        last training, or None), `accuracy` (the share of its test images that it classifies
        rightly), `parameters`, `networks`, `images`, `arrays`, `run`.
      theta: its copy of the shared small model.
      weights: its private ones.
    """

    path: storage.Path
    manifest: dict[str, Any]
    theta: Weights
    weights: Weights

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The logits [n, classes] of images, float32: the bits that the client has in its run.

        Args:
          images: uint8 [n, H, W, C], as `manifest["images"]` has it.

        Raises:
          UserError: they are of another type or size.
        """
        shape = tuple(self.manifest["images"]["shape"])
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise UserError(
                f"images of {images.dtype} {images.shape[1:]}: model={str(self.path)!r} reads "
                f"uint8 {shape}; scale them"
            )
        return inference_logits(self.manifest["method"], self.theta, self.weights, images)

    @property
    def classifier_section(self) -> VitConfig:
        """As `ImagesConfig.classifier_section`."""
        reads = self.manifest["images"]
        size, _, channels = reads["shape"]
        classes = reads["num_classes"]
        fields = ImagesConfig(image_size=size, num_channels=channels, num_classes=classes)
        return fields.classifier_section


class _Served(NamedTuple):
    """What a client serves with in a run, and how well."""

    config: FederatedConfig
    commit: Commit
    state: PrivateState
    accuracy: float
    last_trained: int | None


def extract_client(
    workdir: str | storage.Path, client: int, output: str | storage.Path
) -> ClientModel:
    """Writes the model of a client, as it is after the last round of a run that is whole; the run
    may be under way.

    It is written beside its place, read back, and only then moved there.

    Args:
      workdir: the folder of the run.
      client: its number, from 0.
      output: the folder of the model, which must not be there yet.

    Returns:
      The model, as it was read back.

    Raises:
      UserError: the folder holds no run, or none with a finished round; there is no such client, or
        its files are on another machine; the output exists or cannot be written.
      DamageError: what the folder holds cannot be read.
    """
    folder = storage.resolve(workdir)
    served = _read_served(folder, client)
    target = storage.resolve(output)
    if target.exists():
        raise UserError(f"output={str(target)!r} exists; name another folder, or remove it")

    tree = {"theta": served.state.copy, "weights": served.state.weights}
    manifest = _sealed(_describe(served, folder, client, flatten(tree)))
    with (
        storage.writing("output", target, "name another"),
        storage.new_folder(target, last=_MANIFEST) as building,
    ):
        write_tree(building / _WEIGHTS, tree)
        storage.replace_text(building / _CARD, client_card(manifest))
        text = storage.json_text(manifest, indent=1)
        storage.replace_text(building / _MANIFEST, text + "\n")
        model = load_client(building)
    # Its path was that of the folder beside its place.
    return dataclasses.replace(model, path=target)


def _read_served(folder: storage.Path, client: int) -> _Served:
    config = _read_config(folder)
    count = config.clients.count
    if not storage.is_whole(client) or not 0 <= client < count:
        raise UserError(
            f"client={shorten(client)} must be a whole number from 0 to {count - 1}, as "
            f"clients.count={count}; name one of these"
        )

    run = RunFolder(folder)
    commit = run.read_commit(count)
    if commit is None or commit.round == 0:
        raise UserError(
            f"workdir={str(folder)!r} has no finished round; start the run again, and wait for one"
        )
    if not run.has_client(client):
        raise UserError(
            f"workdir={str(folder)!r} has no files of client={client}: through Flower they stay on "
            "its own machine; copy config.json, state.json and metrics.jsonl to its workdir there "
            "when the run has ended, and name that"
        )

    # A run under way may write into the slot that was named, once another round has ended.
    is_settled = False
    while not is_settled:
        state = run.read_client(client, commit.clients[client])
        latest = run.read_commit(count)
        is_settled = latest in (None, commit)
        commit = latest or commit
    return _Served(config, commit, state, *_read_scores(folder, commit.round, client))


def _read_scores(folder: storage.Path, last_round: int, client: int) -> tuple[float, int | None]:
    """A client's accuracy after a round, and the round of its last training. Raises DamageError."""
    rows = RunFolder(folder).read_metrics(last_round)
    try:
        trained = [row["round"] for row in rows if client in row["clients"]]
        is_there = rows[-1]["round"] == last_round
        accuracy = float(rows[-1]["accuracies"][client])
    except (LookupError, ValueError, TypeError):
        is_there = False
    if not is_there:
        raise DamageError(
            f"{folder / 'metrics.jsonl'} is damaged (no scores of round {last_round}); bring it "
            "back, or start again in another workdir"
        )
    return accuracy, trained[-1] if trained else None


def _read_config(folder: storage.Path) -> FederatedConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"workdir={str(folder)!r} holds no federated run (no config.json); name that of "
            "matta-federate"
        )
    try:
        return from_dict(storage.read_json(path))
    except (OSError, ValueError, TypeError, AttributeError, UserError):
        raise DamageError(
            f"{path} is no config of a federated run; bring it back, or name another workdir"
        ) from None


def _describe(
    served: _Served, folder: storage.Path, client: int, arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The manifest of a client's model, without its seal."""
    config, commit = served.config, served.commit
    images = config.images
    return {
        "version": _VERSION,
        "method": config.training.method,
        "client": client,
        "round": commit.round,
        "last_trained": served.last_trained,
        "accuracy": served.accuracy,
        "parameters": sum(array.size for array in arrays.values()),
        "networks": _networks(config, client),
        "images": {
            "shape": [images.image_size, images.image_size, images.num_channels],
            "dtype": "uint8",
            "scaling": SCALING,
            "num_classes": images.num_classes,
        },
        "arrays": _about(arrays),
        "run": {
            "workdir": str(folder),
            "images_fingerprint": commit.fingerprint,
            "config": to_dict(config),
        },
    }


def _networks(config: FederatedConfig, client: int) -> dict[str, Any]:
    """The networks that read images, each None where the method has none."""
    training = config.training
    name = config.clients.architecture(client)
    private = _network(name, ARCHITECTURES[name], training.d2)
    shared = _network("shared", SHARED, training.d1)
    return {
        "private": None if training.method == "fedavg" else private,
        "shared": None if training.method == "local" else shared,
    }


def _network(name: str, architecture: Architecture, features: int) -> dict[str, Any]:
    return {
        "name": name,
        "channels": list(architecture.channels),
        "hidden": list(architecture.hidden),
        "features": features,
    }


def _about(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Shape, type and fingerprint of each array, the last of its bytes in row-major order."""
    return {
        path: {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "fingerprint": _digest(np.ascontiguousarray(array).tobytes()),
        }
        for path, array in sorted(arrays.items())
    }


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def _sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a hash over all of it."""
    about = {name: value for name, value in manifest.items() if name != "seal"}
    return about | {"seal": _digest(json.dumps(about, sort_keys=True).encode())}


def is_client(folder: str | storage.Path) -> bool:
    """Whether a folder is that of a client's model."""
    return (storage.resolve(folder) / _MANIFEST).is_file()


def load_client(folder: str | storage.Path) -> ClientModel:
    """Reads a client's model, and compares each array with its fingerprint.

    Raises:
      UserError: it is no client's model.
      DamageError: it is damaged.
    """
    path = storage.resolve(folder)
    if not is_client(path):
        raise UserError(
            f"model={str(folder)!r} is no client of a federated run (no {_MANIFEST}); make one "
            "with matta-federate --extract"
        )
    manifest = _read_manifest(path)
    arrays = read_arrays(path / _WEIGHTS, _MEND)
    about = _about(arrays)
    for name in sorted({*about, *manifest["arrays"]}):
        if about.get(name) != manifest["arrays"].get(name):
            raise DamageError(
                f"{path / _WEIGHTS} is damaged: its array {shorten(name)} is not what was written; "
                f"{_MEND}"
            )

    tree = unflatten(arrays)
    # Empty parts have no arrays, and no names in a file.
    return ClientModel(path, manifest, tree.get("theta", {}), tree.get("weights", {}))


def _read_manifest(path: storage.Path) -> dict[str, Any]:
    file = path / _MANIFEST
    try:
        manifest = storage.read_json(file)
        is_intact = _sealed(manifest)["seal"] == manifest["seal"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        detail = " ".join(str(error).split())[:120]
        raise DamageError(f"{file} is damaged ({detail}); {_MEND}") from None
    if not is_intact:
        raise DamageError(f"{file} is damaged (it was changed); {_MEND}")
    if manifest["version"] != _VERSION:
        raise UserError(
            f"{file} is of version {manifest['version']}, and this release reads {_VERSION}; load "
            "it with the release that wrote it"
        )
    return manifest
