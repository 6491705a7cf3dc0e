"""Arguments of a teacher for `HfArgumentParser`."""

from dataclasses import dataclass, field


@dataclass
class DistillationArguments:
    """By which teacher a model or super-network is taught, and how."""

    kd_teacher_model: str | None = field(
        default=None,
        metadata={"help": "Path or Hub name of a model fine-tuned on the same task, whose logits are learnt too."},
    )
    kd_mode: str = field(
        default="original", metadata={"help": "What is learnt of the teacher: original (its logits)."}
    )
    kd_temperature: float = field(default=2.0, metadata={"help": "Temperature of the teacher's logits."})
    kd_task_weight: float = field(
        default=0.1, metadata={"help": "Weight of the loss on the labels; that on the teacher's logits has the rest."}
    )
