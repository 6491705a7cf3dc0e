"""A `Trainer` that fine-tunes a super-network: one backward pass a sub-network, everything else as usual."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import CONFIG_NAME

from hf_nas.distillation import in_place_loss, logits_of
from hf_nas.elastic import Pass, SuperNetwork, TrainingStrategy, get_strategy
from hf_nas.importance import OrderRecord, get_importance, reorder
from hf_nas.profiling import Parts, SizeTable
from hf_nas.space import SearchSpace, get_sampler, get_search_space
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.arguments import SuperNetworkArguments
from trainer_plugins.distillation.distilling_trainer import DistillingTrainer
from trainer_plugins.super_network.staged_training import StagedTraining


logger = logging.getLogger(__name__)


class SuperNetworkTrainer(DistillingTrainer):
    """Drop-in `Trainer` for weight-sharing NAS (Klein et al., 2024), with a teacher and in stages as in EFTNAS.

    Each optimizer step activates the sub-networks its strategy chooses, one after the other, with one backward pass
    each; their gradients add up. Evaluation, saving and everything after training use the full network.

    Sub-networks are drawn from a generator seeded with the seed and the step, so every process draws the same ones and
    a resumed run continues with those the interrupted one would have drawn.

    Args:
        super_network: strategy, search space and sampling; without a strategy nothing is elastic in training.
        search_space: the search space, in place of the one that `super_network` names.
        stages: train in stages with a search space each; their epochs and learning rates replace those of `args`.
        scores: importance of the units by sub-layer name, in place of the importance that `super_network` names.
        kwargs: of [`DistillingTrainer`] and `Trainer`.

    Raises:
        ValueError: for an unknown strategy, space, sampling or importance, before anything is trained.
    """

    def __init__(
        self,
        *args: Any,
        super_network: SuperNetworkArguments | None = None,
        search_space: SearchSpace | None = None,
        stages: StagedTraining | None = None,
        scores: Mapping[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ):
        self.super_network_arguments = super_network or SuperNetworkArguments()
        self.stages = stages
        if stages is not None and stages.compat:
            kwargs.setdefault("optimizer_cls_and_kwargs", stages.optimizer())
        super().__init__(*args, **kwargs)
        self.super_network: SuperNetwork | None = None
        self.search_space = stages.spaces[-1] if stages is not None else search_space
        self._scores = scores
        self._pass: Pass | None = None
        self._full_logits: tuple[torch.Tensor, ...] | None = None
        self._last_step: int | None = None
        self._strategies: list[TrainingStrategy] = []
        if self.super_network_arguments.sampling_strategy is not None:
            self._set_up()

    @property
    def strategy(self) -> TrainingStrategy | None:
        """The strategy of the last stage; None if nothing is elastic."""
        return self._strategies[-1] if self._strategies else None

    def _set_up(self) -> None:
        arguments = self.super_network_arguments
        self.super_network = SuperNetwork(self.model)
        self.searched_space()
        self.size_table = SizeTable(self.model)
        spaces = self.stages.spaces if self.stages is not None else (self.search_space,)
        self._strategies = [self._strategy_in(space) for space in spaces]
        if self.stages is not None:
            self.stages.set_length(self.args)
        if arguments.importance != "none" and self._scores is None:
            get_importance(arguments.importance)
        if self.args.ddp_find_unused_parameters is None:
            # Strategies without the full network leave some parameters without a gradient.
            self.args.ddp_find_unused_parameters = True

    def _strategy_in(self, space: SearchSpace) -> TrainingStrategy:
        arguments = self.super_network_arguments
        return get_strategy(arguments.sampling_strategy)(
            largest=space.largest,
            smallest=space.smallest,
            draw=self._draw_from(space),
            num_random_sub_nets=arguments.num_random_sub_nets,
        )

    def _draw_from(self, space: SearchSpace) -> Callable[[np.random.Generator], SubNetwork]:
        if all(len(dimension.choices) == 1 for dimension in space.dimensions):
            return lambda generator: space.largest
        sampler = get_sampler(
            self.super_network_arguments.sub_network_sampling,
            space,
            lambda sub_network: self.size_table.parameters(sub_network, Parts.encoder()),
        )
        return lambda generator: space.decode(sampler.sample(generator))

    def searched_space(self) -> SearchSpace:
        """The search space; of several stages that of the last one."""
        if self.search_space is None:
            structure = self.create_super_network().structure
            self.search_space = get_search_space(self.super_network_arguments.search_space, structure)
        return self.search_space

    def create_super_network(self) -> SuperNetwork:
        """The super-network on this trainer's model, attached now if it was not trained as one."""
        if self.super_network is None:
            self.super_network = SuperNetwork(self.model)
        return self.super_network

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The stages' learning rates, or those of `args`."""
        if self.stages is None or self.strategy is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = self.stages.learning_rates(optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """Train; units are first put in order of importance, unless the checkpoint or the model already is."""
        if self.strategy is not None:
            if resume_from_checkpoint:
                self._take_over_order(resume_from_checkpoint)
            else:
                self.reorder_units()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def reorder_units(self) -> None:
        """Put the units of the model in order of importance, unless they are; [`train`] does it by itself.

        Raises:
            ValueError: if scores are given to a model whose units were put in another order before.
        """
        name = self.super_network_arguments.importance
        if name == "none":
            return
        done, scores = OrderRecord.read(self.model.config), self._scores
        same = done is not None and done.importance == name
        if same and (scores is None or done.digest in (None, OrderRecord.of(name, scores).digest)):
            logger.info("The units of this model are in order of %s already.", name)
            return
        if scores is None:
            scores = get_importance(name)(self.model, self.super_network.structure, self._importance_batches())
            # Each process has looked at batches of its own.
            scores = {
                key: self.accelerator.reduce(score.to(self.args.device), "mean") for key, score in scores.items()
            }
        elif done is not None:
            raise ValueError(
                f"The units of this model were put in order of {done.importance} before, so scores from elsewhere do "
                "not belong to them any more; start from the pretrained model, or leave the scores out."
            )
        reorder(self.model, self.super_network.structure, scores)
        OrderRecord.of(name, scores).write(self.model.config)
        logger.info("Put the units of %d sub-layers in order of %s.", len(scores), name)

    def _take_over_order(self, checkpoint: str | bool) -> None:
        """The weights of a checkpoint are sorted as its configuration says, and the model will be saved with that."""
        folder = get_last_checkpoint(self.args.output_dir) if checkpoint is True else checkpoint
        path = None if folder is None else Path(folder) / CONFIG_NAME
        if path is not None and path.is_file():
            done = OrderRecord.read(json.loads(path.read_text(encoding="utf-8")))
            if done is not None:
                done.write(self.model.config)

    def _reorder_for_stage(self) -> None:
        """Sort the units where the stages say so, and the optimizer's moments with them."""
        step = self.state.global_step
        is_first_of_step, self._last_step = step != self._last_step, step
        if not is_first_of_step or not self.stages.reorders_at(step, self.state.max_steps):
            return
        scores = self.stages.norm(self.model, self.super_network.structure)
        reorder(self.model, self.super_network.structure, scores, optimizer_state=self.optimizer.state)
        logger.info("Put the units in order of their norms, as the stage that begins wants it.")

    def _importance_batches(self) -> Iterator[dict[str, Any]]:
        """Batches for an importance that looks at data: the first ones of the training."""
        for batch in islice(self.get_train_dataloader(), self.super_network_arguments.importance_batches):
            yield self._prepare_inputs(batch)

    def passes_of_step(self, step: int) -> list[Pass]:
        """The passes of an optimizer step: a function of the seed and the step alone."""
        strategy, drawn_at = self._strategies[-1], step
        if self.stages is not None:
            steps_per_epoch = self.stages.steps_per_epoch(self.state.max_steps)
            strategy = self._strategies[self.stages.schedule.stage_at(step, steps_per_epoch)[0]]
            drawn_at = self.stages.schedule.random_step(step, steps_per_epoch)
        generator = np.random.default_rng((self.args.seed, drawn_at))
        return strategy.passes(generator, step / max(self.state.max_steps - 1, 1))

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One forward and backward pass for each sub-network of the step; the loss is their sum."""
        if self.strategy is None:
            return super().training_step(model, inputs, num_items_in_batch)
        if self.stages is not None:
            self._reorder_for_stage()
        passes = self.passes_of_step(self.state.global_step)
        total = None
        try:
            if any(each.distill for each in passes):
                self._full_logits = self._ask_full_network(model, inputs)
            with self.taught(inputs):
                for position, each in enumerate(passes):
                    self.super_network.activate(each.sub_network)
                    self._pass = each
                    # Gradients are exchanged between processes once, with the last pass.
                    last = position == len(passes) - 1
                    with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                        loss = super().training_step(model, dict(inputs), num_items_in_batch)
                    total = loss if total is None else total + loss
        finally:
            self._pass = self._full_logits = None
            self.super_network.activate(self.super_network.full)
        return total

    def _ask_full_network(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Logits of the full network, by a pass of its own.

        Keeping the graph of the full network's own training pass would save this pass, but data parallelism and
        gradient checkpointing forbid another network's backward pass in between.
        """
        model.train()
        self.super_network.activate(self.super_network.full)
        with torch.no_grad(), self.compute_loss_context_manager():
            return logits_of(model(**self._prepare_inputs(dict(inputs))))

    def training_loss(self, task_loss: torch.Tensor, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss of one pass: on the labels, with the teacher, or with the full network as teacher."""
        if self._pass is None or not self._pass.distill:
            return super().training_loss(task_loss, outputs, inputs)
        logits = logits_of(outputs)
        return in_place_loss(
            task_loss,
            logits,
            self._full_logits,
            inputs.get("labels"),
            temperature=self.super_network_arguments.temperature,
            regression=self.is_regression,
            shifted=self._loss_shifts_labels,
            mask=self.distillation_mask(logits, inputs) if len(logits) > 1 else None,
        )
