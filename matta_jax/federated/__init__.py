"""Federated runs: clients of different architectures that share a small model.

Clients have images of their own, a private network, projection and header, and a copy of a small
model that all of them share; the server sees that model alone, and takes its mean (FedMRL,
arXiv 2406.00488). `federate` runs it in one process; `client_update`, `aggregate` and
`sample_clients` are what it is made of. `extract_client` makes a model of a client, which
`load_client` reads.
"""

from matta_jax.federated._client import ClientData as ClientData
from matta_jax.federated._client import PrivateState as PrivateState
from matta_jax.federated._client import accuracy as accuracy
from matta_jax.federated._client import client_update as client_update
from matta_jax.federated._client import head_logits as head_logits
from matta_jax.federated._client import inference_logits as inference_logits
from matta_jax.federated._client import init_private as init_private
from matta_jax.federated._client import init_theta as init_theta
from matta_jax.federated._config import METHODS as METHODS
from matta_jax.federated._config import SECTIONS as SECTIONS
from matta_jax.federated._config import ClientsConfig as ClientsConfig
from matta_jax.federated._config import FederatedConfig as FederatedConfig
from matta_jax.federated._config import ImagesConfig as ImagesConfig
from matta_jax.federated._config import TrainingConfig as TrainingConfig
from matta_jax.federated._config import from_config_dict as from_config_dict
from matta_jax.federated._config import from_dict as from_dict
from matta_jax.federated._config import override as override
from matta_jax.federated._config import to_config_dict as to_config_dict
from matta_jax.federated._config import to_dict as to_dict
from matta_jax.federated._federate import FederatedResult as FederatedResult
from matta_jax.federated._federate import federate as federate
from matta_jax.federated._federate import read_clients as read_clients
from matta_jax.federated._networks import ARCHITECTURES as ARCHITECTURES
from matta_jax.federated._networks import SHARED as SHARED
from matta_jax.federated._networks import Architecture as Architecture
from matta_jax.federated._networks import Weights as Weights
from matta_jax.federated._networks import extract_features as extract_features
from matta_jax.federated._package import ClientModel as ClientModel
from matta_jax.federated._package import extract_client as extract_client
from matta_jax.federated._package import is_client as is_client
from matta_jax.federated._package import load_client as load_client
from matta_jax.federated._partition import ClientParts as ClientParts
from matta_jax.federated._partition import partition as partition
from matta_jax.federated._partition import split_client as split_client
from matta_jax.federated._server import aggregate as aggregate
from matta_jax.federated._server import count_bytes as count_bytes
from matta_jax.federated._server import sample_clients as sample_clients
from matta_jax.federated._state import RunFolder as RunFolder
