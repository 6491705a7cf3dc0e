"""`hf-nas space describe`: what a search space holds for a model, and how large its ends are."""

import argparse
import json
from itertools import pairwise

from hf_nas.cli.flags import check_numbers
from hf_nas.cli.models import add_model_class, build_counted, read_nncf_config
from hf_nas.nncf_config import SpaceDescription, SubLayerChoices, describe_config, describe_space
from hf_nas.space import get_search_space
from hf_nas.structures import describe as describe_model


__all__ = ["add_parser"]

_MOST_NUMBERS = 8


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas space`."""
    parser = commands.add_parser("describe", help="Show the choices of a search space and the size of its ends.")
    parser.add_argument(
        "config", help="An NNCF 2.x configuration, a JSON file with a space, or small, medium, layer or large."
    )
    parser.add_argument("--model_name_or_path", required=True, help="Folder or name; only its config.json is read.")
    parser.add_argument(
        "--sequence_length", type=int, help="Tokens at which operations are counted; by default the configuration's."
    )
    add_model_class(parser)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.add_argument(
        "--ignore_width_indicator",
        action="store_true",
        help="Count all widths an NNCF configuration lists, also those its width_indicator hides.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: if the space or the model cannot be read, they do not fit, or a length is missing.
    """
    check_numbers(arguments, "sequence_length")
    length = arguments.sequence_length
    config = read_nncf_config(arguments.config)
    if config is None:
        if arguments.ignore_width_indicator:
            raise ValueError(
                f"--ignore_width_indicator is for NNCF configurations, which {arguments.config!r} is not; remove it."
            )
        if length is None:
            raise ValueError("--sequence_length is missing, and a search space has none of its own; give one.")
        model = build_counted(arguments.model_name_or_path, arguments.model_class)
        found = describe_space(get_search_space(arguments.config, describe_model(model)), model, length)
    else:
        model = build_counted(arguments.model_name_or_path, arguments.model_class, config.model_class)
        found = describe_config(config, model, length, arguments.ignore_width_indicator)
    print(json.dumps(found.to_dict(), indent=2) if arguments.json else table(found))


def table(description: SpaceDescription) -> str:
    """A description as lines of text."""
    rows = [("sub-layer", "units", "channels", "can be skipped")]
    rows += [
        (choices.name, _numbers(choices.units), _numbers(choices.widths), _skip(choices))
        for choices in description.sub_layers
    ]
    costs = [
        ("", "MMACs", "weights"),
        ("largest", *_cost(description.largest)),
        ("smallest", *_cost(description.smallest)),
        ("smallest without skipping", *_cost(description.smallest_without_skipping)),
    ]
    size = f"10^{description.log10_size:.1f} choices"
    published = description.log10_size_as_published
    if published is not None and f"{published:.1f}" != f"{description.log10_size:.1f}":
        size += f" (10^{published:.1f} where a skipped sub-layer still has a width, as the papers count)"
    return "\n".join(
        [
            f"Search space {description.name!r} of {description.model}, {description.sequence_length} tokens: {size}",
            "",
            *_aligned(rows, right=0),
            "",
            *_aligned(costs, right=2),
        ]
    )


def _cost(cost) -> tuple[str, str]:
    return f"{cost.macs / 1e6:.1f}", f"{cost.weights:,}"


def _skip(choices: SubLayerChoices) -> str:
    return {None: "", "identity": "yes", "norm": "yes, its normalisation stays"}[choices.skip]


def _numbers(numbers: tuple[int, ...]) -> str:
    """Falling numbers; many with equal steps as a range."""
    if len(numbers) <= _MOST_NUMBERS:
        return " ".join(map(str, numbers))
    steps = {first - second for first, second in pairwise(numbers)}
    if len(steps) == 1:
        step = steps.pop()
        return f"{numbers[0]} to {numbers[-1]}" + (f" in steps of {step}" if step > 1 else "")
    return f"{' '.join(map(str, numbers[: _MOST_NUMBERS - 1]))} ... {numbers[-1]}"


def _aligned(rows: list[tuple[str, ...]], right: int) -> list[str]:
    """Rows as columns, of which the last `right` ones are aligned to the right."""
    columns = len(rows[0])
    widths = [max(len(row[column]) for row in rows) for column in range(columns)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column >= columns - right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
