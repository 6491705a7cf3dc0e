"""Models side by side: sizes by the published definitions, latency in one measurement, and each layer."""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from hf_nas.main_input import MainInput
from hf_nas.profiling import Latency, Parts, SizeTable, measure_latencies
from hf_nas.subnetwork import SubNetwork


__all__ = ["DEFINITIONS", "PROFILE_FORMAT", "profile_models"]

logger = logging.getLogger(__name__)

PROFILE_FORMAT = "hf_nas.profile/1"
_LATENCY_KEYS = ("median", "quartiles", "spread", "seconds")
# All parameters, and the three definitions of an encoder's size that publications use.
DEFINITIONS = {
    "all": Parts(),
    "layers": Parts.encoder(),
    "layers_without_norms": Parts(embeddings=False, norms=False, heads=False),
    "layers_and_head": Parts(embeddings=False),
}
_USUAL_LENGTH = 128
# RoBERTa and its kin keep two positions for themselves.
_KEPT_POSITIONS = 2


def _usual_length(model: PreTrainedModel) -> int:
    """The number of tokens at which publications measure, 128, or what the model can read if that is less or fixed."""
    fixed = MainInput.of(model).tokens
    if fixed is not None:
        return fixed
    positions = getattr(model.config, "max_position_embeddings", None)
    return _USUAL_LENGTH if positions is None else max(1, min(_USUAL_LENGTH, positions - _KEPT_POSITIONS))


def profile_models(
    models: Sequence[tuple[str, PreTrainedModel]],
    *,
    batch_size: int = 1,
    sequence_length: int | None = None,
    decoder_length: int | None = None,
    repeats: int = 10,
    measure: Callable[..., list[Latency]] | None = measure_latencies,
) -> dict[str, Any]:
    """Count and measure models; each is compared with the first one.

    The bound of the speed-up is the ratio of the multiply-accumulate operations. What small matrices, memory and
    everything that is no matrix product cost keeps a model below it.

    Args:
        models: each with a name, on the device where it is measured.
        batch_size: sequences of a pass.
        sequence_length: tokens of a sequence, of the encoder if there is one; by default 128, or what
            the first model reads if that is less or fixed.
        decoder_length: tokens of the decoder of an encoder-decoder, by default the same.
        repeats: rounds, in which the models take turns.
        measure: what measures; [`hf_nas.profiling.measure_latencies`] by default. None: no latency is measured.

    Returns:
        JSON types: the conditions (`batch_size`, `sequence_length`, `decoder_length`, `repeats`, `machine`), and under
        `models` for each its `parameters` by definition, `macs` of a sequence, `latency` in seconds, `speed_up`,
        `speed_up_bound`, `share_of_bound` and `layers`. Of a family that is not known only `parameters["all"]` and the
        latency are known, of a model that reads neither tokens nor images of one size only the former; what is not
        known is None.

    Raises:
        ValueError: if a model cannot read such a batch.
    """
    if sequence_length is None:
        sequence_length = _usual_length(models[0][1])
    lengths = (sequence_length, decoder_length)
    is_measured = [measure is not None and _is_measurable(model) for _, model in models]
    readers = [model for (_, model), is_one in zip(models, is_measured) if is_one]
    measured = iter(
        measure(
            readers,
            batch_size=batch_size,
            sequence_length=sequence_length,
            decoder_length=decoder_length,
            repeats=repeats,
            description="Latency",
        )
        if readers
        else ()
    )
    latencies = [next(measured) if is_one else None for is_one in is_measured]
    rows: list[dict[str, Any]] = []
    for (name, model), latency in zip(models, latencies):
        if latency is None and measure is not None:
            reader = type(model).__name__
            logger.warning("%s is a %s, which reads neither tokens nor images; it is not measured.", name, reader)
        parameters, macs, layers = _sizes(name, model, *lengths)
        first_macs = rows[0]["macs"] if rows else macs
        bound = first_macs / macs if macs and first_macs else None
        speed_up = latency.speed_up_over(latencies[0]) if latency and latencies[0] else None
        rows.append(
            {
                "model": name,
                "class": type(model).__name__,
                "parameters": parameters,
                "macs": macs,
                "latency": None if latency is None else {key: latency.to_dict()[key] for key in _LATENCY_KEYS},
                "speed_up": speed_up,
                "speed_up_bound": bound,
                "share_of_bound": speed_up / bound if speed_up and bound else None,
                "layers": layers,
            }
        )
    first = next((latency for latency in latencies if latency is not None), None)
    return {
        "format": PROFILE_FORMAT,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "decoder_length": next((each.decoder_length for each in latencies if each and each.decoder_length), None),
        "repeats": repeats,
        "machine": None if first is None else dict(first.machine),
        "models": rows,
    }


def _is_measurable(model: PreTrainedModel) -> bool:
    reads_tokens = "input_ids" in inspect.signature(type(model).forward).parameters
    return reads_tokens or MainInput.of(model).tokens is not None


def _sizes(
    name: str, model: PreTrainedModel, sequence_length: int, decoder_length: int | None
) -> tuple[dict[str, int | None], int | None, list[dict[str, Any]] | None]:
    """Parameters by definition, MACs of a sequence and the layers; of an unknown family all parameters alone."""
    everything = sum(parameter.numel() for parameter in model.parameters())
    try:
        table = SizeTable(model)
    except ValueError as error:
        logger.warning(
            "%s is a %s model, whose layers are not known, so that only all of its parameters are counted.",
            name,
            model.config.model_type,
        )
        logger.debug("Its layers cannot be described.", exc_info=error)
        return {**dict.fromkeys(DEFINITIONS), "all": everything}, None, None
    full = SubNetwork.full(table.structure)
    parameters = {definition: table.parameters(full, parts) for definition, parts in DEFINITIONS.items()}
    macs = table.macs(full, sequence_length, decoder_length)

    def macs_of(names: Sequence[str]) -> int:
        without = SubNetwork.of(table.structure, dict.fromkeys(names))
        return macs - table.macs(without, sequence_length, decoder_length)

    return parameters, macs, _layers(model, table, macs_of)


def _layers(model: PreTrainedModel, table: SizeTable, macs_of: Callable[[Sequence[str]], int]) -> list[dict[str, Any]]:
    """For each layer the units of its sub-layers (None where one is gone), its parameters and its MACs."""
    layers: dict[tuple[str, int], list[Any]] = {}
    for sub_layer in table.structure:
        layers.setdefault((sub_layer.stack, sub_layer.layer), []).append(sub_layer)
    return [
        {
            "stack": stack,
            "layer": layer,
            "units": {each.kind: None if each.skipped else each.units for each in sub_layers},
            "parameters": sum(p.numel() for p in model.base_model.get_submodule(sub_layers[0].path).parameters()),
            "macs": macs_of([each.name for each in sub_layers]),
        }
        for (stack, layer), sub_layers in layers.items()
    ]
