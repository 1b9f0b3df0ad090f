"""Sections of how a run trains: optimiser, length, mesh, and what it starts from."""

import dataclasses

from matta_jax.config._fields import FLOAT_TYPES, Section, field
from matta_jax.errors import UserError

# Of a mean that decays: float32 takes a larger one for 1.
_LARGEST_DECAY = 0.999999
# What is multiplied by the updates of a rule, whatever their norm, may be less than other numbers.
_SMALLEST_RATE = 1e-12


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """The Optax chain: clip, rule, decoupled weight decay, schedule."""

    section = "optimizer"
    name: str = field(
        "adamw",
        "Update rule.",
        choices=("adamw", "adafactor", "lion", "muon", "shampoo"),
        in_state=True,
    )
    learning_rate: float = field(
        1e-3, "Peak learning rate.", above=0.0, smallest=_SMALLEST_RATE, maximum=1e6
    )
    warmup_steps: int = field(100, "Steps of linear warm-up from 0.", minimum=0, maximum=10**9)
    schedule: str = field(
        "cosine",
        "After the warm-up; wsd is constant until its decay, a line over the last steps.",
        choices=("cosine", "wsd", "constant"),
    )
    final_fraction: float = field(
        0.1, "Where cosine and wsd end, of the peak.", minimum=0.0, maximum=1.0
    )
    decay_fraction: float = field(
        0.2, "The last part of num_steps, in which wsd decays.", above=0.0, maximum=1.0
    )
    weight_decay: float = field(
        0.1,
        "Decoupled decay of matrices; norms and biases have none.",
        minimum=0.0,
        maximum=1e3,
    )
    clip_norm: float | None = field(
        1.0,
        "Global gradient norm to clip at; None: no clipping.",
        above=0.0,
        in_state=True,
        maximum=1e9,
    )
    b1: float = field(
        0.9,
        "Decay of the first moment (adamw, lion) or momentum (muon, shampoo).",
        minimum=0.0,
        maximum=_LARGEST_DECAY,
    )
    b2: float = field(
        0.95, "Decay of the second moment (adamw, lion).", minimum=0.0, maximum=_LARGEST_DECAY
    )
    eps: float = field(
        1e-8, "Added to the root of the second moment (adamw).", minimum=1e-30, maximum=1.0
    )


@dataclasses.dataclass(frozen=True)
class ShampooConfig(Section):
    """Preconditioning, where optimizer.name is shampoo; `matta_jax/optim/_shampoo.py` has the
    equations.
    """

    section = "shampoo"
    block_size: int = field(
        128,
        "Largest side of a block; 256 suits a TPU.",
        minimum=1,
        in_state=True,
        maximum=2**16,
    )
    beta2: float = field(
        0.99,
        "Decay of statistics and grafting moment; 1 sums them up.",
        above=0.0,
        smallest=1e-6,
        maximum=1.0,
        in_state=True,
    )
    epsilon: float = field(
        1e-6,
        "Ridge of the statistics, relative to their largest eigenvalue.",
        above=0.0,
        smallest=1e-12,
        in_state=True,
        maximum=1.0,
    )
    precondition_every: int = field(
        10,
        "Steps between two computations of a block's roots.",
        minimum=1,
        in_state=True,
        maximum=10**9,
    )
    start_step: int = field(
        10,
        "Steps that take the grafting update alone.",
        minimum=0,
        in_state=True,
        maximum=10**9,
    )
    staggered: bool = field(
        False,
        "Compute every k-th block's roots in each step, not all in every k-th step.",
        in_state=True,
    )
    root: str = field(
        "newton",
        "How roots are computed; eigh suits CPUs and GPUs.",
        choices=("newton", "eigh"),
        in_state=True,
    )
    root_dtype: str = field(
        "float32", "Type that roots are kept in.", choices=FLOAT_TYPES, in_state=True
    )
    grafting: str = field(
        "rmsprop", "Whose norm the update takes.", choices=("rmsprop", "adam", "sgd"), in_state=True
    )
    graft_scope: str = field(
        "block",
        "Norms of each block, as nesting needs it, or of each whole matrix.",
        choices=("block", "parameter"),
        in_state=True,
    )
    max_dim: int = field(
        8192,
        "Longest side of a matrix that is preconditioned on that side.",
        minimum=1,
        in_state=True,
        maximum=2**24,
    )
    beyond_max_dim: str = field(
        "graft",
        "A matrix with a longer side: the grafting update alone, or its other side to the power "
        "-1/2.",
        choices=("graft", "one_sided"),
        in_state=True,
    )
    block_multiple: int = field(
        8,
        "Blocks of one shape are padded to a multiple of this, so that as many devices can share "
        "them.",
        minimum=1,
        in_state=True,
        maximum=2**16,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if _LARGEST_DECAY < self.beta2 < 1:
            raise UserError(
                f"shampoo.beta2={self.beta2!r} must be at most {_LARGEST_DECAY}, or 1, which sums "
                "up: float32 takes what lies between for 1"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """The length of the run and what it leaves behind."""

    section = "train"
    num_steps: int = field(1000, "Optimiser steps.", minimum=1, maximum=10**9)
    microbatches: int = field(1, "Parts that a batch is accumulated in.", minimum=1, maximum=2**24)
    gather: str = field(
        "microbatch",
        "When the weights that devices share come together: each layer's in each microbatch, or "
        "all once in a step, which moves less and holds more. Where devices share no rows, or with "
        "dropout, pairs of texts or a Teacher that runs along, it changes nothing.",
        choices=("microbatch", "step"),
        is_free=True,
    )
    log_every: int = field(
        10, "Steps between two lines of metrics.", minimum=1, is_free=True, maximum=10**9
    )
    eval_every: int = field(
        200,
        "Steps between two evaluations on held-out windows.",
        minimum=1,
        is_free=True,
        maximum=10**9,
    )
    eval_batches: int = field(
        8, "Batches of an evaluation.", minimum=1, is_free=True, maximum=10**9
    )
    checkpoint_every: int = field(
        200,
        "Steps between two checkpoints; the last step is always saved.",
        minimum=1,
        is_free=True,
        maximum=10**9,
    )
    keep_checkpoints: int = field(
        2,
        "Newest checkpoints to keep, beside the best.",
        minimum=1,
        is_free=True,
        maximum=10**6,
    )
    max_skipped_steps: int = field(
        10,
        "A step of a non-finite loss or gradient is skipped; more than this many in a row stop the "
        "run.",
        minimum=0,
        is_free=True,
        maximum=10**9,
    )
    seed: int = field(
        0, "Seed of initialisation, data order, mixes and dropout.", minimum=0, maximum=2**32 - 1
    )
    peak_tflops: float | None = field(
        None,
        "Peak of one device, for MFU. None: the published one in bfloat16, where the device is "
        "known, else what a matmul reaches at the start.",
        above=0.0,
        smallest=1e-6,
        is_free=True,
        maximum=1e9,
    )
    sample_every: int = field(
        0,
        "Steps between two samples of text, of Student and TA; 0: none.",
        minimum=0,
        maximum=10**9,
        is_free=True,
    )
    sample_prompt: str = field("", "What a sample begins with.", is_prose=True, is_free=True)
    cosine_every: int = field(
        0,
        "Steps between two measurements of how far members pull the weights that they share with "
        "the TA in its direction: the cosine of their gradients; 0: none.",
        minimum=0,
        maximum=10**9,
        is_free=True,
    )
    stall_seconds: float = field(
        120.0,
        "Without a step for so long, a line says what the run waits for.",
        minimum=1.0,
        maximum=1e6,
        is_free=True,
    )
    tensorboard: bool = field(
        False, "Write TensorBoard events too (extra: tensorboard).", is_free=True
    )
    wandb_project: str | None = field(
        None, "Log to this Weights & Biases project too (extra: wandb).", is_free=True
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """Devices along each mesh axis; -1, on one of them: whatever the other axes leave."""

    section = "mesh"
    # Free: a run may go on with other devices.
    data: int = field(-1, "Data parallel.", minimum=-1, is_free=True, maximum=2**20)
    fsdp: int = field(
        1, "Data parallel with sharded parameters.", minimum=-1, is_free=True, maximum=2**20
    )
    tensor: int = field(
        1,
        "Tensor parallel: heads, d_ff and vocabulary are sharded.",
        minimum=-1,
        is_free=True,
        maximum=2**20,
    )
    context: int = field(
        1,
        "Context parallel: positions of a window are split; each device attends with its own to "
        "the keys and values of all.",
        minimum=1,
        is_free=True,
        maximum=2**12,
    )
    slices: int = field(
        1,
        "TPU slices of the run, with a slow network between: data are split across them, the "
        "other axes lie within each.",
        minimum=1,
        is_free=True,
        maximum=2**12,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            if size == 0:
                raise UserError(
                    f"mesh.{name}=0 must be a number of devices, or -1 for all that the other axes "
                    "leave"
                )
        free = [f"mesh.{name}=-1" for name, size in sizes.items() if size == -1]
        if len(free) > 1:
            raise UserError(
                f"{' and '.join(free)}: one axis alone can take what the others leave; give numbers"
            )


@dataclasses.dataclass(frozen=True)
class InitConfig(Section):
    """What a run starts from."""

    section = "init"
    model: str | None = field(
        None,
        "Folder of an extracted or imported model. Of the Student's sizes: the TA is grown around "
        "it; of the TA's: it "
        "becomes the TA; of both, a plain run: training goes on, from its step where its optimiser "
        "state is there.",
    )
    checkpoint: str | None = field(
        None,
        "Or a run, as WORKDIR or WORKDIR@STEP, whose TA has these sizes: training goes on from its "
        "step, with its weights and optimiser state, and may train other members.",
    )
    growth: str = field(
        "zero",
        "What the new parts of a grown TA add at first: nothing (zero output projections), or a "
        "little noise.",
        choices=("zero", "noisy"),
    )
    growth_noise: float = field(
        0.1,
        "Scale of noisy output projections, of that of a fresh model.",
        above=0.0,
        maximum=1e3,
    )
    sort: bool = field(
        False,
        "Sort the neurons and heads of a model of the TA's sizes by importance on training text, "
        "so that its prefixes "
        "are good sub-models from the start.",
    )
    optimizer: bool = field(
        True, "Whether a plain run takes up the model's optimiser state, where it is there."
    )
