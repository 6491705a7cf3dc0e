"""The training objective of a student with a finished teacher, as in CoFi (Xia et al., 2022)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from hf_nas.distillation.losses import Logits, teacher_loss


class DistillationLoss(NamedTuple):
    """The total and its parts before their weights, each a scalar; None where a part has the weight 0."""

    total: torch.Tensor
    layer: torch.Tensor | None
    soft_labels: torch.Tensor | None
    labels: torch.Tensor | None


@dataclass(frozen=True)
class DistillationObjective:
    """`layer_weight * layer loss + soft_label_weight * loss on the teacher's logits + label_weight * task loss`.

    As published, except that regression follows the teacher's values, where the published loss is always 0, and that
    padding counts nowhere. The published objective has no task loss. Weights need not add up to 1; the published ones
    for layers and soft labels, which do, are 0.9 and 0.1, 0.7 and 0.3, 0.5 and 0.5.

    Args:
        layer_weight: of the layer-wise loss; 0 where there are no layers to compare.
        soft_label_weight: of the loss on the teacher's logits.
        label_weight: of the loss on the labels.
        temperature: of the soft labels. The published scripts take 2 and their program, unless told otherwise, 2/3.

    Raises:
        ValueError: for a negative weight, weights that are all 0, or a temperature that is not above 0.
    """

    layer_weight: float = 0.9
    soft_label_weight: float = 0.1
    label_weight: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("layer_weight", "soft_label_weight", "label_weight")}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"The {name} of distillation is {weight}; give a number of at least 0.")
        if not any(weights.values()):
            raise ValueError(
                "All weights of distillation are 0, so nothing would be learnt; set layer_weight, soft_label_weight "
                "or label_weight above 0."
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"The distillation temperature is {self.temperature}; give a number above 0.")

    def __call__(
        self,
        *,
        student_logits: Logits | None = None,
        teacher_logits: Logits | None = None,
        layer_loss: torch.Tensor | None = None,
        task_loss: torch.Tensor | None = None,
        regression: bool = False,
        mask: torch.Tensor | None = None,
    ) -> DistillationLoss:
        """The objective of one micro-batch; what a part with the weight 0 would need may be left out.

        Args:
            student_logits: `(batch, classes)`; of tokens `(batch, length, classes)`; of question answering the start
                and the end logits, each `(batch, length)`, of whose losses the mean is taken.
            teacher_logits: of the same shapes; they get no gradient.
            layer_loss: scalar, of [`LayerDistillation`].
            task_loss: scalar, mean loss of the student on the labels.
            regression: whether the logits are predicted values; their mean squared distance is then the loss.
            mask: for logits of spans or of tokens only, shape `(batch, length)`: not 0 where a position can be in a
                span, or a token counts.

        Raises:
            ValueError: if a part with a weight above 0 is not given what it needs, or shapes do not fit.
        """
        soft_labels = None
        if self.soft_label_weight > 0:
            if student_logits is None or teacher_logits is None:
                missing = "student" if student_logits is None else "teacher"
                raise ValueError(
                    f"soft_label_weight is {self.soft_label_weight:g}, but the logits of the {missing} are missing; "
                    "give them or set the weight to 0."
                )
            soft_labels = teacher_loss(
                student_logits, teacher_logits, temperature=self.temperature, regression=regression, mask=mask
            )
        parts = []
        for name, part in (("layer", layer_loss), ("soft_label", soft_labels), ("label", task_loss)):
            weight = getattr(self, f"{name}_weight")
            if weight > 0 and part is None:
                raise ValueError(
                    f"{name}_weight is {weight:g}, but the {'task' if name == 'label' else name} loss is missing; "
                    "give it or set the weight to 0."
                )
            parts.append((weight, part if weight > 0 else None))
        total = sum(weight * part for weight, part in parts if part is not None)
        return DistillationLoss(total, *(part for _, part in parts))
