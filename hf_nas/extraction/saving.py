"""The folder of an extracted model: weights, configuration, sub-network, tokenizer and, if needed, its loader."""

import json
import os
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin

from hf_nas.extraction.remote_code import auto_map, remote_code
from hf_nas.extraction.sizes import HIDDEN_FIELD, MODULE_NAME, STACKS_FIELD
from hf_nas.extraction.verification import HASH_FIELD, file_hash
from hf_nas.files import write_json, write_text
from hf_nas.structures import family_of
from hf_nas.subnetwork import FILE_NAME, SubNetwork


def is_stock(model: PreTrainedModel) -> bool:
    """Whether the stock configuration states all sizes of this model, so that no help is needed to load it."""
    stated = any(getattr(model.config, field, None) is not None for field in (STACKS_FIELD, HIDDEN_FIELD))
    return not stated and not model.config.is_heterogeneous


def save_extracted(
    model: PreTrainedModel,
    sub_network: SubNetwork,
    folder: str | Path,
    processing_class: PreTrainedTokenizerBase | ImageProcessingMixin | ProcessorMixin | None = None,
) -> None:
    """Save an extracted model so that anyone can load it.

    `from_pretrained(folder)` of the Auto classes, of the stock class, and `pipeline` load it after `import hf_nas`;
    without hf-nas they do with `trust_remote_code=True`; with neither they stop with an error. A model that the stock
    configuration describes loads anywhere.

    Args:
        model: what [`extract`] returned, fine-tuned or not.
        sub_network: the sub-network it was made from, which is kept beside it.
        folder: where to; files of the same names are replaced once all are written.
        processing_class: tokenizer, image processor or processor to save with it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as temporary:
        stage = Path(temporary)
        model.save_pretrained(stage)
        if processing_class is not None:
            processing_class.save_pretrained(stage)
        sub_network.save(stage / FILE_NAME)
        if not is_stock(model):
            write_text(stage / f"{MODULE_NAME}.py", remote_code(model, family_of(model.config)))
            config = json.loads((stage / "config.json").read_text(encoding="utf-8"))
            config["auto_map"] = auto_map(model)
            config[HASH_FIELD] = file_hash(stage / f"{MODULE_NAME}.py")
            write_json(stage / "config.json", config)
        for path in sorted(stage.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)
