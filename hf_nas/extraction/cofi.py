"""Checkpoints of CoFi (Xia et al., 2022) as its published code wrote them, made into models of ours.

Small ones hold the weights of a pruned model under the names of BERT or RoBERTa in `pytorch_model.bin`, beside the
configuration of the dense model: the sizes are nowhere but in the shapes. Full ones hold dense weights and, in
`zs.pt`, the values of the gates that are still to be multiplied into them.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
)
from transformers.initialization import no_init_weights

from hf_nas.extraction.extract import extract
from hf_nas.gates.fold import fold
from hf_nas.gates.values import GateValues
from hf_nas.resize import removed_layers
from hf_nas.structures import ModelStructure, SubLayer, describe
from hf_nas.subnetwork import SubNetwork


__all__ = ["read_cofi"]

_CLASSES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], type[PreTrainedModel]]] = {
    "bert": (BertConfig, BertForSequenceClassification, BertForQuestionAnswering),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, RobertaForQuestionAnswering),
}
_WEIGHTS, _GATES, _CONFIG = "pytorch_model.bin", "zs.pt", "config.json"
# Heads that were pruned are gone from the shapes already; the rest names code or software of the past.
_STALE_FIELDS = ("pruned_heads", "auto_map", "architectures", "torch_dtype", "transformers_version", "_name_or_path")
_GATE_NAMES = ("head_z", "intermediate_z", "hidden_z", "mlp_z", "head_layer_z")


def read_cofi(folder: str | Path) -> tuple[PreTrainedModel, SubNetwork]:
    """Read a CoFi checkpoint.

    Args:
        folder: with `config.json`, `pytorch_model.bin` and, where the weights are dense, `zs.pt`. The two are read as
            plain tensors; code in them is not run.

    Returns:
        The small model, and the sub-network of the dense one that it is. Small checkpoints do not tell which units
        they kept, so that theirs counts them; full ones do.

    Raises:
        ValueError: if a file is missing, is no such checkpoint, or its tensors do not fit together.
    """
    folder = Path(folder)
    weights = _rename(_load_tensors(folder / _WEIGHTS))
    config = _read_config(folder / _CONFIG, weights)
    dense = _dense_model(config, weights)
    structure = describe(dense)
    if not (folder / _GATES).is_file():
        sub_network = _sizes(structure, config, weights)
        small = extract(dense, sub_network)
        _load(small, _renumbered(structure, dict(sub_network.items()), config, weights), folder)
        return small, sub_network
    _load(dense, weights, folder)
    values = _gate_values(structure, _load_tensors(folder / _GATES), folder / _GATES)
    sub_network = values.sub_network(structure)
    return extract(fold(dense, values), sub_network), sub_network


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(
            f"There is no file {path.name!r} in {str(path.parent)!r}; give the folder of a CoFi checkpoint."
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is no file of plain tensors written by torch.save, and nothing else is read: "
            f"{type(error).__name__}; give an intact checkpoint."
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{str(path)!r} holds a {type(loaded).__name__}; it must hold tensors by name.")
    tensors = {name: value for name, value in loaded.items() if value is not None}
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{str(path)!r} holds a {type(value).__name__} as {name!r}; it must hold tensors by name."
            )
    return tensors


def _rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give normalisations their present names, and leave out what no prediction needs."""
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith("layer_transformation.") or name.endswith("position_ids"):
            continue
        if name.endswith("LayerNorm.gamma"):
            name = name.removesuffix("gamma") + "weight"
        elif name.endswith("LayerNorm.beta"):
            name = name.removesuffix("beta") + "bias"
        renamed[name] = tensor
    return renamed


def _read_config(path: Path, weights: dict[str, torch.Tensor]) -> PreTrainedConfig:
    kinds = [kind for kind in _CLASSES if f"{kind}.embeddings.word_embeddings.weight" in weights]
    if not kinds:
        raise ValueError(
            f"The weights in {str(path.parent)!r} have no 'bert.embeddings.word_embeddings.weight' and no such table "
            "of roberta; CoFi checkpoints of BERT and RoBERTa models with a task head can be read."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as the configuration of a model: {error}.") from error
    if not isinstance(data, dict) or data.get("model_type", kinds[0]) != kinds[0]:
        found = data.get("model_type") if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"{str(path)!r} describes a {found} model, but the weights beside it are of a {kinds[0]} model."
        )
    try:
        return _CLASSES[kinds[0]][0].from_dict({key: value for key, value in data.items() if key not in _STALE_FIELDS})
    except Exception as error:  # validators refuse values each in their own way
        raise ValueError(f"{str(path)!r} is no configuration of a {kinds[0]} model: {_one_line(error)}.") from error


def _dense_model(config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """The model before pruning, with weights of any values."""
    _, classifies, answers = _CLASSES[config.model_type]
    output = "classifier.weight" if config.model_type == "bert" else "classifier.out_proj.weight"
    if "qa_outputs.weight" in weights:
        # The published model for question answering has a pooler that nothing reads.
        for name in [name for name in weights if name.startswith(f"{config.model_type}.pooler.")]:
            del weights[name]
    elif output not in weights:
        raise ValueError(
            f"The weights have neither {output!r} nor 'qa_outputs.weight'; CoFi checkpoints for classification and "
            "question answering can be read."
        )
    else:
        config.num_labels = weights[output].shape[0]
    try:
        with no_init_weights():
            return (answers if "qa_outputs.weight" in weights else classifies)(config)
    except Exception as error:  # constructors refuse values each in their own way
        raise ValueError(f"The configuration is none of a {config.model_type} model: {_one_line(error)}.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _sizes(structure: ModelStructure, config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> SubNetwork:
    """Read off the shapes what is left; a sub-layer without an output projection is gone with its normalisation."""
    table = weights[f"{config.model_type}.embeddings.word_embeddings.weight"]
    head_size = config.hidden_size // config.num_attention_heads
    kept: dict[str, int | None] = {}
    for sub_layer in structure:
        reader = weights.get(f"{config.model_type}.{sub_layer.path}.{sub_layer.layout.reader}.weight")
        features = 0 if reader is None else reader.shape[-1]
        size = head_size if sub_layer.layout.is_attention else 1
        if features % size or features // size > sub_layer.units:
            raise ValueError(
                f"The weights of {sub_layer.name} have {features} features, which are not up to {sub_layer.units} "
                f"units of {size} as the configuration says; put the configuration of the dense model beside them."
            )
        kept[sub_layer.name] = features // size or None
    return SubNetwork.of(structure, kept, table.shape[-1])


def _renumbered(
    structure: ModelStructure, kept: dict[str, Any], config: PreTrainedConfig, weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The weights under the names they have once skipped sub-layers and layers are gone."""
    weights = dict(weights)
    for sub_layer in structure:
        if kept[sub_layer.name] is None:
            prefix, layout = f"{config.model_type}.{sub_layer.path}", sub_layer.layout
            projections = (*layout.writers, layout.reader)
            for name in [f"{prefix}.{path}.{part}" for path in projections for part in ("weight", "bias")]:
                if name in weights and weights[name].numel() == 0:
                    del weights[name]
            for name in [f"{prefix}.{path}.{part}" for path in layout.norms for part in ("weight", "bias")]:
                weights.pop(name, None)  # nothing reads them, but the published code saves them
    (stack,) = structure.family.stacks
    removed = removed_layers(structure, kept)[stack.name]
    remaining = [layer for layer in range(structure.depths[stack.name]) if layer not in removed]
    start = f"{config.model_type}.{stack.path}."
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith(start):
            layer, _, rest = name.removeprefix(start).partition(".")
            if layer.isdecimal() and int(layer) in remaining:
                name = f"{start}{remaining.index(int(layer))}.{rest}"
        renamed[name] = tensor
    return renamed


def _load(model: PreTrainedModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Copy all weights into a model; nothing may be missing or left over."""
    wanted = model.state_dict()
    # The empty tensors that mark skipped sub-layers are ours.
    weights = {**{name: tensor for name, tensor in wanted.items() if tensor.numel() == 0}, **weights}
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or unknown:
        what = f"have no {missing[0]!r}" if missing else f"have {unknown[0]!r}, of which such a model has no use"
        raise ValueError(f"The weights in {str(folder)!r} {what}; give an intact CoFi checkpoint.")
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"{name!r} in {str(folder)!r} has the shape {tuple(weights[name].shape)}, where the other weights and "
                f"the configuration ask for {tuple(tensor.shape)}; give an intact CoFi checkpoint."
            )
    model.load_state_dict(weights)
    model.eval()


def _gate_values(structure: ModelStructure, gates: dict[str, torch.Tensor], path: Path) -> GateValues:
    unknown = sorted(gates.keys() - set(_GATE_NAMES))
    if unknown or not gates:
        found = repr(unknown[0]) if unknown else "no gates"
        raise ValueError(f"{str(path)!r} holds {found}; gates are called {', '.join(_GATE_NAMES)}.")
    units, sub_layers = {}, {}
    for kind, fine, coarse in (("attention", "head_z", "head_layer_z"), ("feed_forward", "intermediate_z", "mlp_z")):
        own = [sub_layer for sub_layer in structure if sub_layer.kind == kind]
        units.update(_by_layer(gates, fine, own, own[0].units, path))
        sub_layers.update(_by_layer(gates, coarse, own, 1, path))
    hidden = gates.get("hidden_z")
    values = GateValues(units, sub_layers, None if hidden is None else hidden.reshape(-1).float())
    values.check(structure)
    # The published code takes a sub-layer without any unit for gone.
    return values.resolved()


def _by_layer(
    gates: dict[str, torch.Tensor], name: str, sub_layers: list[SubLayer], units: int, path: Path
) -> dict[str, torch.Tensor]:
    """One gate a layer, whatever dimensions of size 1 it was broadcast over."""
    if name not in gates:
        return {}
    if gates[name].numel() != len(sub_layers) * units:
        raise ValueError(
            f"{name!r} in {str(path)!r} has {gates[name].numel()} elements; {len(sub_layers)} layers of {units} need "
            f"{len(sub_layers) * units}."
        )
    rows = gates[name].reshape(len(sub_layers), units).float()
    return {sub_layer.name: row for sub_layer, row in zip(sub_layers, rows)}
