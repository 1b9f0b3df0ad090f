"""FedMRL (arXiv 2406.00488): ten clients of five architectures share a small model.

    matta-federate --config=configs/fedmrl.py --workdir=runs/fedmrl \
        --config.images.source=images:/data/images/cifar10_train_1000pc.npz

An .npz holds `x` [n, H, W, C] uint8 and `y` [n]. Each client is tested on a fifth of its images:
`accuracy` of `metrics.jsonl` is by the copy of the shared model that it trained, and
`accuracy_of_mean` by the server's. Ten clients, 10,000 images of 32x32: 70 s on a free core.
"""

from matta_jax import config as c
from matta_jax import federated as f


def get_config(variant: str = "dirichlet"):
    """The run.

    Variants: `dirichlet`: shares of each class are drawn from Dirichlet(0.3); `classes`: each
    client has two classes.
    """
    clients = {
        "dirichlet": f.ClientsConfig(count=10, partition="dirichlet", alpha=0.3),
        "classes": f.ClientsConfig(count=10, partition="classes", classes_per_client=2),
    }
    return f.to_config_dict(
        f.FederatedConfig(
            images=f.ImagesConfig(source="images:data/images/cifar10_train_1000pc.npz"),
            clients=c.choose_variant(clients, variant),
            training=f.TrainingConfig(method="fedmrl", rounds=20),
        )
    )
