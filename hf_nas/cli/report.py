"""`hf-nas report`: the page about a run, and the model card of its small model."""

import argparse

from hf_nas.cli.flags import check_numbers, get_device
from hf_nas.report import CardFacts, RunFolder, add_profile, write_model_card, write_page


__all__ = ["add_parser"]

_MEASURING = ("batch_size", "sequence_length", "repeats")
_OF_CARD = (
    "name", "base_model", "license", "language", "dataset", "dataset_id", "dataset_config", "task"
)  # fmt: skip


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser(
        "report",
        help="Write a page about a run, and the model card of its small model.",
        description="Write report.html into the output folder of a run, one page without other files; with --card the "
        "README.md of its small model too.",
    )
    parser.add_argument("folder", metavar="RUN_FOLDER", help="Output folder of a search or a pruning.")
    measuring = parser.add_argument_group("size and speed, of the small model beside the dense one")
    measuring.add_argument("--measure", action="store_true", help="Measure, even where that was done before.")
    measuring.add_argument("--batch_size", type=int, help="Sequences of a forward pass, 1 by default.")
    measuring.add_argument("--sequence_length", type=int, help="Tokens of a sequence, 128 by default.")
    measuring.add_argument("--repeats", type=int, help="Rounds in which both are measured once, 10 by default.")
    measuring.add_argument("--device", default="cpu", help="Where to measure, e.g. cpu or cuda.")
    card = parser.add_argument_group("model card")
    card.add_argument(
        "--card", action="store_true", help="Write the model card too; it measures unless that was done before."
    )
    card.add_argument("--name", help="Of the model, by default that of the folder.")
    card.add_argument("--base_model", metavar="HUB_NAME", help="Name on the Hub of the model that the run began with.")
    card.add_argument("--license", help="Of the small model, by default the one that the base model states.")
    card.add_argument("--language", nargs="+", metavar="CODE", help="Of the texts, e.g. en.")
    card.add_argument("--dataset", metavar="NAME", help="Name of the data, for people.")
    card.add_argument("--dataset_id", metavar="HUB_NAME", help="Its name on the Hub.")
    card.add_argument("--dataset_config", metavar="NAME", help="Its configuration there.")
    card.add_argument("--task", metavar="TAG", help="On the Hub, by default that of the model's class.")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: for arguments out of range, a folder without a run, or files that are damaged.
    """
    check_numbers(arguments, *_MEASURING)
    for name in _MEASURING:
        value = getattr(arguments, name)
        if value is not None and not (arguments.measure or arguments.card):
            raise ValueError(f"--{name} is {value}, but nothing is measured; add --measure.")
    if given := [name for name in _OF_CARD if getattr(arguments, name) is not None and not arguments.card]:
        raise ValueError(f"--{given[0]} is for the model card, which is not asked for; add --card.")
    found = RunFolder.read(arguments.folder)
    if found.small is None and (arguments.card or arguments.measure):
        raise ValueError(f"{arguments.folder!r} holds no small model yet; end the search or the pruning first.")
    facts = None
    if arguments.card:
        facts = CardFacts.of(
            found,
            repository=arguments.base_model,
            languages=arguments.language,
            **{name: getattr(arguments, name) for name in _OF_CARD if name not in ("base_model", "language")},
        )
    if arguments.measure or (arguments.card and not _has_latency(found)):
        found = add_profile(
            found,
            device=get_device(arguments.device),
            batch_size=arguments.batch_size or 1,
            sequence_length=arguments.sequence_length,
            repeats=arguments.repeats or 10,
        )
    if facts is not None:
        facts.save(found, found.card.get("base") or found.arguments.get("model_name_or_path"))
        print(write_model_card(found, facts))
    print(write_page(found.folder))


def _has_latency(run: RunFolder) -> bool:
    return run.profile is not None and run.profile["machine"] is not None
