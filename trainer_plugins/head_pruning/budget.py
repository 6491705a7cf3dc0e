"""How many heads stay, or how much of the cost of heads and neurons: what the flags say of one model."""

from transformers import PreTrainedModel

from hf_nas.gates import CostBudget, HeadBudget, head_rows, kind_of_row
from hf_nas.importance.head_gradient import HeadOrder
from hf_nas.main_input import SequenceLengths
from hf_nas.profiling import mac_costs, parameter_costs
from hf_nas.structures import ModelStructure, describe
from hf_nas.subnetwork import SubNetwork, kept_ids
from trainer_plugins.arguments import HeadPruningArguments, PruningArguments


# What of CoFi's budgets a unit of any kind has a cost of its own by.
MEASURES = ("params", "macs")
# In the published order.
_KINDS = {
    "num_of_heads_encoder_self": "encoder.attention",
    "num_of_heads_cross": "decoder.cross_attention",
    "num_of_heads_decoder_self": "decoder.attention",
}
_NAMES = dict(zip(_KINDS.values(), ("encoder self-attention", "cross-attention", "decoder self-attention")))


def budget_of(
    heads: HeadPruningArguments, pruning: PruningArguments, model: PreTrainedModel, lengths: SequenceLengths
) -> HeadBudget | CostBudget | None:
    """The budget that the flags ask for, checked against the model; None if it goes by a penalty alone.

    Args:
        heads: with the numbers of heads, and whether neurons are pruned too.
        pruning: with `target_sparsity` and `pruning_budget`, where heads are not counted.
        model: to be pruned.
        lengths: of a sequence, for a budget in operations.

    Raises:
        ValueError: for numbers of heads or a sparsity that the model cannot have.
    """
    structure = describe(model)
    if pruning.target_sparsity:
        costs = parameter_costs(model) if pruning.pruning_budget == "params" else mac_costs(model, *lengths)
        budget = CostBudget(costs, pruning.target_sparsity, ("heads", "neurons") if heads.gate_neurons else ("heads",))
        budget.split(structure)
        return budget
    if heads.heads_by_kind:
        present = {kind_of_row(row) for row in head_rows(structure)}
        for flag, count in heads.heads_by_kind.items():
            if _KINDS[flag] not in present:
                raise ValueError(
                    f"--{flag} is {count}, but this {structure.model_type} model has no heads of the "
                    f"{_NAMES[_KINDS[flag]]}; leave it out."
                )
        budget = HeadBudget({_KINDS[flag]: count for flag, count in heads.heads_by_kind.items()})
    elif heads.num_of_heads is not None:
        budget = HeadBudget(heads.num_of_heads)
    else:
        return None
    budget.groups(structure)
    return budget


def heads_left(budget: HeadBudget, structure: ModelStructure) -> int:
    """How many heads a budget leaves, those of the kinds that it does not name included."""
    groups = budget.groups(structure)
    gated = {row.name for rows, _ in groups for row in rows}
    others = sum(row.units for row in head_rows(structure) if row.name not in gated)
    return others + sum(count for _, count in groups)


def heads_by_kind(sub_network: SubNetwork, structure: ModelStructure) -> dict[str, dict[str, int]]:
    """How many heads of each kind of attention are kept, and of how many; in the published order of the kinds."""
    kinds: dict[str, dict[str, int]] = {}
    for row in head_rows(structure):
        kind = kind_of_row(row)
        counts = kinds.setdefault(_NAMES.get(kind, kind), {"kept": 0, "of": 0})
        counts["kept"] += len(kept_ids(sub_network[row.name]))
        counts["of"] += row.units
    return kinds


def keep_by_order(order: HeadOrder, budget: HeadBudget) -> SubNetwork:
    """The sub-network of the heads that were pruned last, of all or, if the budget is by kind, of each kind."""
    kept: dict[str, tuple[int, ...]] = {}
    for rows, count in budget.groups(order.structure):
        names = {row.name for row in rows}
        own = [head for head in order.removed if head[0] in names]
        left = own[len(own) - count :]
        kept |= {name: tuple(sorted(unit for each, unit in left if each == name)) for name in names}
    return SubNetwork.of(order.structure, kept)
