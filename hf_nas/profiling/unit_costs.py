"""What each unit of a model costs, so that the cost of a model is multilinear in which of its units are open.

A sub-layer with n open units in a residual stream of S open dimensions costs
`fixed + n * unit + S * (fixed_per_dimension + n * unit_per_dimension)`, and nothing when it is closed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hf_nas.main_input import MainInput
from hf_nas.ops import output_size
from hf_nas.profiling.position_costs import position_cost
from hf_nas.structures import ModelStructure, SubLayer, describe
from hf_nas.subnetwork import NORM_ONLY, SubNetwork, kept_ids


@dataclass(frozen=True)
class SubLayerCosts:
    """What one sub-layer costs.

    Args:
        unit: of an open head or neuron.
        unit_per_dimension: of an open head or neuron and open dimension of the residual stream.
        fixed: of the sub-layer, as long as it is open.
        fixed_per_dimension: of the open sub-layer and open dimension of the residual stream.
    """

    unit: float = 0.0
    unit_per_dimension: float = 0.0
    fixed: float = 0.0
    fixed_per_dimension: float = 0.0

    def total(self, units: float, dimensions: float) -> float:
        """What it costs with so many open units and dimensions."""
        per_dimension = self.fixed_per_dimension + units * self.unit_per_dimension
        return self.fixed + units * self.unit + dimensions * per_dimension


@dataclass(frozen=True)
class UnitCosts:
    """What all units of one model cost, in one measure (parameters, operations, seconds).

    Args:
        names: of the sub-layers.
        units: of each sub-layer, how many units it has.
        sub_layers: of each sub-layer, what it costs.
        dimensions: of the residual stream.
        total: that sparsities are fractions of: 1 - cost / total.
        constant: cost of what is always there.
    """

    names: tuple[str, ...]
    units: tuple[int, ...]
    sub_layers: tuple[SubLayerCosts, ...]
    dimensions: int
    total: float
    constant: float = 0.0

    def __post_init__(self) -> None:
        if not self.total > 0:
            raise ValueError(f"The total of the costs is {self.total}; it must be positive to take a fraction of it.")

    @property
    def per_dimension(self) -> bool:
        """Whether pruning a dimension of the residual stream saves anything."""
        return any(cost.unit_per_dimension or cost.fixed_per_dimension for cost in self.sub_layers)

    def check(self, structure: ModelStructure) -> None:
        """Raise a `ValueError` unless these are the costs of a model with this structure."""
        if self.names != structure.names or self.units != tuple(sub_layer.units for sub_layer in structure):
            raise ValueError(
                f"The costs are those of a model with {len(self.names)} sub-layers of up to {max(self.units)} units, "
                f"not of this {structure.model_type} model with {len(structure.names)} sub-layers; make them from it."
            )

    def cost(self, sub_network: SubNetwork, dimensions: int | None = None) -> float:
        """What a sub-network costs by these costs.

        A sub-layer without units that is not skipped costs its fixed part; one of which only the norm stays, nothing.

        Args:
            sub_network: of the model of these costs.
            dimensions: open dimensions of the residual stream, by default those of the sub-network.
        """
        if dimensions is None:
            dimensions = self.dimensions if sub_network.hidden is None else len(sub_network.hidden)
        total = self.constant
        for cost, kept in zip(self.sub_layers, sub_network.kept, strict=True):
            if kept is not None and kept != NORM_ONLY:
                total += cost.total(len(kept_ids(kept)), dimensions)
        return total

    def sparsity(self, sub_network: SubNetwork, dimensions: int | None = None) -> float:
        """Fraction of the total that a sub-network does without."""
        return 1 - self.cost(sub_network, dimensions) / self.total


def _costs(structure: ModelStructure, sub_layers: list[SubLayerCosts], dimensions: int, **others: float) -> UnitCosts:
    units = tuple(sub_layer.units for sub_layer in structure)
    constant = others.get("constant", 0.0)
    full = constant + sum(cost.total(count, dimensions) for cost, count in zip(sub_layers, units))
    return UnitCosts(structure.names, units, tuple(sub_layers), dimensions, others.get("total", full), constant)


def _has_units(sub_layer: SubLayer) -> bool:
    return sub_layer.units > 0 and not sub_layer.skipped and not sub_layer.norm_only


def _modules(base: nn.Module, sub_layer: SubLayer) -> tuple[list[nn.Module], nn.Module]:
    writers = [sub_layer.module(base, path) for path in sub_layer.layout.writers]
    return writers, sub_layer.module(base, sub_layer.layout.reader)


def _stream_width(model: PreTrainedModel, structure: ModelStructure) -> int:
    for sub_layer in structure:
        if _has_units(sub_layer):
            return output_size(_modules(model.base_model, sub_layer)[1])
    raise ValueError(f"This {structure.model_type} model has no unit left, so there is nothing to prune in it.")


def parameter_costs(model: PreTrainedModel, biases: bool = False, norms: bool = False) -> UnitCosts:
    """Parameters of attention and feed-forward sub-layers; by default weights alone.

    With no biases in the costs and in the total, a full model has a sparsity of exactly 0. With biases and norms the
    cost of a sub-network is the parameter count of its layers, relative position biases aside.

    Args:
        model: of a known family (the meta device will do).
        biases: whether to count the biases of the projections.
        norms: whether to count the norms of the sub-layers.

    Raises:
        ValueError: if the model has no units.
    """
    structure, base = describe(model), model.base_model
    dimensions = _stream_width(model, structure)
    costs = []
    for sub_layer in structure:
        if not _has_units(sub_layer):
            costs.append(SubLayerCosts())
            continue
        writers, reader = _modules(base, sub_layer)
        weights = sum(module.weight.numel() for module in (*writers, reader))
        unit_biases = sum(output_size(w) for w in writers if getattr(w, "bias", None) is not None)
        fixed = output_size(reader) if biases and getattr(reader, "bias", None) is not None else 0
        if norms:
            layout_norms = (sub_layer.module(base, path) for path in sub_layer.layout.norms)
            fixed += sum(p.numel() for norm in layout_norms for p in norm.parameters())
        costs.append(
            SubLayerCosts(
                unit=unit_biases / sub_layer.units * biases,
                unit_per_dimension=weights / sub_layer.units / dimensions,
                fixed_per_dimension=fixed / dimensions,
            )
        )
    return _costs(structure, costs, dimensions)


def mac_costs(model: PreTrainedModel, sequence_length: int, decoder_length: int | None = None) -> UnitCosts:
    """Multiply-accumulate operations of the layers for one sequence (convention of [`SizeTable.macs`], heads aside).

    Args:
        model: of a known family (the meta device will do).
        sequence_length: number of tokens, of the encoder if there is one.
        decoder_length: number of tokens of the decoder of an encoder-decoder, by default the same.

    Raises:
        ValueError: if a length is not positive or not that of every image, or the model has no units.
    """
    MainInput.of(model).check_length(sequence_length)
    decoder_length = sequence_length if decoder_length is None else decoder_length
    if min(sequence_length, decoder_length) < 1:
        raise ValueError(f"The sequence lengths are {sequence_length} and {decoder_length}; give positive ones.")
    structure, base = describe(model), model.base_model
    dimensions = _stream_width(model, structure)
    encoder_decoder = len(structure.family.stacks) > 1
    costs = []
    for sub_layer in structure:
        if not _has_units(sub_layer):
            costs.append(SubLayerCosts())
            continue
        writers, reader = _modules(base, sub_layer)
        length = decoder_length if encoder_decoder and sub_layer.stack == "decoder" else sequence_length
        keys = sequence_length if sub_layer.kind == "cross_attention" else length
        # Keys and values of a cross-attention read the encoder's tokens, everything else the sub-layer's own.
        own, memory = ([*writers[:1], reader], writers[1:]) if keys != length else ([*writers, reader], [])
        projections = length * sum(m.weight.numel() for m in own) + keys * sum(m.weight.numel() for m in memory)
        core = sub_layer.module(base, sub_layer.layout.core) if sub_layer.layout.is_attention else None
        positions = position_cost(core, sub_layer.layout, [m.weight.numel() // sub_layer.units for m in writers])
        scores = length * (2 * sub_layer.features * keys + positions.token) if core is not None else 0
        per_unit = projections / sub_layer.units - length * positions.apart + positions.once
        costs.append(
            SubLayerCosts(
                unit=sub_layer.repeats * scores, unit_per_dimension=sub_layer.repeats * per_unit / dimensions
            )
        )
    return _costs(structure, costs, dimensions)


def published_costs(model: PreTrainedModel, hidden: bool) -> UnitCosts:
    """The parameter accounting of CoFi (Xia et al., 2022), with its two inconsistencies.

    A feed-forward network is counted with 4d biases whatever its width, and with pruned hidden dimensions attention
    keeps its biases while feed-forward networks lose theirs; so a full model has a small sparsity, not 0.

    Args:
        model: an encoder whose attention has 4 d x d projections and whose feed-forward network has two.
        hidden: whether hidden dimensions are pruned.

    Raises:
        ValueError: for other models; use [`parameter_costs`] there.
    """
    structure, base = describe(model), model.base_model
    d = _stream_width(model, structure)
    costs, total = [], 0
    for sub_layer in structure:
        writers, reader = ([], None) if not _has_units(sub_layer) else _modules(base, sub_layer)
        weights = sum(module.weight.numel() for module in (*writers, *([reader] if reader is not None else [])))
        attention = sub_layer.layout.is_attention
        if weights != (4 * d * d if attention else 2 * d * sub_layer.units) or len(structure.family.stacks) > 1:
            raise ValueError(
                f"The published accounting of CoFi does not fit {sub_layer.name} of this {structure.model_type} model "
                f"({weights} weights, {sub_layer.units} units); it is for full-size encoders like BERT, elsewhere use "
                "parameter_costs."
            )
        layer = 4 * d * d + 4 * d if attention else 2 * d * sub_layer.units + 5 * d
        unit = layer // sub_layer.units
        total += unit * sub_layer.units if attention else layer
        if hidden:
            costs.append(SubLayerCosts(unit_per_dimension=unit / d if attention else 2))
        else:
            costs.append(SubLayerCosts(unit=unit))
    return _costs(structure, costs, d, total=total)


def linear_costs(model: PreTrainedModel, cost: Callable[[SubNetwork], float]) -> UnitCosts:
    """Costs per unit of anything that gives the cost of a sub-network, such as `LatencyTable.predict`.

    Each sub-layer is taken as a straight line through its cost with one unit and with all of them, and the rest of the
    full model as constant. Where the line would rise towards fewer units, or be below nothing without any, as noise in
    measurements makes it, it is the closest one that does not. Pruned hidden dimensions save nothing by these costs.

    Args:
        model: of a known family (the meta device will do).
        cost: what a sub-network of the model costs.

    Raises:
        ValueError: if the costs are not positive or the model has no units.
    """
    structure = describe(model)
    full = cost(SubNetwork.full(structure))
    costs = []
    for sub_layer in structure:
        if not _has_units(sub_layer):
            costs.append(SubLayerCosts())
            continue
        one = cost(SubNetwork.of(structure, {sub_layer.name: 1}))
        without = cost(SubNetwork.of(structure, {sub_layer.name: None}))
        whole = max(full - without, 0.0)
        unit = min(max((full - one) / max(sub_layer.units - 1, 1), 0.0), whole / sub_layer.units)
        costs.append(SubLayerCosts(unit=unit, fixed=whole - unit * sub_layer.units))
    contributions = sum(c.total(s.units, 0) for c, s in zip(costs, structure))
    dimensions = _stream_width(model, structure)
    return _costs(structure, costs, dimensions, constant=full - contributions, total=full)
