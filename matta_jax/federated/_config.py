"""Every field of a federated run: three sections, apart from those of a nest's training."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from matta_jax.config import Section, VitConfig, field, unknown_field
from matta_jax.errors import UserError, did_you_mean, shorten
from matta_jax.federated._networks import ARCHITECTURES, POOLED

METHODS = ("fedmrl", "fedmrl_plain", "fedavg", "local")
"""How clients learn, as `training.method` names it."""


@dataclasses.dataclass(frozen=True)
class ImagesConfig(Section):
    """What is read, and what each client is tested on."""

    section = "images"
    # Free: a run keeps the fingerprint of its images, wherever they lie.
    source: str = field(
        "images:data/images.npz",
        "images:FILE.npz of x and y, or images:FOLDER by class.",
        is_free=True,
    )
    image_size: int = field(32, "Height and width of an image, in pixels.", minimum=8, maximum=4096)
    num_channels: int = field(3, "Numbers of a pixel.", minimum=1, maximum=4096)
    num_classes: int = field(10, "Classes that images are of.", minimum=2, maximum=2**16)
    eval_fraction: float = field(
        0.2, "Share of each client's images that it is tested on.", above=0.0, maximum=0.9
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % POOLED:
            raise UserError(
                f"images.image_size={self.image_size} must be a multiple of {POOLED}, as networks "
                "halve it; scale the images"
            )

    @property
    def classifier_section(self) -> VitConfig:
        """The section of a classifier of such images: what reads images takes their sizes from
        that.
        """
        return VitConfig(
            image_size=self.image_size,
            patch_size=self.image_size,
            num_channels=self.num_channels,
            image_classes=self.num_classes,
        )


@dataclasses.dataclass(frozen=True)
class ClientsConfig(Section):
    """Who takes part, and which images each client has."""

    section = "clients"
    count: int = field(10, "Clients.", minimum=1, maximum=10_000)
    architectures: str = field(
        ",".join(ARCHITECTURES),
        f"Private networks of the clients in turn, by commas: {', '.join(ARCHITECTURES)}.",
    )
    partition: str = field(
        "dirichlet",
        "How images are dealt out: shares of each class by Dirichlet(alpha), or some classes each.",
        choices=("dirichlet", "classes"),
    )
    alpha: float = field(
        0.3,
        "Of the Dirichlet partition: the less, the less alike are clients.",
        above=0.0,
        smallest=1e-3,
        maximum=1e6,
    )
    classes_per_client: int = field(
        2, "Of the partition by classes: how many a client has.", minimum=1, maximum=2**16
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            if name not in ARCHITECTURES:
                raise UserError(
                    f"clients.architectures={shorten(self.architectures)} names {shorten(name)}, "
                    f"which is none of {', '.join(ARCHITECTURES)}"
                    f"{did_you_mean(name, ARCHITECTURES)}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The architectures, in turn."""
        return tuple(name.strip() for name in self.architectures.split(","))

    def architecture(self, client: int) -> str:
        """The architecture of a client."""
        return self.names[client % len(self.names)]


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Section):
    """How clients learn, and for how long."""

    section = "training"
    method: str = field(
        "fedmrl",
        "fedmrl; fedmrl_plain, without its nested loss; fedavg of the shared small model alone; "
        "local, each private network by itself.",
        choices=METHODS,
    )
    rounds: int = field(20, "Rounds.", minimum=1, maximum=10**6, is_free=True)
    clients_per_round: int | None = field(
        None, "Clients that are drawn for a round; None: all.", minimum=1, maximum=10_000
    )
    local_epochs: int = field(
        1, "Passes over its images by a client in a round.", minimum=1, maximum=10_000
    )
    batch_size: int = field(32, "Images of a step.", minimum=1, maximum=2**20)
    learning_rate: float = field(0.01, "Of SGD.", above=0.0, maximum=1e3)
    momentum: float = field(0.9, "Of SGD.", minimum=0.0, maximum=0.999999)
    d1: int = field(
        32, "Numbers of a representation that the shared header reads.", minimum=1, maximum=2**16
    )
    d2: int = field(
        128, "Numbers of a representation that a private header reads.", minimum=1, maximum=2**16
    )
    seed: int = field(
        0, "Of weights, partition, clients' turns and batches.", minimum=0, maximum=2**31 - 1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d1 > self.d2:
            raise UserError(
                f"training.d1={self.d1} must be at most training.d2={self.d2}: the shared header "
                "reads the first numbers of what the private ones read; lower it"
            )


@dataclasses.dataclass(frozen=True)
class FederatedConfig:
    """A federated run. One that exists is valid."""

    images: ImagesConfig = ImagesConfig()
    clients: ClientsConfig = ClientsConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        drawn, count = self.training.clients_per_round, self.clients.count
        if drawn is not None and drawn > count:
            raise UserError(
                f"training.clients_per_round={drawn} must be at most clients.count={count}; lower "
                "it, or leave it out for all"
            )
        self._check_classes()

    def _check_classes(self) -> None:
        if self.clients.partition != "classes":
            return
        share, classes = self.clients.classes_per_client, self.images.num_classes
        if share > classes:
            raise UserError(
                f"clients.classes_per_client={share} must be at most images.num_classes={classes}; "
                "lower it"
            )
        if share * self.clients.count < classes:
            raise UserError(
                f"clients.classes_per_client={share} of clients.count={self.clients.count} cover "
                f"not all of images.num_classes={classes}; raise one of the two"
            )

    @property
    def clients_per_round(self) -> int:
        """Clients that are drawn for a round."""
        return self.training.clients_per_round or self.clients.count


SECTIONS: dict[str, type[Section]] = {
    declared.name: declared.type  # type: ignore[misc]
    for declared in dataclasses.fields(FederatedConfig)
}
"""The sections of a federated run, by name."""


def to_dict(config: FederatedConfig) -> dict[str, dict[str, Any]]:
    """Returns plain nested dicts, fit for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> FederatedConfig:
    """Builds a config from nested mappings; fields left out take their defaults.

    Raises:
      UserError: an unknown section or field, a wrong type, a bad range, or fields that do not fit
        each other.
    """
    sections = {}
    for name, fields in values.items():
        if name not in SECTIONS:
            raise UserError(
                f"unknown config section {shorten(name)}{did_you_mean(name, SECTIONS)}; sections "
                f"of a federated run: {', '.join(SECTIONS)}"
            )
        if not isinstance(fields, Mapping):
            raise UserError(f"config section {name}={shorten(fields)} must hold fields")
        declared_names = {declared.name for declared in dataclasses.fields(SECTIONS[name])}
        for field_name in fields:
            if field_name not in declared_names:
                raise UserError(unknown_field(f"{name}.{field_name}", SECTIONS))
        sections[name] = SECTIONS[name](**fields)
    return FederatedConfig(**sections)  # type: ignore[arg-type]


def override(config: FederatedConfig, values: Mapping[str, Any]) -> FederatedConfig:
    """Returns `config` with other values of some fields, `section.field` -> value. Raises UserError
    as `from_dict` does.
    """
    nested = to_dict(config)
    for name, value in values.items():
        section, _, field_name = name.partition(".")
        if field_name not in nested.get(section, {}):
            raise UserError(unknown_field(name, SECTIONS))
        nested[section][field_name] = value
    return from_dict(nested)


def to_config_dict(config: FederatedConfig) -> ml_collections.ConfigDict:
    """Returns a ConfigDict for absl's `config_flags`: None is a typed placeholder, so that a flag
    can set it.
    """
    result = ml_collections.ConfigDict()
    for name, fields in to_dict(config).items():
        hints = typing.get_type_hints(SECTIONS[name])
        section = ml_collections.ConfigDict()
        for field_name, value in fields.items():
            if value is None:
                [kind] = [k for k in typing.get_args(hints[field_name]) if k is not type(None)]
                value = config_dict.placeholder(kind)
            section[field_name] = value
        result[name] = section
    return result


def from_config_dict(values: ml_collections.ConfigDict) -> FederatedConfig:
    """Checks an overridden ConfigDict into a config. Raises UserError as `from_dict` does."""
    return from_dict(values.to_dict())
