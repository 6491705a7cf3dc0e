"""Learn the importance of units by movement sparsity, in a `Trainer` of its own whose weights are thrown away."""

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import ExportableState

from hf_nas.importance.movement import MovementScores, MovementSettings, MovementSparsity
from hf_nas.run_files import SCORES_FILE
from trainer_plugins.distillation.distilling_trainer import DistillingTrainer
from trainer_plugins.run_state import last_complete_checkpoint


logger = logging.getLogger(__name__)


class MovementSparsityCallback(TrainerCallback, ExportableState):
    """Moves threshold and regularisation on before each optimizer step, and stops when the scores are final.

    Its state is in the `trainer_state.json` of each checkpoint; scores and masks are in the model's weights.

    Args:
        sparsity: attached to the trained model.
    """

    def __init__(self, sparsity: MovementSparsity):
        self.sparsity = sparsity
        self._steps_per_epoch: int | None = None

    def state(self) -> dict[str, Any]:
        """What `Trainer` writes into a checkpoint."""
        return {"args": {}, "attributes": {"sparsity": self.sparsity.state_dict()}}

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs) -> None:
        """Count the steps of an epoch; go on from the state in the checkpoint, if there is one.

        Raises:
            ValueError: if the training is too short for the warm-up.
        """
        self._steps_per_epoch = None
        if state.global_step == 0:
            # Trainer begins again with smaller batches, and so with longer epochs, where the memory is too small.
            self.sparsity.restart()
        try:
            batches = len(train_dataloader)
        except TypeError:  # a data set without a length; its steps are counted in the first epoch
            batches = None
        if batches is not None:
            self._steps_per_epoch = max(-(-batches // args.gradient_accumulation_steps), 1)
        if state.global_step > 0:
            saved = state.stateful_callbacks[type(self).__name__]
            self.sparsity.load_state_dict(saved["attributes"]["sparsity"])
            # What was counted before the kill; the end of a later epoch would count all epochs up to it.
            self._steps_per_epoch = self._steps_per_epoch or self.sparsity.schedule.steps_per_epoch
        self._check_length(state.max_steps)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Set threshold and regularisation of the step."""
        self.sparsity.set_step(state.global_step, self._steps_per_epoch)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """From now on the number of steps is known in any case."""
        if self._steps_per_epoch is None:
            self._steps_per_epoch = state.global_step
            # A checkpoint that is written now has it too.
            self.sparsity.schedule.tell_steps_per_epoch(self._steps_per_epoch)
            self._check_length(state.max_steps)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Stop once the scores are final."""
        control.should_training_stop = control.should_training_stop or self.sparsity.frozen

    def _check_length(self, max_steps: int) -> None:
        """Refuse a training that ends before the scores are final, as soon as the steps of an epoch are known."""
        if self._steps_per_epoch is None:
            return
        needed = self.sparsity.total_steps(self._steps_per_epoch)
        if max_steps < needed:
            raise ValueError(
                f"The training has {max_steps} optimizer steps, but the warm-up of movement sparsity ends after epoch "
                f"{self.sparsity.settings.warmup_end_epoch:g}, which takes {needed}; train for longer, or let it end "
                "earlier."
            )


class MovementSparsityTrainer(DistillingTrainer):
    """Fine-tunes a model under movement sparsity (Sanh et al., 2020; as in NNCF 2.x with the changes of EFTNAS).

    The scores are parameters of the model, trained by the same optimizer as its weights but without weight decay.
    Training stops one step after the warm-up of the threshold; then the scores are final.

    Args:
        settings: of movement sparsity.
        kwargs: of [`DistillingTrainer`] and `Trainer`.

    Raises:
        ValueError: if the settings do not fit the model or the training ends before the warm-up.
    """

    def __init__(self, *args: Any, settings: MovementSettings, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.max_steps <= 0 and self.args.num_train_epochs <= settings.warmup_end_epoch:
            raise ValueError(
                f"num_train_epochs is {self.args.num_train_epochs:g}, but the warm-up of movement sparsity ends after "
                f"epoch {settings.warmup_end_epoch:g}; train for longer than that."
            )
        if self.args.restore_callback_states_from_checkpoint:
            raise ValueError(
                "restore_callback_states_from_checkpoint is True, which would replace the callback of movement "
                "sparsity by one without a model; leave it out, the state of movement sparsity is restored anyway."
            )
        self.sparsity = MovementSparsity(self.model, settings)
        self.add_callback(MovementSparsityCallback(self.sparsity))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weights, as in `Trainer`; decay would draw the scores towards the threshold."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("_importance")]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log threshold and regularisation beside the loss."""
        if "loss" in logs:
            # JSON has no infinity; before the warm-up there is no threshold.
            threshold = {"importance_threshold": self.sparsity.threshold} if self.sparsity.threshold > -1e30 else {}
            logs = {**logs, **threshold, "importance_factor": self.sparsity.factor}
        super().log(logs, start_time)

    def training_loss(self, task_loss: torch.Tensor, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a plain fine-tuning plus the regularisation of the scores."""
        return super().training_loss(task_loss, outputs, inputs) + self.sparsity.regularization()


def learn_importance(
    model_init: Callable[[], PreTrainedModel],
    settings: Callable[[PreTrainedModel], MovementSettings],
    arguments: TrainingArguments,
    folder: str | Path,
    *,
    num_train_epochs: float,
    **trainer_arguments: Any,
) -> MovementScores:
    """Learn movement scores, or read them if they were learnt into this folder before.

    Writes `importance.safetensors` and `structured_sparsity.csv` (which units the scores keep at the final threshold,
    in the layout of NNCF) into the folder. A run that was killed goes on from its last checkpoint, which is there too.

    Args:
        model_init: makes the pretrained model; its weights are thrown away in the end.
        settings: the settings for that model.
        arguments: of the training that the importance is for; learning rate, batch sizes and so on are the same.
        folder: where to.
        num_train_epochs: length by which the learning rate falls to zero; training stops after the warm-up.
        trainer_arguments: of [`MovementSparsityTrainer`], such as data, tokenizer and teacher.

    Raises:
        ValueError: if the settings do not fit the model or the length.
    """
    folder = Path(folder)
    if (folder / SCORES_FILE).exists():
        logger.info("The importance in '%s' is there already.", folder)
        return MovementScores.load(folder / SCORES_FILE)
    arguments = copy.deepcopy(arguments)
    arguments.output_dir = str(folder)
    arguments.num_train_epochs = num_train_epochs
    arguments.max_steps = -1
    # Checkpoints of this training are there to resume it; they are compared by nothing and pushed nowhere.
    arguments.eval_strategy = "no"
    arguments.eval_on_start = False
    arguments.load_best_model_at_end = False
    arguments.push_to_hub = False
    set_seed(arguments.seed)  # the task head is drawn at random
    model = model_init()
    trainer = MovementSparsityTrainer(model=model, args=arguments, settings=settings(model), **trainer_arguments)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    scores = trainer.sparsity.scores()
    if trainer.is_world_process_zero():
        trainer.sparsity.write_report(folder)
        scores.save(folder / SCORES_FILE)
    trainer.accelerator.wait_for_everyone()
    return scores
