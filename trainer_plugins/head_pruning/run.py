"""Heads pruned in one run: by trained gates (DSP, Voita) or by importance (Michel), extraction, fine-tuning."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from hf_nas.extraction import extract, save_extracted
from hf_nas.files import write_json
from hf_nas.gates import (
    BudgetController,
    CostBudget,
    HeadBudget,
    SubsetGates,
    TemperatureSchedule,
    VoitaGates,
    head_costs,
    head_rows,
)
from hf_nas.main_input import SequenceLengths
from hf_nas.profiling import SizeTable
from hf_nas.run_files import PRUNED_FOLDER, PRUNING_FILE, PRUNING_FOLDER
from hf_nas.subnetwork import SubNetwork, kept_ids
from trainer_plugins.arguments import HeadPruningArguments, PruningArguments
from trainer_plugins.head_pruning.budget import budget_of, heads_by_kind, heads_left, keep_by_order
from trainer_plugins.head_pruning.checks import check_heads, check_teacher, schedule_of
from trainer_plugins.head_pruning.front import evaluation_facts, find_order, is_measured, write_front
from trainer_plugins.pruning.files import REPORT_FORMAT
from trainer_plugins.pruning.pruning_trainer import PruningTrainer
from trainer_plugins.pruning.run import PruningOutcome, PruningRun, best_checkpoint
from trainer_plugins.pruning.schedule import training_steps


logger = logging.getLogger(__name__)

DENSE_FOLDER = "dense"
# Of the training, as published: 25000 of 36816 steps.
_COOLDOWN = 0.68
_L0_PENALTY = 0.0015
# Of all heads, by which the number that gates leave open may differ from the one that is kept.
_LARGE_GAP = 0.1


@dataclass(frozen=True)
class _Run(PruningRun):
    """The same with the flags of the pruning of heads, and what may stay."""

    heads: HeadPruningArguments
    lengths: SequenceLengths
    budget: HeadBudget | CostBudget | None
    cost_settings: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """All flags that say which heads, and which neurons, are left."""
        heads = {name: value for name, value in asdict(self.heads).items() if name != "gate_neurons"}
        return {**heads, **self.cost_settings}

    def finetune_settings(self) -> Mapping[str, Any]:
        """The same."""
        return self.settings


def run_head_pruning(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    heads: HeadPruningArguments,
    *,
    sequence_length: int,
    decoder_length: int | None = None,
    final: PruningArguments | None = None,
    teacher: PreTrainedModel | None = None,
    trainer_class: type[PruningTrainer] = PruningTrainer,
    record: Mapping[str, Any] | None = None,
    **trainer_arguments: Any,
) -> PruningOutcome:
    """Prune the heads of a model and fine-tune what is left, as far as that is not done already in the output folder.

    DSP and Voita train gates, with or without the weights, in `pruning/`; the small model goes to `pruned/`. Michel
    fine-tunes the model in `dense/` (unless `do_train` is not set: then it is fine-tuned already), orders its heads,
    and writes sizes and, with `do_eval`, metrics of all sub-networks on the way as `front.csv` and `front.json`. If
    `final` asks for it, the small model is fine-tuned into `finetuned/`.

    Args:
        model: pretrained, or fine-tuned where weights are not trained.
        arguments: of the training.
        heads: what to do.
        sequence_length: tokens of a sequence for which operations are counted.
        decoder_length: tokens of a sequence that an encoder-decoder writes, by default as many.
        final: whether and how the small model is fine-tuned in the end (by default it is not), and for dsp the budget
            where it is no number of heads: `target_sparsity` in `pruning_budget`.
        teacher: fine-tuned on the task; its logits are learnt wherever weights or gates are trained.
        trainer_class: for tasks that are evaluated in another way.
        record: what else the weights depend on; a run with another record in the same folder is refused.
        trainer_arguments: of `Trainer`: data, collator, metric and tokenizer.

    Raises:
        ValueError: if the flags do not fit the model, or the folder holds another run.
    """
    if not heads.is_active:
        raise ValueError("No heads are to be pruned; set pruning_method to dsp, voita or michel.")
    final = final or PruningArguments()
    lengths = SequenceLengths(sequence_length, decoder_length)
    check_heads(heads, model, final, lengths)
    check_teacher(arguments, final, teacher is not None)
    costs = {}
    if final.target_sparsity:
        costs = {"gate_neurons": heads.gate_neurons} | {
            name: getattr(final, name) for name in ("target_sparsity", "pruning_budget")
        }
        if final.pruning_budget == "macs":
            costs |= lengths.stated()
    run = _Run(
        arguments, trainer_class, teacher, dict(record or {}), trainer_arguments, heads, lengths,
        budget_of(heads, final, model, lengths), costs,
    )  # fmt: skip
    pruned = run.output / PRUNED_FOLDER
    if heads.trains_gates:
        _prune_by_gates(run, model, pruned)
    else:
        if arguments.do_train:
            model = _fine_tune_first(run, model)
        _prune_by_importance(run, model, pruned)
    return run.hand_over(model, pruned, final)


# Trained gates.


def _make_gates(run: _Run, model: PreTrainedModel) -> SubsetGates | VoitaGates:
    heads, seed = run.heads, run.arguments.seed
    if heads.pruning_method == "voita":
        penalty = _L0_PENALTY if heads.l0_penalty is None else heads.l0_penalty
        return VoitaGates(model, penalty, run.budget, seed=seed)
    if heads.use_ste:
        return SubsetGates(model, run.budget, use_straight_through=True, seed=seed)
    steps = training_steps(run.arguments, len(run.trainer_arguments["train_dataset"]))
    cooldown = heads.cooldown_steps or max(round(_COOLDOWN * steps), 1)
    if cooldown > steps:
        logger.warning(
            "The temperature falls over %d steps, but the training has %d: gates are still noisy at its end, and the "
            "heads that stay may not be those that it was trained with. Give fewer --cooldown_steps.",
            cooldown,
            steps,
        )
    schedule = TemperatureSchedule(heads.initial_temperature, heads.final_temperature, cooldown)
    return SubsetGates(model, run.budget, schedule=schedule, seed=seed)


def _make_controller(run: _Run, gates: SubsetGates | VoitaGates) -> BudgetController | None:
    """Lagrange multipliers that drive gates of Voita to a number of heads, where no penalty is given."""
    if not run.heads.has_multipliers:
        return None
    total = sum(row.units for row in head_rows(gates.structure))
    return BudgetController(head_costs(gates.structure), 1 - heads_left(run.budget, gates.structure) / total)


def _prune_by_gates(run: _Run, model: PreTrainedModel, pruned: Path) -> None:
    """Train gates, alone or with the weights, and write the model with the heads that stay."""
    folder, record = run.output / PRUNING_FOLDER, run.record_with(run.settings)
    if run.begin(folder, record) and (pruned / PRUNING_FILE).is_file():
        logger.info("The pruning in '%s' is done.", folder)
        return
    model.to(run.arguments.device)
    if not run.heads.joint_pruning:
        model.requires_grad_(False)
    gates = _make_gates(run, model)
    trainer = run.trainer(
        model,
        run.arguments_in(folder),
        gates=gates,
        controller=_make_controller(run, gates),
        schedule=schedule_of(run.heads),
    )
    run.train(trainer)
    checkpoint = best_checkpoint(trainer)
    if checkpoint == "last" and trainer.args.load_best_model_at_end:
        logger.warning(
            "No evaluation was chosen by, since the gates were not near their number of heads in any, so the last "
            "weights are taken; train for longer, or give a larger --pruning_lr."
        )
    sub_network, state = gates.sub_network(), _state_of(gates)
    if isinstance(gates, VoitaGates):
        for expected, wanted in gates.expected_by_part():
            _warn_of_gap(expected, wanted, sum(gates.sizes))
    _write(run, trainer.release(), sub_network, pruned, {**state, "checkpoint": checkpoint})
    run.finish(trainer, folder, record)


def _state_of(gates: SubsetGates | VoitaGates) -> dict[str, Any]:
    """How far the training has gone, from which one sees whether the choice is that of the training."""
    if isinstance(gates, SubsetGates):
        return {"temperature": gates.temperature}
    return {
        "expected_heads": float(gates.heads.open_probability().detach().sum()),
        "open_heads": int((gates.scores() > 0).sum()),
    }


def _warn_of_gap(expected: float, wanted: int, total: int) -> None:
    if abs(expected - wanted) <= _LARGE_GAP * total:
        return
    logger.warning(
        "The gates were trained to %.1f open heads and %d %s to stay, so the model was not trained with the heads "
        "that it keeps. Train for longer, or give %s --l0_penalty.",
        expected,
        wanted,
        "is" if wanted == 1 else "are",
        "a larger" if expected > wanted else "a smaller",
    )


# Importance.


def _fine_tune_first(run: _Run, model: PreTrainedModel) -> PreTrainedModel:
    folder, record = run.output / DENSE_FOLDER, run.record_with({})
    if not run.begin(folder, record):
        trainer = run.trainer(model, run.arguments_in(folder))
        run.train(trainer)
        trainer.save_model()
        run.finish(trainer, folder, record)
    # From the disk, so that a run that goes on from here has the same model.
    return type(model).from_pretrained(folder, attn_implementation=model.config._attn_implementation)


def _prune_by_importance(run: _Run, model: PreTrainedModel, pruned: Path) -> None:
    """Order the heads, measure what is left on the way, and write the model with the heads that stay."""
    folder, record = run.output / PRUNING_FOLDER, run.record_with(run.settings)
    record["do_train"] = run.arguments.do_train
    is_done = run.begin(folder, record) and (pruned / PRUNING_FILE).is_file()
    # What is measured may change between two attempts; the order of the heads does not.
    facts = evaluation_facts(model, run.arguments, run.trainer_arguments)
    if is_done and (facts is None or is_measured(run.output, facts)):
        logger.info("The pruning in '%s' is done.", folder)
        return
    trainer = run.trainer_class(model=model, args=run.arguments_in(folder), **run.trainer_arguments)
    order = find_order(trainer, run.heads, folder)
    # What is chosen by kinds is no prefix of the order, so it is no point of the front.
    write_front(trainer, order, run.heads.num_of_heads, run.lengths, run.output, facts)
    sub_network = keep_by_order(order, run.budget)
    _write(run, model, sub_network, pruned, {"heads_per_step": order.heads_per_step})
    run.finish(trainer, folder, record)


# Both.


def _write(
    run: _Run, model: PreTrainedModel, sub_network: SubNetwork, pruned: Path, details: Mapping[str, Any]
) -> None:
    """Write the small model and what is known of it."""
    table = SizeTable(model)
    rows = head_rows(table.structure)
    small = extract(model, sub_network)
    report = {
        "format": REPORT_FORMAT,
        "method": run.heads.pruning_method,
        "settings": {name: value for name, value in run.settings.items() if name != "pruning_method"},
        "heads": sum(len(kept_ids(sub_network[row.name])) for row in rows),
        "dense_heads": sum(row.units for row in rows),
        "parameters": sum(parameter.numel() for parameter in small.parameters()),
        "dense_parameters": table.parameters(SubNetwork.full(table.structure)),
        "macs": table.macs(sub_network, *run.lengths),
        "dense_macs": table.macs(SubNetwork.full(table.structure), *run.lengths),
        **details,
    }
    kinds = heads_by_kind(sub_network, table.structure)
    if len(kinds) > 1:
        report["heads_by_kind"] = kinds
    if isinstance(run.budget, CostBudget):
        neurons = [s for s in table.structure if not s.layout.is_attention]
        report |= {
            "neurons": sum(len(kept_ids(sub_network[s.name])) for s in neurons),
            "dense_neurons": sum(s.units for s in neurons),
            "budget": run.cost_settings["pruning_budget"],
            "target": run.budget.sparsity,
            "sparsity": run.budget.costs.sparsity(sub_network),
        }
    if run.writes:
        save_extracted(small, sub_network, pruned, run.trainer_arguments.get("processing_class"))
        write_json(pruned / PRUNING_FILE, report)
