"""A `SuperNetworkTrainer` for questions that are answered with a span of a text."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, speed_metrics

from trainer_plugins.super_network.super_network_trainer import SuperNetworkTrainer


PostProcess = Callable[[Any, Any, Any, str], EvalPrediction]


def span_logits(outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Start and end logits, each of shape (batch, length), of the output of a question-answering head."""
    return outputs.start_logits, outputs.end_logits


class QuestionAnsweringTrainer(SuperNetworkTrainer):
    """Evaluates answers instead of logits, as the trainer of the same name in the examples of transformers does.

    The metrics need the texts, which the windows that a model reads do not hold; and one text makes several windows.
    So predictions are turned into answers before they are scored:
    `compute_metrics(post_process_function(examples, windows, (start_logits, end_logits), stage))`.
    Every process does that, as each needs the metrics to choose the best checkpoint.

    Args:
        eval_examples: what `post_process_function` needs to know of `eval_dataset`.
        post_process_function: makes of it, of the data set, of the logits (arrays of shape (windows, length), padded
            with -100) and of the stage ("eval" or "predict") what `compute_metrics` takes.
        kwargs: of `SuperNetworkTrainer`.

    Raises:
        ValueError: for arguments of Trainer that would keep the logits from being together in the end.
    """

    def __init__(
        self,
        *args: Any,
        eval_examples: Any = None,
        post_process_function: PostProcess | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function
        if self.args.batch_eval_metrics or not self.args.eval_do_concat_batches:
            name = "batch_eval_metrics" if self.args.batch_eval_metrics else "eval_do_concat_batches"
            raise ValueError(
                f"--{name} is {getattr(self.args, name)}; answers are found in all windows of a text together, so "
                "leave the flag out."
            )

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        eval_examples: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Metrics of the answers; the speed is that of the model alone, in windows.

        Args:
            eval_dataset: windows; by default the trainer's, whose `eval_examples` are then used.
            eval_examples: what belongs to them.
            ignore_keys: as with `Trainer`.
            metric_key_prefix: as with `Trainer`.
        """
        if eval_dataset is None:
            eval_dataset, eval_examples = self.eval_dataset, self.eval_examples
        self._memory_tracker.start()
        output = self._run(
            self.get_eval_dataloader(eval_dataset),
            "Evaluation",
            ignore_keys,
            metric_key_prefix,
            loss_only=self.compute_metrics is None,
        )
        self._score(output, eval_dataset, eval_examples, "eval", metric_key_prefix)
        self.log(output.metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, output.metrics)
        self._memory_tracker.stop_and_update_metrics(output.metrics)
        return output.metrics

    def predict(
        self,
        predict_dataset: Dataset,
        predict_examples: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """The answers, and their metrics if the right ones are known.

        Args:
            predict_dataset: windows.
            predict_examples: what belongs to them; without, the logits are returned.
            ignore_keys: as with `Trainer`.
            metric_key_prefix: as with `Trainer`.
        """
        self._memory_tracker.start()
        output = self._run(
            self.get_test_dataloader(predict_dataset), "Prediction", ignore_keys, metric_key_prefix, loss_only=None
        )
        answers = self._score(output, predict_dataset, predict_examples, "predict", metric_key_prefix)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)
        self._memory_tracker.stop_and_update_metrics(output.metrics)
        if answers is None:
            return PredictionOutput(output.predictions, output.label_ids, output.metrics)
        return PredictionOutput(answers.predictions, answers.label_ids, output.metrics)

    def _run(
        self, dataloader: Any, description: str, ignore_keys: list[str] | None, prefix: str, loss_only: bool | None
    ) -> EvalLoopOutput:
        """Logits of all windows, with the speed as metrics."""
        # The loop of Trainer would score the logits.
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        start = time.time()
        try:
            output = self.evaluation_loop(
                dataloader,
                description=description,
                prediction_loss_only=loss_only or None,
                ignore_keys=ignore_keys,
                metric_key_prefix=prefix,
            )
        finally:
            self.compute_metrics = compute_metrics
        start += output.metrics.get(f"{prefix}_model_preparation_time", 0.0)
        steps = math.ceil(output.num_samples / (self.args.eval_batch_size * self.args.world_size))
        output.metrics.update(speed_metrics(prefix, start, num_samples=output.num_samples, num_steps=steps))
        return output

    def _score(
        self, output: EvalLoopOutput, dataset: Dataset, examples: Any, stage: str, prefix: str
    ) -> EvalPrediction | None:
        """Turn logits into answers and add their metrics; None without what is needed for it."""
        if self.post_process_function is None or examples is None or output.predictions is None:
            return None
        answers = self.post_process_function(examples, dataset, output.predictions, stage)
        if self.compute_metrics is not None and answers.label_ids is not None:
            metrics = self.compute_metrics(answers)
            output.metrics.update({f"{prefix}_{name}": value for name, value in metrics.items()})
        return answers

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """The step of Trainer, without the encoder states that some models return beside start and end logits."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, None if logits is None else logits[:2], labels
