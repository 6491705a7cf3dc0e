"""A `SuperNetworkTrainer` for encoder-decoders that is evaluated by what they translate, and scores for a search."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, ProgressCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from hf_nas.distillation import IGNORED_LABEL
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.search.task_evaluation import ScoredRows
from trainer_plugins.super_network.super_network_trainer import SuperNetworkTrainer


__all__ = ["SEARCH_METRICS", "CandidateScores", "SearchMetric", "TranslationRows", "TranslationTrainer"]


@dataclass(frozen=True)
class SearchMetric:
    """A metric that sub-networks can be compared by.

    Args:
        greater_is_better: whether a larger one is better.
        scale: its value of a perfect model, if there is one.
        generates: whether it needs translations.
    """

    greater_is_better: bool = True
    scale: float = 1.0
    generates: bool = False


# The cheapest is the first and the default: a forward pass over the right translation. BLEU takes one for every token
# and beam.
SEARCH_METRICS = {
    "token_accuracy": SearchMetric(),
    "loss": SearchMetric(greater_is_better=False),
    "bleu": SearchMetric(scale=100.0, generates=True),
}


@dataclass(frozen=True, eq=False)
class TranslationRows(Dataset):
    """Tokenised rows, and the texts that their translations are compared with.

    Labels are cut at the longest length allowed, and a tokenizer may change texts; BLEU is that of the texts as they
    were.

    Args:
        rows: with `input_ids`, and `labels` where the right translations are known.
        references: those translations, one a row.

    Raises:
        ValueError: if there are not as many references as rows.
    """

    rows: Sequence[Mapping[str, Any]]
    references: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.references is not None and len(self.references) != len(self.rows):
            raise ValueError(
                f"There are {len(self.references)} references for {len(self.rows)} rows; give one for each row."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]

    @property
    def digest(self) -> str:
        """What scores depend on beside the rows."""
        return hashlib.blake2b(json.dumps(list(self.references or ())).encode(), digest_size=16).hexdigest()


class TranslationTrainer(SuperNetworkTrainer, Seq2SeqTrainer):
    """Trains encoder-decoders, as a super-network too, and translates to evaluate them (`--predict_with_generate`).

    With [`TranslationRows`], `compute_metrics` gets the texts of the references as `label_ids`, not the labels. Length
    and beams are those of the arguments (`generation_max_length`, `generation_num_beams`).

    Args:
        kwargs: of [`SuperNetworkTrainer`].

    Raises:
        ValueError: for arguments that are not those of a `Seq2SeqTrainer`, or that translations cannot be scored by.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
        if not isinstance(arguments, Seq2SeqTrainingArguments):
            raise ValueError(
                f"The arguments of a TranslationTrainer are of type {type(arguments).__name__}; give "
                "Seq2SeqTrainingArguments, which say how translations are made."
            )
        if arguments.batch_eval_metrics or not arguments.eval_do_concat_batches:
            name = "batch_eval_metrics" if arguments.batch_eval_metrics else "eval_do_concat_batches"
            raise ValueError(
                f"--{name} is {getattr(arguments, name)}; BLEU is that of all translations together, so leave the "
                "flag out."
            )
        stages = kwargs.get("stages")
        if stages is not None and stages.compat:
            raise ValueError(
                "nncf_compat is True, but Seq2SeqTrainer takes no optimizer of the published code; leave it out."
            )
        super().__init__(*args, **kwargs)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The loop of Trainer, which scores against the texts of the references where the data set has them."""
        # Seq2SeqTrainer keeps the rows that fill up the last batch when several processes share the data set: they
        # would count twice in BLEU, and be written as translations that nobody asked for.
        self.gather_function = self.accelerator.gather_for_metrics
        compute_metrics = self.compute_metrics
        references = getattr(getattr(dataloader, "dataset", None), "references", None)

        def compute(prediction: EvalPrediction) -> dict[str, float]:
            return compute_metrics(EvalPrediction(predictions=prediction.predictions, label_ids=references))

        if compute_metrics is not None and references is not None:
            self.compute_metrics = compute
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.compute_metrics = compute_metrics

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **generation: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The step of `Seq2SeqTrainer`; without translations there is a loss alone.

        The logits of a data set over a whole vocabulary fill any memory, and nothing is made of them.
        """
        loss_only = prediction_loss_only or not self.args.predict_with_generate
        # The collator gives rows without translations the labels None, which would be taken for labels.
        inputs = {name: value for name, value in inputs.items() if value is not None}
        return super().prediction_step(model, inputs, loss_only, ignore_keys=ignore_keys, **generation)

    @property
    def generation_options(self) -> dict[str, int]:
        """Length and beams, where the arguments say them."""
        options = {"max_length": self.args.generation_max_length, "num_beams": self.args.generation_num_beams}
        return {name: value for name, value in options.items() if value is not None}

    def measure(self, sub_network: SubNetwork, rows: TranslationRows, *, generates: bool) -> dict[str, float]:
        """The loss of a sub-network, and what `compute_metrics` says of its translations; nothing is logged.

        Args:
            sub_network: of the trainer's super-network.
            rows: to be translated.
            generates: whether they are; if not, there is the loss alone.
        """
        self._gen_kwargs = dict(self.generation_options)
        # One bar is that of the search.
        bar = self.pop_callback(ProgressCallback)
        try:
            with self.create_super_network().activated(sub_network):
                output = self.evaluation_loop(
                    self.get_eval_dataloader(rows),
                    description="Candidate",
                    prediction_loss_only=None if generates else True,
                    metric_key_prefix="candidate",
                )
        finally:
            if bar is not None:
                self.add_callback(bar)
        metrics = {name.removeprefix("candidate_"): value for name, value in output.metrics.items()}
        metrics.pop("model_preparation_time", None)
        return metrics


class CandidateScores:
    """Scores sub-networks for [`trainer_plugins.run_search`] by token accuracy, loss or BLEU.

    The search's own evaluation is a forward pass over the right translations. It gives the token accuracy: the share
    of tokens that are predicted from the right ones before them. Whatever else is wanted is measured by the trainer,
    for the sub-network that was active in that pass.

    Pass [`tokens`] as `predictions` and what [`rows`] returns as data sets.

    Args:
        trainer: with the super-network and with `compute_metrics` for translations.
        metric_name: of [`SEARCH_METRICS`].

    Raises:
        ValueError: for another metric, or one that needs translations without `predict_with_generate`.
    """

    def __init__(self, trainer: TranslationTrainer, metric_name: str):
        check_search_metric(metric_name, trainer.args)
        self.trainer = trainer
        self.metric_name = metric_name
        self._candidate: SubNetwork | None = None

    def tokens(self, outputs: Any) -> torch.Tensor:
        """The most probable tokens, `(batch, length)`; logits over the vocabulary do not leave the device."""
        self._candidate = self.trainer.create_super_network().active
        return outputs.logits.argmax(dim=-1)

    def rows(self, dataset: TranslationRows, *, is_report: bool = False) -> ScoredRows:
        """A data set with all that is measured on it.

        Args:
            dataset: with labels.
            is_report: whether it is for the report, which also has the loss, and BLEU if the trainer translates.

        Raises:
            ValueError: if some of several processes would have nothing to do.
        """
        arguments, metric = self.trainer.args, SEARCH_METRICS[self.metric_name]
        generates = arguments.predict_with_generate if is_report else metric.generates
        measures = generates or is_report or self.metric_name == "loss"
        if measures and len(dataset) <= arguments.per_device_eval_batch_size * (arguments.world_size - 1):
            raise ValueError(
                f"{arguments.world_size} processes cannot share {len(dataset)} rows in batches of "
                f"{arguments.per_device_eval_batch_size}; lower --per_device_eval_batch_size."
            )
        # Padding has the label -100, or with --ignore_pad_token_for_loss False the token itself.
        padding = (IGNORED_LABEL, self.trainer.processing_class.pad_token_id)

        def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
            labels = prediction.label_ids
            counted = ~np.isin(labels, padding)
            metrics = {"token_accuracy": float((prediction.predictions == labels)[counted].mean())}
            if measures:
                metrics |= self.trainer.measure(self._candidate, dataset, generates=generates)
            return metrics

        facts: list[Any] = [self.metric_name]
        if generates:
            facts += [list(dataset.references or ()), self.trainer.generation_options]
        digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
        return ScoredRows(dataset, compute_metrics, digest)


def check_search_metric(metric_name: str, arguments: Seq2SeqTrainingArguments) -> None:
    """Refuse a metric that is not known or that nothing gives.

    Raises:
        ValueError: that says so.
    """
    if metric_name not in SEARCH_METRICS:
        raise ValueError(f"The metric of the search is {metric_name!r}; choose one of {', '.join(SEARCH_METRICS)}.")
    if SEARCH_METRICS[metric_name].generates and not arguments.predict_with_generate:
        raise ValueError(f"The metric {metric_name!r} of the search needs translations; add --predict_with_generate.")
