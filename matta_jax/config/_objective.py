"""Sections of what a run minimises."""

import dataclasses
from collections.abc import Mapping

from matta_jax.config._fields import Section, field

# Of a member that the mappings do not name.
_MEMBER_WEIGHT = 0.5


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Section):
    """Weights of the named terms of the loss."""

    section = "objective"
    student_weight: float = field(
        1.0, "a_S: the Student's cross-entropy.", minimum=0.0, maximum=1e6
    )
    ta_weight: float = field(1.0, "a_TA: the TA's cross-entropy.", minimum=0.0, maximum=1e6)
    distill_weight: float = field(
        0.5,
        "w_max: TA-to-Student distillation after the ramp.",
        minimum=0.0,
        maximum=1e6,
    )
    distill_ramp: float = field(
        0.1,
        "Fraction of num_steps over which w(t) rises from 0 to distill_weight.",
        minimum=0.0,
        maximum=1.0,
    )
    ramp_shape: str = field(
        "linear", "Shape of the ramp.", choices=("linear", "cosine", "constant")
    )
    members_start: float = field(
        0.0,
        "Fraction of num_steps in which the TA trains alone; Student, members and mixes join it "
        "then, and w(t) rises from there.",
        minimum=0.0,
        maximum=0.99,
    )
    temperature: float = field(
        1.0,
        "T of the distillation term; the term is scaled by T squared.",
        minimum=0.05,
        maximum=20.0,
    )
    divergence: str = field(
        "forward_kl",
        "Distance from the TA's distribution to the Student's.",
        choices=("forward_kl", "reverse_kl", "jensen_shannon"),
    )
    jensen_shannon_beta: float = field(
        0.5,
        "Weight of the TA in the mixture of the Jensen-Shannon divergence.",
        # Nearer to an end, the divergence is as small as what float32 rounds in its logarithms.
        minimum=0.001,
        maximum=0.999,
    )
    mix_weight: float = field(0.5, "Cross-entropy of each random mix.", minimum=0.0, maximum=1e6)
    mix_distill_weight: float = field(
        0.5,
        "Distillation of each random mix, on the same ramp.",
        minimum=0.0,
        maximum=1e6,
    )
    member_weights: Mapping[str, float] = field(
        {},
        "Cross-entropy of members of nest.members, by name; 0.5 of those not named.",
        minimum=0.0,
        maximum=1e6,
    )
    member_distill_weights: Mapping[str, float] = field(
        {},
        "Distillation of members of nest.members, by name, on the same ramp; 0.5 of those not "
        "named.",
        minimum=0.0,
        maximum=1e6,
    )
    pair_loss: str = field(
        "in_batch",
        "What an embedder's pairs learn: in_batch, the own second text among those of the batch; "
        "in_batch_both, and the own first one; cosent, the order of the scores in "
        "data.score_field; smae, each text by itself, to tell its hidden tokens.",
        choices=("in_batch", "in_batch_both", "cosent", "smae"),
    )
    mask_id: int | None = field(
        None,
        "Of pair_loss=smae: the id of the token that stands for hidden ones, 103 in BERT's "
        "vocabulary.",
        minimum=0,
        maximum=2**24,
    )
    encoder_masks: float = field(
        0.2,
        "Of pair_loss=smae: the share of a text's tokens that the models tell themselves.",
        above=0.0,
        maximum=0.9,
    )
    decoder_masks: float = field(
        0.4,
        "And the share that a decoder beside them tells by the text's vector.",
        above=0.0,
        maximum=0.9,
    )
    chunk_size: int = field(
        256,
        "Most tokens on a device whose logits exist at once (in 16-bit types fewer, where they "
        "would leave a TPU's core); 256 to 512 pays, less saves memory.",
        minimum=1,
        maximum=2**24,
    )

    def weights_of(self, member: str) -> tuple[float, float]:
        """The weights of a member of the nest: of its cross-entropy, and of its distillation."""
        weight = self.member_weights.get(member, _MEMBER_WEIGHT)
        return weight, self.member_distill_weights.get(member, _MEMBER_WEIGHT)


@dataclasses.dataclass(frozen=True)
class TeacherConfig(Section):
    """A frozen Teacher, online or by its labels, and what learns from it."""

    section = "teacher"
    model: str | None = field(
        None,
        "Folder of an extracted or imported model, or the workdir of a run, D[@STEP], for its TA. "
        "Runs along.",
    )
    labels: str | None = field(
        None, "Or folder of labels that matta-label wrote of the training windows."
    )
    student_weight: float = field(
        0.0,
        "u_S: forward KL from the Teacher to the Student.",
        minimum=0.0,
        maximum=1e6,
    )
    ta_weight: float = field(
        0.0, "u_TA: forward KL from the Teacher to the TA.", minimum=0.0, maximum=1e6
    )
    temperature: float = field(
        1.0,
        "T of both, which are scaled by T squared; that of the labels, where there are some.",
        minimum=0.05,
        maximum=20.0,
    )
    task_labels: str = field(
        "ground_truth",
        "What the cross-entropies learn: ground_truth, or the class or token that the teacher "
        "finds most likely.",
        choices=("ground_truth", "teacher"),
    )

    @property
    def is_used(self) -> bool:
        """Whether anything learns from a Teacher."""
        return bool(self.student_weight or self.ta_weight or self.task_labels == "teacher")
