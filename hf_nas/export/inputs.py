"""Batches with padding, by which a model is traced and its export compared with it."""

import inspect
from collections.abc import Collection

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_nas.main_input import MainInput
from hf_nas.profiling import example_inputs


__all__ = ["dynamic_shapes", "input_names", "longest_input", "text_inputs"]

_SEGMENTS = "token_type_ids"
# Lengths that few models have a limit below; the position tables of real ones reach further.
_USUAL_LIMIT = 512


def input_names(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[str, ...]:
    """Names of the inputs that an export of a model takes.

    A model that tells two texts apart by their segments takes these too, unless its tokenizer makes none: an input
    that was not traced would be dropped when the export runs.

    Args:
        model: that reads tokens or images.
        tokenizer: that makes its inputs, if there is one.
    """
    names = tuple(name for name in example_inputs(model, 1, _length_for(model, 4)) if name != "use_cache")
    accepted = inspect.signature(type(model).forward).parameters
    made = tokenizer is None or _SEGMENTS in tokenizer.model_input_names
    if made and _SEGMENTS in accepted and (getattr(model.config, "type_vocab_size", None) or 0) > 1:
        names += (_SEGMENTS,)
    return names


def longest_input(model: PreTrainedModel) -> int:
    """Number of tokens that a model of texts reads, at most 512."""
    limit = min(getattr(model.config, "max_position_embeddings", None) or _USUAL_LIMIT, _USUAL_LIMIT)
    # RoBERTa and its kin count positions from behind that of the padding.
    offset = max(
        (module.padding_idx + 1 for module in _position_tables(model) if module.padding_idx is not None), default=0
    )
    return limit - offset


def text_inputs(
    model: PreTrainedModel, batch_size: int, length: int, names: Collection[str]
) -> dict[str, torch.Tensor]:
    """A batch of random tokens, every row but the first with padding at its end; or of random images.

    Always the same for the same model and sizes. A classifying encoder-decoder gets no padding, since it looks for the
    last token.

    Args:
        model: on whose device the batch is put.
        batch_size: number of rows.
        length: tokens of a row, of the encoder if there is one; of no account for images.
        names: of the inputs, see [`input_names`].

    Returns:
        By name, tensors of shape (rows, tokens), for multiple choice (rows, 2, tokens).

    Raises:
        ValueError: for sizes below 1 or a model that reads neither tokens nor images.
    """
    decoder_length = max(length - 2, 1) if "decoder_input_ids" in names else None
    inputs = example_inputs(model, batch_size, _length_for(model, length), decoder_length)
    inputs.pop("use_cache", None)
    if "pixel_values" in inputs:
        return inputs
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if _SEGMENTS in names:
        inputs[_SEGMENTS] = torch.zeros_like(ids)
        inputs[_SEGMENTS][..., length // 2 :] = 1
    derives_decoder = model.config.is_encoder_decoder and decoder_length is None
    if mask is not None and not derives_decoder:
        pad = model.config.pad_token_id if isinstance(model.config.pad_token_id, int) else 0
        for row in range(1, batch_size):
            mask[row, ..., max(length - row, 1) :] = 0
        inputs["input_ids"] = ids.masked_fill(mask == 0, pad)
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: torch.cat([each, each.flip(0)], dim=1) for name, each in inputs.items()}
    return inputs


def dynamic_shapes(inputs: dict[str, torch.Tensor]) -> dict[str, dict[int, object]]:
    """Which sizes of the inputs may differ at every call: all, but of images the number of rows alone."""
    dynamic = torch.export.Dim.DYNAMIC
    return {
        name: {0: dynamic} if name == "pixel_values" else dict.fromkeys(range(tensor.dim()), dynamic)
        for name, tensor in inputs.items()
    }


def _length_for(model: PreTrainedModel, length: int) -> int:
    return MainInput.of(model).tokens or length


def _position_tables(model: PreTrainedModel) -> list[torch.nn.Embedding]:
    return [
        module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding)
    ]
