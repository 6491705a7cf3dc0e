"""A `Trainer` whose losses are means, and that lets a fine-tuned model teach, if one is given."""

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PretrainedConfig, PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput, has_length

from hf_nas.distillation import IGNORED_LABEL, logits_of, task_and_teacher_loss
from trainer_plugins.arguments import DistillationArguments
from trainer_plugins.model_card import SmallModelHub


logger = logging.getLogger(__name__)

# Of the names of classes that predict one of the labels.
_CLASSIFIERS = ("SequenceClassification", "ImageClassification", "TokenClassification")


class DistillingTrainer(SmallModelHub):
    """Drop-in `Trainer` with knowledge distillation from the logits of a teacher (Hinton et al., 2015).

    The loss is `kd_task_weight` times the task loss plus the rest times the loss on the teacher's logits; without a
    teacher it is the task loss. The teacher runs once a batch, in evaluation mode and without gradients.

    Args:
        teacher: a model fine-tuned on the same task, with the vocabulary of the trained one; it stays outside of the
            trained model and its checkpoints.
        distillation: weights and temperature.
        kwargs: of `Trainer`.

    Raises:
        ValueError: if the teacher reads other tokens or knows other labels.
    """

    # Everything returned by `compute_loss` is a mean over its own micro-batch; the share that a micro-batch has in its
    # batch is multiplied in below. The stock Trainer takes it for granted that heads do so, which most do not.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel | None = None,
        distillation: DistillationArguments | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.distillation = distillation or DistillationArguments()
        self.teacher = teacher
        self._teacher_logits: tuple[torch.Tensor, ...] | None = None
        if teacher is not None:
            self._label_order = _order_of_labels(self.model, teacher)
            self._teacher_inputs = set(inspect.signature(type(teacher).forward).parameters)
            self.teacher = self.accelerator.prepare_model(teacher.to(self.args.device).eval(), evaluation_mode=True)

    @contextlib.contextmanager
    def taught(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Have the teacher's logits for this batch at hand within the block; nested blocks use the same."""
        if self.teacher is None or self._teacher_logits is not None:
            yield
            return
        logits = self._ask_teacher(inputs)
        if self._label_order is not None:
            logits = tuple(each[..., self._label_order] for each in logits)
        self._teacher_logits = logits
        try:
            yield
        finally:
            self._teacher_logits = None

    def _ask_teacher(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """The teacher's logits, with its labels in its own order."""
        known = {name: value for name, value in inputs.items() if name in self._teacher_inputs}
        with torch.no_grad(), self.compute_loss_context_manager():
            return logits_of(self.teacher(**self._prepare_inputs(known)))

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """Rows in their order, to which answers, translations and predictions on disk belong.

        With `train_sampling_strategy="group_by_length"` the stock Trainer shuffles what it evaluates, too.
        """
        if eval_dataset is None or not has_length(eval_dataset) or self.args.world_size > 1:
            return None
        return SequentialSampler(eval_dataset)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """That of `Trainer`, with all rows: `dataloader_drop_last` is for the training."""
        with self._all_rows():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """The same for a test set."""
        with self._all_rows():
            return super().get_test_dataloader(test_dataset)

    @contextlib.contextmanager
    def _all_rows(self) -> Iterator[None]:
        given, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = given

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """That of `Trainer`, after which the weights are as before.

        With `bf16_full_eval` or `fp16_full_eval` the stock loop leaves the model in half precision, and whatever is
        extracted, trained or saved of it later.
        """
        is_cast = not self.is_in_train and (self.args.bf16_full_eval or self.args.fp16_full_eval)
        with _restored(self.model) if is_cast else contextlib.nullcontext():
            return super().evaluation_loop(*args, **kwargs)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One forward and backward pass."""
        with self.taught(inputs):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Mean loss over the batch; in training, times the share of it in its batch."""
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True)
        if model.training:
            loss = self.training_loss(loss, outputs, inputs)
            if num_items_in_batch is not None and labels is not None:
                loss = loss * self._share(labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def training_loss(self, task_loss: torch.Tensor, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """What is minimised, given the mean task loss of a batch."""
        if self._teacher_logits is None:
            return task_loss
        logits = logits_of(outputs)
        return task_and_teacher_loss(
            task_loss,
            logits,
            self._teacher_logits,
            temperature=self.distillation.kd_temperature,
            task_weight=self.distillation.kd_task_weight,
            regression=self.is_regression,
            mask=self.distillation_mask(logits, inputs),
        )

    @property
    def is_regression(self) -> bool:
        """Whether the model predicts a number."""
        return getattr(self.model.config, "problem_type", None) == "regression"

    def distillation_mask(self, logits: tuple[torch.Tensor, ...], inputs: Mapping[str, Any]) -> torch.Tensor | None:
        """Which positions count, `(batch, length)`: those that can be in a span, or those with a label."""
        if len(logits) > 1:
            return inputs.get("attention_mask")
        labels = inputs.get("labels")
        if labels is None or logits[0].dim() != 3:
            return None
        if self._loss_shifts_labels:  # the logits at a position predict the label of the next one
            labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        return labels.ne(IGNORED_LABEL)

    def _share(self, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
        """What makes the mean over one micro-batch its part of the mean over the whole batch.

        The Trainer divides by the number of micro-batches and data parallelism by the number of processes, as if all
        held equally many items; this undoes it.
        """
        counted = labels[..., 1:] if self._loss_shifts_labels else labels
        processes = self.args.world_size if self.args.average_tokens_across_devices else 1
        share = counted.ne(IGNORED_LABEL).sum() * self.current_gradient_accumulation_steps * processes
        return share / num_items_in_batch


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Give the model its tensors back after the block, which may cast it; nothing is copied."""
    parameters = [(each, each.data) for each in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, before in buffers:
            module._buffers.update(before)


def _order_of_labels(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int] | None:
    """Where the teacher has the student's labels, None if in the same places.

    Raises:
        ValueError: if vocabularies or labels differ.
    """
    ours, theirs = student.config, teacher.config
    # Models of images have none.
    tokens, known = (getattr(config.get_text_config(), "vocab_size", None) for config in (ours, theirs))
    if tokens != known:
        raise ValueError(
            f"The teacher reads {known} different tokens and the model {tokens}; give a teacher with the model's "
            "tokenizer."
        )
    if not type(student).__name__.endswith(_CLASSIFIERS):
        return None
    if ours.num_labels != theirs.num_labels:
        raise ValueError(
            f"The teacher knows {theirs.num_labels} labels and the model {ours.num_labels}; give a teacher that was "
            "fine-tuned on the same task."
        )
    if ours.num_labels == 1:  # a number
        return None
    names, teacher_names = _label_names(ours), _label_names(theirs)
    if sorted(names) == sorted(teacher_names) and len(set(names)) == len(names):
        order = [teacher_names.index(name) for name in names]
        return order if order != list(range(ours.num_labels)) else None
    unnamed = "teacher" if _are_numbers(teacher_names) else "model" if _are_numbers(names) else None
    if unnamed is None:
        raise ValueError(
            f"The teacher's labels are {', '.join(teacher_names)} and those of the task {', '.join(names)}; give a "
            "teacher that was fine-tuned on the task, or write the task's names into id2label of its config.json, in "
            "the teacher's order."
        )
    logger.warning(
        "The labels of the %s have no names, so that its labels are taken to be in the same order as %s; if they are "
        "not, write names into id2label of its config.json.",
        unnamed,
        ", ".join(names if unnamed == "teacher" else teacher_names),
    )
    return None


def _label_names(config: PretrainedConfig) -> list[str]:
    """In the order of their numbers; published models write the same names in capitals or not."""
    return [str(config.id2label[number]).lower() for number in range(config.num_labels)]


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether labels are called LABEL_0 or 0, which says nothing about what they are."""
    return all(name.removeprefix("label_") == str(number) for number, name in enumerate(names))
