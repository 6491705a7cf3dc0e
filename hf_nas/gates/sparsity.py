"""The three definitions of sparsity in which results of CoFi are published; they must not be mixed."""

from dataclasses import asdict, dataclass

from transformers import PreTrainedModel

from hf_nas.profiling import Parts, SizeTable
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork


@dataclass(frozen=True)
class PublishedSparsity:
    """The sparsity of one sub-network, by definition.

    Args:
        training: of the training logs and `--target_sparsity`: weights of the open units over weights and biases of
            all attention and feed-forward networks.
        evaluation: of `evaluation.py`: all parameters of the layers, norms of removed sub-layers and the head of
            question answering included. It is not rounded to three digits as there.
        readme: of the README's table: the same with pooler and classifier.
    """

    training: float
    evaluation: float
    readme: float

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types."""
        return asdict(self)


def published_sparsity(model: PreTrainedModel, sub_network: SubNetwork) -> PublishedSparsity:
    """How sparse a sub-network is by each definition.

    Args:
        model: the full-size model (the meta device will do).
        sub_network: of it.

    Raises:
        ValueError: if the sub-network belongs to another model.
    """
    return PublishedSparsity(
        training=training_sparsity(model, sub_network),
        evaluation=evaluation_sparsity(model, sub_network),
        readme=readme_sparsity(model, sub_network),
    )


def training_sparsity(model: PreTrainedModel, sub_network: SubNetwork) -> float:
    """Weights of the open units, over weights and biases of all attention and feed-forward networks."""
    table, full = _table(model, sub_network)
    weights = table.parameters(sub_network, Parts(embeddings=False, norms=False, heads=False, biases=False))
    return 1 - weights / table.parameters(full, Parts(embeddings=False, norms=False, heads=False))


def evaluation_sparsity(model: PreTrainedModel, sub_network: SubNetwork) -> float:
    """Parameters of the layers, norms of removed sub-layers included, over those of the full model's layers."""
    table, full = _table(model, sub_network)
    size = table.parameters(sub_network, Parts.encoder()) + _unused_norms(model, sub_network)
    answers = _question_answering_head(model, None)
    size += _question_answering_head(model, sub_network)
    return 1 - size / (table.parameters(full, Parts.encoder()) + answers)


def readme_sparsity(model: PreTrainedModel, sub_network: SubNetwork) -> float:
    """Parameters of everything but the embeddings, norms of removed sub-layers included, over the full model's."""
    table, full = _table(model, sub_network)
    parts = Parts(embeddings=False)
    size = table.parameters(sub_network, parts) + _unused_norms(model, sub_network)
    return 1 - size / table.parameters(full, parts)


def _table(model: PreTrainedModel, sub_network: SubNetwork) -> tuple[SizeTable, SubNetwork]:
    table = SizeTable(model)
    sub_network.check(table.structure)
    return table, SubNetwork.full(table.structure)


def _unused_norms(model: PreTrainedModel, sub_network: SubNetwork) -> int:
    """Norms of removed sub-layers, which the published checkpoints keep at full size and ours leave out."""
    return sum(
        parameter.numel()
        for sub_layer in describe(model)
        if not sub_layer.skipped and sub_network[sub_layer.name] is None
        for path in sub_layer.layout.norms
        for parameter in sub_layer.module(model.base_model, path).parameters()
    )


def _question_answering_head(model: PreTrainedModel, sub_network: SubNetwork | None) -> int:
    head = getattr(model, "qa_outputs", None)
    if head is None:
        return 0
    outputs, inputs = head.weight.shape
    hidden = None if sub_network is None else sub_network.hidden
    return outputs * (inputs if hidden is None else len(hidden)) + (0 if head.bias is None else outputs)
