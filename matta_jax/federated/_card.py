"""The card of a client's model: what it is, how good it is, and how it is run."""

from collections.abc import Mapping
from typing import Any

_USAGE = """```python
import numpy as np
from matta_jax import federated

images = np.load("images.npz")["x"]  # {images}
logits = federated.load_client("THIS_FOLDER").logits(images)  # [n, {classes}]
```

```sh
matta-classify --model=THIS_FOLDER --input=images.npz --output=classes.jsonl
```"""


def client_card(manifest: Mapping[str, Any]) -> str:
    """Returns the README.md of a client's model.

    Args:
      manifest: as `extract_client` writes it.
    """
    run, reads = manifest["run"], manifest["images"]
    networks = manifest["networks"]
    images = f"{reads['dtype']} [n, {', '.join(map(str, reads['shape']))}]"
    rows = {
        "method": manifest["method"],
        "private network": _network(networks["private"]),
        "shared network": _network(networks["shared"]),
        "parameters": f"{manifest['parameters']:,}",
        "reads": f"{images}, of which the networks make {reads['scaling']}",
        "classes": str(reads["num_classes"]),
        "accuracy on its test images": f"{manifest['accuracy']:.4f}",
    }
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    parts = [
        "---\nlibrary_name: matta_jax\ntags: [matta_jax, federated, image-classification]\n---",
        f"# Client {manifest['client']} of a federated run",
        f"As it was after round {manifest['round']} of `{run['workdir']}`; {_training(manifest)}.",
        "\n".join(["| | |", "|---|---|", *table]),
        _USAGE.format(images=images, classes=reads["num_classes"]),
        "`client.json` has the fingerprint of each array of `weights.npz`; both are compared when "
        "the model is loaded.",
    ]
    return "\n\n".join(parts) + "\n"


def _training(manifest: Mapping[str, Any]) -> str:
    last_trained = manifest["last_trained"]
    if last_trained is None:
        return "it was never drawn, and has the weights that it began with"
    return f"it last trained in round {last_trained}"


def _network(network: Mapping[str, Any] | None) -> str:
    if network is None:
        return "none"
    dense = [*network["hidden"], network["features"]]
    return (
        f"{network['name']}: 3x3 convolutions of {_listed(network['channels'])} channels, dense "
        f"layers of {_listed(dense)}"
    )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
