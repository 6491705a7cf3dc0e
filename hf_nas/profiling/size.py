"""Exact parameter and MAC counts of sub-networks, as integers, from one pass over the model."""

from collections import Counter
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_nas.main_input import MainInput
from hf_nas.ops import output_size
from hf_nas.profiling.position_costs import PositionCost, position_cost
from hf_nas.resize import own_position_bias
from hf_nas.structures import ModelStructure, SubLayer, describe
from hf_nas.structures.hidden import residual_stream
from hf_nas.subnetwork import NORM_ONLY, SubNetwork, kept_ids


@dataclass(frozen=True)
class Parts:
    """Which parameters count.

    Three definitions of the size of a pruned encoder are in circulation: the attention and feed-forward weights and
    biases (`Parts(embeddings=False, norms=False, heads=False)`), the same with their norms
    (`Parts.encoder()`), and that with pooler and task head (`Parts(embeddings=False)`).

    Args:
        embeddings: all embedding tables and their norm; a table tied to the output head counts once, here.
        norms: normalisation weights and biases.
        heads: everything else outside the layers: pooler, task head, final norms.
        biases: biases of the projections.
    """

    embeddings: bool = True
    norms: bool = True
    heads: bool = True
    biases: bool = True

    @classmethod
    def encoder(cls) -> "Parts":
        """Everything inside the layers and nothing else."""
        return cls(embeddings=False, heads=False)


@dataclass(frozen=True)
class _Cost:
    weight: int = 0
    bias: int = 0
    norm: int = 0

    def total(self, parts: Parts) -> int:
        return self.weight + self.bias * parts.biases + self.norm * parts.norms

    def plus(self, kind: str, size: int) -> "_Cost":
        return replace(self, **{kind: getattr(self, kind) + size})


@dataclass(frozen=True)
class _SubLayerCost:
    per_unit: _Cost  # of one head or neuron
    fixed: _Cost  # of the sub-layer, as long as it is not skipped
    inputs: int  # MACs a unit and token that read the sub-layer's own input (query, output, feed-forward)
    memory: int  # MACs a unit and token that read the encoder output (keys and values of cross-attention)
    attention: int  # MACs a unit and pair of tokens
    position_bias: int  # parameters of a relative position bias a head
    positions: PositionCost = PositionCost()  # MACs with embeddings of relative positions
    repeats: int = 1  # times that it runs in a pass

    def narrowed(self, width: int, full: int) -> "_SubLayerCost":
        """The same with `width` of `full` hidden dimensions; the projections of each unit read or write them all."""
        per_unit = replace(self.per_unit, weight=self.per_unit.weight // full * width)
        fixed = replace(self.fixed, bias=self.fixed.bias // full * width, norm=self.fixed.norm // full * width)
        return replace(self, per_unit=per_unit, fixed=fixed, inputs=self.inputs // full * width)


@dataclass(frozen=True)
class _Outside:
    """What is outside the layers: parameters, and the MACs of the heads a sequence and a token."""

    embeddings: _Cost = _Cost()
    heads: _Cost = _Cost()
    macs_sequence: int = 0
    macs_token: int = 0


@dataclass(frozen=True)
class _Tensor:
    """A parameter outside the layers: where and how its elements count, and how many hidden dimensions it has."""

    group: str
    kind: str
    size: int
    macs: str
    dimensions: int

    def narrowed(self, width: int, full: int) -> int:
        return self.size // full**self.dimensions * width**self.dimensions if self.dimensions else self.size


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _position_bias_tables(model: PreTrainedModel, structure: ModelStructure) -> dict[str, nn.Embedding]:
    """By stack, the table of relative position biases beside its layers (MPNet)."""
    paths = {stack.name: stack.position_bias_table for stack in structure.family.stacks}
    return {name: model.base_model.get_submodule(path) for name, path in paths.items() if path}


def _hidden_dimensions(model: PreTrainedModel, structure: ModelStructure) -> Counter:
    """By id of a parameter, how many of its dimensions are hidden dimensions."""
    dimensions: Counter = Counter()
    if not structure.hidden_size:
        return dimensions
    stream = residual_stream(model, structure)
    written = (*stream.tables, *stream.norms, *stream.writers, *stream.head_writers, *stream.head_norms)
    output = () if stream.is_tied or stream.output_embeddings is None else (stream.output_embeddings,)
    dimensions.update(id(p) for module in written for p in module.parameters(recurse=False))
    dimensions.update(id(module.weight) for module in (*stream.readers, *output))
    return dimensions


def _outside(model: PreTrainedModel, structure: ModelStructure) -> tuple[_Tensor, ...]:
    """The parameters outside the layers, tied ones once."""
    base = model.base_model
    inside = {id(p) for s in structure for p in base.get_submodule(s.path).parameters()}
    inside |= {id(table.weight) for table in _position_bias_tables(model, structure).values()}
    dimensions = _hidden_dimensions(model, structure)
    tensors = []
    seen = set(inside)
    one_vector = any(
        word in type(model).__name__ for word in ("SequenceClassification", "MultipleChoice", "ImageClassification")
    )
    in_base = {id(module) for module in base.modules()}
    modules = sorted(model.named_modules(), key=lambda item: not isinstance(item[1], nn.Embedding))
    for name, module in modules:
        own = [(n, p) for n, p in module.named_parameters(recurse=False) if id(p) not in seen]
        if isinstance(module, nn.Linear | Conv1D) and not any(id(p) in inside for p in module.parameters(False)):
            # Projections of embeddings (ELECTRA, ALBERT) are in the base model, heads are not.
            reads_one = "pooler" in name or (one_vector and id(module) not in in_base)
            macs = "macs_sequence" if reads_one else "macs_token"
            tensors.append(_Tensor("", "", module.weight.numel(), macs, dimensions[id(module.weight)]))
        elif isinstance(module, nn.Conv1d):  # along the tokens (DeBERTa-v2)
            tensors.append(_Tensor("", "", module.weight.numel(), "macs_token", dimensions[id(module.weight)]))
        elif isinstance(module, nn.Conv2d):
            # The projection of patches makes all tokens but the first one, which stands for the whole image.
            tensors.append(_Tensor("", "", module.weight.numel(), "macs_token", 0))
            tensors.append(_Tensor("", "", -module.weight.numel(), "macs_sequence", 0))
        seen.update(id(p) for _, p in own)
        in_embeddings = isinstance(module, nn.Embedding) or "embed" in name or name.endswith(("wte", "wpe", "shared"))
        for parameter_name, parameter in own:
            if in_embeddings:
                group, kind = "embeddings", "weight"
            else:
                kind = "norm" if _is_norm(module) else "bias" if parameter_name.endswith("bias") else "weight"
                group = "heads"
            tensors.append(_Tensor(group, kind, parameter.numel(), "", dimensions[id(parameter)]))
    return tuple(tensors)


def _outside_of_width(tensors: tuple[_Tensor, ...], width: int, full: int) -> _Outside:
    total = _Outside()
    for tensor in tensors:
        size = tensor.narrowed(width, full)
        if tensor.macs:
            total = replace(total, **{tensor.macs: getattr(total, tensor.macs) + size})
        else:
            total = replace(total, **{tensor.group: getattr(total, tensor.group).plus(tensor.kind, size)})
    return total


def _sub_layer_cost(model: PreTrainedModel, sub_layer: SubLayer) -> _SubLayerCost:
    if sub_layer.skipped:
        return _SubLayerCost(_Cost(), _Cost(), 0, 0, 0, 0)
    base, layout = model.base_model, sub_layer.layout
    if sub_layer.norm_only:
        norms = sum(p.numel() for path in layout.norms for p in sub_layer.module(base, path).parameters())
        return _SubLayerCost(_Cost(), _Cost(norm=norms), 0, 0, 0, 0)
    writers = [sub_layer.module(base, path) for path in layout.writers]
    reader = sub_layer.module(base, layout.reader)
    norms = sum(p.numel() for path in layout.norms for p in sub_layer.module(base, path).parameters())
    units = max(sub_layer.units, 1)
    weights = [writer.weight.numel() // units for writer in writers]
    reader_weight = reader.weight.numel() // units
    biases = sum(output_size(w) // units for w in writers if getattr(w, "bias", None) is not None)
    reader_bias = 0 if getattr(reader, "bias", None) is None else reader.bias.numel()
    # Norms of single heads (Qwen3) are shared by all of them, so they stay as long as the sub-layer does.
    core = sub_layer.module(base, layout.core) if layout.is_attention else None
    head_norms = 0
    if core is not None:
        head_norms = sum(p.numel() for m in core.modules() if _is_norm(m) for p in m.parameters(recurse=False))
        head_norms -= sum(
            p.numel() for path in layout.norms if path.startswith(layout.core + ".")
            for p in sub_layer.module(base, path).parameters()
        )  # fmt: skip
    from_memory = sum(weights[1:]) if layout.kind == "cross_attention" else 0
    positions = position_cost(core, layout, weights)
    return _SubLayerCost(
        per_unit=_Cost(weight=sum(weights) + reader_weight, bias=biases),
        fixed=_Cost(bias=reader_bias, norm=norms + head_norms),
        inputs=sum(weights) + reader_weight - from_memory - positions.apart,
        memory=from_memory,
        attention=2 * sub_layer.features if layout.is_attention else 0,
        position_bias=model.config.relative_attention_num_buckets if layout.position_bias else 0,
        positions=positions,
        repeats=sub_layer.repeats,
    )


class SizeTable:
    """Counts parameters and MACs of the sub-networks of one model.

    Built once from the model (the meta device will do); each count is then a sum over the sub-layers. The parameter
    count equals the number of elements of the extracted model.
    """

    def __init__(self, model: PreTrainedModel):
        self.structure = describe(model)
        self.main_input = MainInput.of(model)
        self._costs = tuple(_sub_layer_cost(model, sub_layer) for sub_layer in self.structure)
        tables = _position_bias_tables(model, self.structure)
        self._shared_tables = {stack: table.weight.numel() for stack, table in tables.items()}
        self._tensors = _outside(model, self.structure)
        self._of_width: dict[int, tuple[_Outside, tuple[_SubLayerCost, ...]]] = {}

    def _of(self, sub_network: SubNetwork) -> tuple[_Outside, tuple[_SubLayerCost, ...]]:
        full = self.structure.hidden_size
        width = full if sub_network.hidden is None else len(sub_network.hidden)
        if width not in self._of_width:
            costs = self._costs if width == full else tuple(cost.narrowed(width, full) for cost in self._costs)
            self._of_width[width] = _outside_of_width(self._tensors, width, full), costs
        return self._of_width[width]

    def parameters(self, sub_network: SubNetwork, parts: Parts = Parts()) -> int:
        """Number of parameters of a sub-network.

        Args:
            sub_network: of the model this table was built from.
            parts: which parameters count; by default all.
        """
        outside, costs = self._of(sub_network)
        total = outside.embeddings.total(replace(parts, norms=True, biases=True)) if parts.embeddings else 0
        total += outside.heads.total(parts) if parts.heads else 0
        for cost, kept in zip(costs, sub_network.kept, strict=True):
            if kept == NORM_ONLY:
                total += cost.fixed.norm * parts.norms
            elif kept is not None:
                total += len(kept_ids(kept)) * cost.per_unit.total(parts) + cost.fixed.total(parts)
        return total + self._position_bias(sub_network)

    def _position_bias(self, sub_network: SubNetwork) -> int:
        """Relative position biases: one table a stack; where heads differ, one a layer (T5) or the whole (MPNet)."""
        kept = dict(sub_network.items())
        own = own_position_bias(self.structure, kept)
        total = 0
        for stack, has_own in own.items():
            tables = [
                cost.position_bias * len(kept_ids(kept[sub_layer.name]))
                for sub_layer, cost in zip(self.structure, self._costs)
                if sub_layer.stack == stack and cost.position_bias
            ]
            if has_own:
                total += self._shared_tables.get(stack, sum(tables))
            else:
                total += max(tables, default=0)
        return total

    def macs(self, sub_network: SubNetwork, sequence_length: int, decoder_length: int | None = None) -> int:
        """Multiply-accumulate operations of one forward pass over one sequence.

        Matrix products only: projections, attention scores and their application, pooler and head. Embeddings,
        softmax, norms, biases and activations count nothing (the convention of NNCF). A pooler or classifier reads
        one vector; other heads, projections of embeddings and convolutions along the sequence read every token.

        Args:
            sub_network: of the model this table was built from.
            sequence_length: number of tokens, of the encoder if there is one; of an image, its patches and the first
                token, which stands for all of it.
            decoder_length: number of tokens of the decoder of an encoder-decoder, by default the same.

        Raises:
            ValueError: for another number of tokens than every image has.
        """
        self.main_input.check_length(sequence_length)
        lengths = {"encoder": sequence_length, "decoder": sequence_length}
        encoder_decoder = len(self.structure.family.stacks) > 1
        if encoder_decoder and decoder_length is not None:
            lengths["decoder"] = decoder_length
        head_length = lengths[self.structure.family.stacks[-1].name]
        outside, costs = self._of(sub_network)
        total = outside.macs_sequence + head_length * outside.macs_token
        for sub_layer, cost, count in zip(self.structure, costs, sub_network.counts(), strict=True):
            if not count:
                continue
            length = lengths.get(sub_layer.stack, sequence_length)
            keys = sequence_length if sub_layer.kind == "cross_attention" else length
            unit = length * cost.inputs + keys * cost.memory + length * keys * cost.attention
            total += count * cost.repeats * (unit + length * cost.positions.token + cost.positions.once)
        return total
