"""The text of a model card in Markdown. Names and numbers come from a run; whatever they hold stays text."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_nas.report.card_facts import SELECTION_SPLIT, CardFacts, auto_class_of, class_name_of, pipeline_of, scores_of
from hf_nas.report.machine import describe_conditions
from hf_nas.report.methods import method_of
from hf_nas.report.page.data import SubLayerPicture, draw_structure
from hf_nas.report.run_folder import RunFolder
from hf_nas.version import __version__


__all__ = ["FRONT_PICTURE", "card_body"]

FRONT_PICTURE, FRONT_NUMBERS = "front.png", "front.csv"
# Of the arguments that a run records, those that say how its weights came about; paths of a machine say nothing.
_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "warmup_steps", "weight_decay",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_seq_length", "seed", "sampling_strategy",
    "search_space", "num_random_sub_nets", "sub_network_sampling", "importance", "pruning_type", "pruning_budget",
    "target_sparsity", "pruning_method", "num_of_heads", "selection_split", "dataset_seed",
)  # fmt: skip
# The most unit ids that are listed one by one.
_MOST_IDS = 16
# What transformers has a pipeline for; of other tasks the card shows the model alone.
_WITH_PIPELINE = (
    "text-classification",
    "token-classification",
    "fill-mask",
    "text-generation",
    "image-classification",
)


def card_body(run: RunFolder, facts: CardFacts) -> str:
    """Everything below the metadata.

    Args:
        run: with its small model.
        facts: about it.
    """
    sections = (
        _summary(run, facts), _loading(run, facts), _sizes(run), _results(run, facts), _structure(run),
        _making(run, facts), _license(facts), _files(run),
    )  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def plain(text: object) -> str:
    """Text in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~])", r"\\\1", " ".join(str(text).split()))


def fenced(code: str, language: str = "") -> str:
    """A block of code, whatever the code holds."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _table(rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """Rows with a header, cells as they are given."""
    rule = ["---" if place < numbers_from else "--:" for place in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:]))


def _base_name(facts: CardFacts) -> str:
    if facts.base is None:
        return "a model whose name was not recorded"
    if facts.base.repository is None:
        return f"a local copy of `{facts.base.name}`"
    return f"[{facts.base.repository}](https://huggingface.co/{facts.base.repository})"


def _summary(run: RunFolder, facts: CardFacts) -> str:
    data = f", fine-tuned on {plain(facts.dataset)}" if facts.dataset else ""
    lines = [f"# {plain(facts.name)}", "", f"A smaller version of {_base_name(facts)}{data}. {_in_numbers(run)}"]
    methods = method_of(run)
    if methods:
        lines.append(
            f"It was made by {' and by '.join(method.text for method in methods)}, with hf-nas {__version__}."
        )
    return "\n".join(lines)


def _in_numbers(run: RunFolder) -> str:
    if run.profile is None:
        return "Its units (attention heads, neurons, layers) are a part of those of the dense model."
    dense, small = run.profile["models"]
    text = f"It has {small['parameters']['all']:,} of the {dense['parameters']['all']:,} parameters"
    if small["macs"] and dense["macs"]:
        text += f" and needs {small['macs'] / dense['macs']:.1%} of the operations"
    if small["speed_up"]:
        text += f"; measured, it is {small['speed_up']:.2f} times as fast"
    return text + "."


def _loading(run: RunFolder, facts: CardFacts) -> str:
    if not (run.small / "modeling_hf_nas.py").is_file():
        return (
            "## How to load it\n\nThe stock configuration of transformers states all sizes of this model, so it loads "
            f"anywhere, with and without hf-nas:\n\n{_call(run, facts)}"
        )
    return (
        "## How to load it\n\nThe layers of this model differ in size, as its configuration states. With hf-nas "
        f"installed:\n\n{_call(run, facts, first='import hf_nas')}\n\nWithout it, by the "
        "loader `modeling_hf_nas.py` beside the weights, which you should read first:\n\n"
        f"{_call(run, facts, more=', trust_remote_code=True')}\n\nWith neither, loading stops with an error; it never "
        "fills in random weights."
    )


def _call(run: RunFolder, facts: CardFacts, first: str = "", more: str = "") -> str:
    """The code that loads the model: a pipeline where there is one for its task."""
    class_name = class_name_of(run)
    task = facts.task or pipeline_of(class_name)
    # The name may hold anything; in code it is a string.
    name = json.dumps(facts.source or facts.name, ensure_ascii=False)
    if task in _WITH_PIPELINE:
        lines = ["from transformers import pipeline", "", f'model = pipeline("{task}", model={name}{more})']
    else:
        auto_class = auto_class_of(class_name)
        lines = [f"from transformers import {auto_class}", "", f"model = {auto_class}.from_pretrained({name}{more})"]
    return fenced("\n".join([*([first] if first else []), *lines]), "python")


def _sizes(run: RunFolder) -> str:
    profile = run.profile
    if profile is None:
        return ""
    dense, small = profile["models"]
    length = profile["sequence_length"]
    names = {
        "all": "parameters",
        "layers_and_head": "parameters without embeddings",
        "layers": "parameters in the layers",
        "layers_without_norms": "the same without norms",
    }
    rows = [("", "dense", "this model", "this / dense")]
    for definition, name in names.items():
        rows.append((name, *_compared(dense["parameters"][definition], small["parameters"][definition])))
    rows.append((f"operations (MACs) of {length} tokens", *_compared(dense["macs"], small["macs"])))
    text = f"## Size and speed\n\n{_table(rows)}\n\n"
    if small["latency"] is None or dense["latency"] is None:
        return f"{text}Its latency was not measured."
    cells = [
        f"{1e3 * each['latency']['median']:.2f} ms ± {50 * each['latency']['spread']:.0f} %" for each in (dense, small)
    ]
    bound = small["speed_up_bound"]
    speed = [("", "dense", "this model", "speed-up", "by its operations", "reached")]
    reached = ("-", "-") if not bound else (f"{bound:.2f}x", f"{small['share_of_bound']:.0%}")
    speed.append(("latency", *cells, f"**{small['speed_up']:.2f}x**", *reached))
    note = (
        f"{plain(describe_conditions(profile))}. Both models took turns in one measurement; ± is half the distance of "
        "the quartiles. The dense one has the sizes of the base model and random weights, on which speed does not "
        "depend. A speed-up belongs to a machine, a batch size and a length."
    )
    return f"{text}{_table(speed)}\n\n{note}"


def _compared(dense: int | None, small: int | None) -> tuple[str, str, str]:
    if dense is None or small is None:
        return ("-", "-", "-")
    return f"{dense:,}", f"{small:,}", f"{small / dense:.1%}" if dense else "-"


def _results(run: RunFolder, facts: CardFacts) -> str:
    scores = scores_of(run)
    if not scores:
        return ""
    has_largest = any(score.largest is not None for score in scores)
    rows = [("metric", "data", "this model", *(["largest sub-network"] if has_largest else []))]
    for score in scores:
        largest = [f"{score.largest:.4f}" if score.largest is not None else ""] if has_largest else []
        rows.append((plain(score.metric), plain(score.split), f"{score.value:.4f}", *largest))
    parts = [f"## Results\n\n{_table(rows, numbers_from=2)}"]
    if run.outcome is not None:
        reported = next((score.split for score in scores if score.split != SELECTION_SPLIT), None)
        share = run.arguments.get("selection_split")
        held_out = f" ({share:.0%} of the training set)" if isinstance(share, float) and share < 1 else ""
        note = (
            f"Sub-networks were compared and this one was chosen on the *selection* data, which the training held out"
            f"{held_out}; those numbers favour what was chosen."
        )
        if reported is not None:
            note += f" The *{plain(reported)}* data played no part in search and choice."
        parts.append(note)
        if (run.folder / "search" / FRONT_PICTURE).is_file():
            text = f"![Metric against size of all evaluated sub-networks]({FRONT_PICTURE})"
            parts.append(f"{text}\n\nThe numbers of all evaluated sub-networks are in `{FRONT_NUMBERS}`.")
    return "\n\n".join(parts)


def _structure(run: RunFolder) -> str:
    layers = draw_structure(run.sub_network)
    kinds = list(dict.fromkeys(each.kind for layer in layers for each in layer.sub_layers))
    rows = [("layer", *(f"{kind} kept" for kind in kinds))]
    for layer in layers:
        pictures = {each.kind: each for each in layer.sub_layers}
        rows.append((layer.name, *(_kept(pictures[kind]) if kind in pictures else "" for kind in kinds)))
    hidden = run.sub_network.hidden
    width = "" if hidden is None else f"\n\n{len(hidden):,} hidden dimensions are left."
    return f"## What is left of each layer\n\n{_table(rows)}{width}"


def _kept(picture: SubLayerPicture) -> str:
    if picture.note:
        return picture.note
    text = f"{len(picture.kept):,} of {picture.total:,}"
    is_prefix = not picture.kept or picture.kept[-1] == len(picture.kept) - 1
    return text if is_prefix or len(picture.kept) > _MOST_IDS else f"{text} ({', '.join(map(str, picture.kept))})"


def _making(run: RunFolder, facts: CardFacts) -> str:
    parts = ["## How it was made"]
    if facts.command:
        parts.append(fenced(facts.command, "bash"))
    else:
        parts.append("The command was not recorded.")
    settings = {name: value for name, value in _settings(run.arguments)}
    if run.outcome is not None:
        result = run.outcome.result
        searched = {
            "search method": result.method,
            "evaluated sub-networks": len(result.trials),
            "search seed": result.seed,
        }
        settings |= searched
    if settings:
        rows = [("setting", "value"), *((plain(name), plain(value)) for name, value in settings.items())]
        parts.append(_table(rows, numbers_from=2))
    papers = [method for method in method_of(run) if method.paper]
    parts += [f"Method: {method.paper}, {method.link}" for method in papers]
    return "\n\n".join(parts)


def _settings(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in _SETTINGS:
        value = arguments.get(name)
        if value is not None and value != "none" and not (name == "max_steps" and value == -1):
            yield name, value


def _license(facts: CardFacts) -> str:
    if facts.license:
        return f"## Licence\n\n{plain(facts.license)}, as given by whoever made this model."
    base = facts.base
    if base is None or not base.license:
        return (
            f"## Licence\n\nUnknown: neither the card nor the configuration of {_base_name(facts)} states one. Ask "
            "its authors before you use this model."
        )
    stated = base.license.get("license_name", base.license["license"])
    link = f" ({base.license['license_link']})" if "license_link" in base.license else ""
    return f"## Licence\n\n{plain(stated)}{plain(link)}, that of {_base_name(facts)} as its authors state it."


def _files(run: RunFolder) -> str:
    rows = [
        ("file", "what it is"),
        ("`model.safetensors`, `config.json`", "the small model"),
        ("`sub_network.json`", "which units of the dense model it keeps"),
    ]
    if (run.small / "modeling_hf_nas.py").is_file():
        rows.append(("`modeling_hf_nas.py`", "the loader for `trust_remote_code=True`"))
    if run.outcome is not None:
        rows.append((f"`{FRONT_NUMBERS}`, `{FRONT_PICTURE}`", "all evaluated sub-networks"))
    elif (run.folder / FRONT_NUMBERS).is_file():
        rows.append((f"`{FRONT_NUMBERS}`", "all sub-networks on the way"))
    return f"## Files\n\n{_table(rows, numbers_from=2)}"
