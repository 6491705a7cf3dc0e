"""A `Trainer` that fine-tunes a super-network: one backward pass a sub-network, everything else as usual."""

import contextlib
import logging
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer

from hf_nas.distillation import IGNORED_LABEL, in_place_loss
from hf_nas.elastic import Pass, SuperNetwork, TrainingStrategy, get_strategy
from hf_nas.importance import get_importance, reorder
from hf_nas.profiling import Parts, SizeTable
from hf_nas.space import SearchSpace, get_sampler, get_search_space
from trainer_plugins.arguments import SuperNetworkArguments


logger = logging.getLogger(__name__)


class SuperNetworkTrainer(Trainer):
    """Drop-in `Trainer` for weight-sharing NAS (Klein et al., 2024).

    Each optimizer step activates the sub-networks its strategy chooses, one after the other, with one backward pass
    each; their gradients add up. Evaluation, saving and everything after training use the full network.

    Sub-networks are drawn from a generator seeded with the seed and the step, so every process draws the same ones and
    a resumed run continues with those the interrupted one would have drawn.

    Args:
        super_network: strategy, search space and sampling; without a strategy this is the stock Trainer.
        kwargs: of `Trainer`.

    Raises:
        ValueError: for an unknown strategy, space, sampling or importance, before anything is trained.
    """

    # Everything returned by `compute_loss` is a mean over its own micro-batch; the share that a micro-batch has in its
    # batch is multiplied in below. The stock Trainer takes it for granted that heads do so, which most do not.
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, super_network: SuperNetworkArguments | None = None, **kwargs: Any):
        self.super_network_arguments = super_network or SuperNetworkArguments()
        super().__init__(*args, **kwargs)
        self.super_network: SuperNetwork | None = None
        self.search_space: SearchSpace | None = None
        self.strategy: TrainingStrategy | None = None
        self._pass: Pass | None = None
        if self.super_network_arguments.sampling_strategy is not None:
            self._set_up()

    def _set_up(self) -> None:
        arguments = self.super_network_arguments
        self.super_network = SuperNetwork(self.model)
        self.search_space = get_search_space(arguments.search_space, self.super_network.structure)
        self.size_table = SizeTable(self.model)
        sampler = get_sampler(
            arguments.sub_network_sampling,
            self.search_space,
            lambda sub_network: self.size_table.parameters(sub_network, Parts.encoder()),
        )
        strategy = get_strategy(arguments.sampling_strategy)
        self.strategy = strategy(
            largest=self.search_space.largest,
            smallest=self.search_space.smallest,
            draw=lambda generator: self.search_space.decode(sampler.sample(generator)),
            num_random_sub_nets=arguments.num_random_sub_nets,
        )
        if arguments.importance != "none":
            get_importance(arguments.importance)
        if self.args.ddp_find_unused_parameters is None:
            # Strategies without the full network leave some parameters without a gradient.
            self.args.ddp_find_unused_parameters = True

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """Train; units are first put in order of importance, unless the checkpoint or the model already is."""
        if self.strategy is not None and not resume_from_checkpoint:
            self._reorder()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _reorder(self) -> None:
        name = self.super_network_arguments.importance
        done = getattr(self.model.config, "hf_nas_reordered_by", None)
        if name == "none" or done == name:
            return
        scores = get_importance(name)(self.model, self.super_network.structure)
        reorder(self.model, self.super_network.structure, scores)
        self.model.config.hf_nas_reordered_by = name
        logger.info("Put the units of %d sub-layers in order of %s.", len(scores), name)

    def passes_of_step(self, step: int) -> list[Pass]:
        """The passes of an optimizer step: a function of the seed and the step alone."""
        generator = np.random.default_rng((self.args.seed, step))
        return self.strategy.passes(generator, step / max(self.state.max_steps - 1, 1))

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One forward and backward pass for each sub-network of the step; the loss is their sum."""
        if self.strategy is None:
            return super().training_step(model, inputs, num_items_in_batch)
        passes = self.passes_of_step(self.state.global_step)
        self._teacher_logits = None
        total = None
        try:
            if any(each.distill for each in passes):
                self._teacher_logits = self._teach(model, inputs)
            for position, each in enumerate(passes):
                self.super_network.activate(each.sub_network)
                self._pass = each
                # Gradients are exchanged between processes once, with the last pass.
                last = position == len(passes) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    loss = super().training_step(model, dict(inputs), num_items_in_batch)
                total = loss if total is None else total + loss
        finally:
            self._pass = self._teacher_logits = None
            self.super_network.activate(self.super_network.full)
        return total

    def _teach(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Logits of the full network, by a pass of its own.

        Keeping the graph of the full network's own training pass would save this pass, but data parallelism and
        gradient checkpointing forbid another network's backward pass in between.
        """
        model.train()
        self.super_network.activate(self.super_network.full)
        with torch.no_grad(), self.compute_loss_context_manager():
            return model(**self._prepare_inputs(dict(inputs))).logits

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Mean loss of the active sub-network over the batch; in training, times the share of it in its batch."""
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True)
        if self._pass is not None and self._pass.distill:
            loss = in_place_loss(
                loss,
                outputs.logits,
                self._teacher_logits,
                labels,
                temperature=self.super_network_arguments.temperature,
                regression=getattr(self.model.config, "problem_type", None) == "regression",
                shifted=self._loss_shifts_labels,
            )
        if model.training and num_items_in_batch is not None and labels is not None:
            loss = loss * self._share(labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _share(self, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
        """What makes the mean over one micro-batch its part of the mean over the whole batch.

        The Trainer divides by the number of micro-batches and data parallelism by the number of processes, as if all
        held equally many items; this undoes it.
        """
        counted = labels[..., 1:] if self._loss_shifts_labels else labels
        processes = self.args.world_size if self.args.average_tokens_across_devices else 1
        share = counted.ne(IGNORED_LABEL).sum() * self.current_gradient_accumulation_steps * processes
        return share / num_items_in_batch

    def create_super_network(self) -> SuperNetwork:
        """The super-network on this trainer's model, attached now if it was not trained as one."""
        if self.super_network is None:
            self.super_network = SuperNetwork(self.model)
        return self.super_network
