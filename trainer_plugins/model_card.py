"""Cards and pushes of what a run is about: the small model that it ends with, not everything it left on the way."""

import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import hub

from hf_nas.report import (
    CardFacts,
    RunFolder,
    add_profile,
    find_run_folder,
    find_small_model,
    write_model_card,
    write_page,
)
from hf_nas.report.base_model import public_name


__all__ = ["SmallModelHub", "command_line", "files_to_push"]

logger = logging.getLogger(__name__)

# Of the small model's folder; a fine-tuning leaves more there. Weights and tokenizer are found by what they are.
_MODEL_FILES = ("config.json", "generation_config.json", "sub_network.json", "modeling_hf_nas.py", "README.md")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FRONT_FILES = ("front.csv", "front.png")
_SECRETS = ("token", "api_key", "password", "secret")


class SmallModelHub(Trainer):
    """What every `Trainer` of ours has: `create_model_card` and `push_to_hub` that know of small models.

    Once a search or a pruning has handed over a small model, [`push_to_hub`] pushes that model with its tokenizer, its
    `sub_network.json`, the front and its card, and nothing else; before, both do what those of `Trainer` do. While a
    super-network is trained it is not pushed, unless `hub_strategy` asks for checkpoints on the Hub.
    """

    # Output folder of the search, where it is not that of the trainer.
    handed_over: Path | None = None
    _told_of_pushes = False

    def small_model_folder(self) -> Path | None:
        """Where the small model of the run is; None if there is none yet."""
        if self.handed_over is not None:
            return find_small_model(self.handed_over)
        folder = Path(self.args.output_dir)
        if self._holds_small_model():
            # This trainer holds the small model, which need not be saved yet.
            return find_small_model(folder) or folder
        return find_small_model(folder)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        measure_latency: bool = True,
    ) -> None:
        """Write the card of the small model into its folder, and that of `Trainer` beside another model of the run.

        Sizes and latency beside the dense model are kept in `profile.json` of the run and measured once.

        Args:
            language: of the texts.
            license: of the small model, by default the one that the base model states.
            tags: further ones.
            model_name: by default that of the repository or the folder.
            finetuned_from: folder or Hub name of the base model.
            tasks: as the Hub names them.
            dataset_tags: name of the data on the Hub.
            dataset: their name for people.
            dataset_args: their configuration.
            measure_latency: whether to measure, unless that was done before.

        Raises:
            ValueError: if a file of the run is damaged.
        """
        small = self.small_model_folder()
        has_own = small is None or (Path(self.args.output_dir) / "config.json").is_file()
        if has_own and not self._holds_small_model():
            # Trainer adds to the list that it is given.
            theirs = tags if tags is None else _listed(tags)
            super().create_model_card(
                language, license, theirs, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
            )  # fmt: skip
        if small is None or not self.is_world_process_zero():
            return
        run = RunFolder.read(find_run_folder(small) if self.handed_over is None else self.handed_over)
        run = self._profiled(run, measure_latency)
        known = {
            "name": model_name or self._repository_name(),
            "source": self.args.hub_model_id,
            "base": finetuned_from,
            "license": license,
            "languages": _listed(language),
            "tags": _listed(tags),
            "task": next(iter(_listed(tasks)), None),
            "dataset": ", ".join(_listed(dataset)) or None,
            "dataset_id": next(iter(_listed(dataset_tags)), None),
            "dataset_config": next(iter(_listed(dataset_args)), None),
            "command": command_line(sys.argv, self.args.world_size),
        }
        facts = CardFacts.of(run, **known)
        facts.save(run, finetuned_from or run.arguments.get("model_name_or_path"))
        write_model_card(run, facts)
        write_page(run.folder)

    def _profiled(self, run: RunFolder, measures: bool) -> RunFolder:
        if run.profile is not None and (run.profile["machine"] is not None or not measures):
            return run
        logger.info("Measuring the small model beside the dense one for its card.")
        try:
            return add_profile(run, device=self.args.device, measured=measures)
        except ValueError as error:
            logger.warning("The card is without sizes and speed: %s", error)
            return run

    def _repository_name(self) -> str | None:
        return None if self.args.hub_model_id is None else self.args.hub_model_id.split("/")[-1]

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Push the small model of the run, or what `Trainer` pushes if there is none.

        Args:
            commit_message: of the commit.
            blocking: whether to wait for its end.
            token: by default that of the arguments.
            revision: branch to push to.
            private: whether a repository that is created now is.
            kwargs: of [`create_model_card`].

        Returns:
            What the Hub answers, or its future; None in all processes but the first.
        """
        small = self.small_model_folder()
        if small is None:
            kwargs.pop("measure_latency", None)
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        if self._holds_small_model() and small.resolve() == Path(self.args.output_dir).resolve():
            self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(model_name=kwargs.pop("model_name", None), **kwargs)
        self._finish_current_push()
        run = RunFolder.read(find_run_folder(small) if self.handed_over is None else self.handed_over)
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in files_to_push(run, self.processing_class)
        ]
        return hub.hf_api().create_commit(
            self.hub_model_id,
            operations,
            commit_message=commit_message or "End of training",
            token=token,
            revision=revision if revision is not None else self.args.hub_revision,
            run_as_future=not blocking,
        )

    def _holds_small_model(self) -> bool:
        return getattr(self, "sub_network", None) is not None

    def _trains_super_network(self) -> bool:
        return getattr(self, "super_network", None) is not None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; that of a super-network, from which a small one is still to come, is not pushed by that."""
        super().save_model(output_dir, _internal_call=_internal_call or self._trains_super_network())

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._trains_super_network() and self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            if not self._told_of_pushes:
                logger.info("The super-network is not pushed while it is trained; the small model is, in the end.")
                self._told_of_pushes = True
            return
        super()._push_from_checkpoint(checkpoint_folder)


def files_to_push(run: RunFolder, processing_class: Any = None) -> Iterator[tuple[str, str | bytes]]:
    """Names in the repository and contents (paths or bytes) of everything that belongs to a small model.

    Args:
        run: with its small model and card.
        processing_class: tokenizer that belongs to it, if there is one.

    Raises:
        ValueError: if its weights are not there.
    """
    weights = [_WEIGHTS]
    if (run.small / _INDEX).is_file():
        index = json.loads((run.small / _INDEX).read_text(encoding="utf-8"))
        # Only names: what an index points to elsewhere is no part of the model.
        weights = [_INDEX, *sorted({Path(name).name for name in index["weight_map"].values()})]
    if missing := [name for name in weights if not (run.small / name).is_file()]:
        raise ValueError(f"There is no {missing[0]} in '{run.small}'; run the command again, which writes it.")
    for name in (*_MODEL_FILES, *weights):
        if (run.small / name).is_file():
            yield name, str(run.small / name)
    folder = run.folder if run.outcome is None else run.folder / "search"
    for name in _FRONT_FILES:
        if (folder / name).is_file():
            yield name, str(folder / name)
    if processing_class is not None:
        # What a tokenizer consists of it alone knows.
        with tempfile.TemporaryDirectory() as temporary:
            processing_class.save_pretrained(temporary)
            for path in sorted(Path(temporary).rglob("*")):
                if path.is_file():
                    yield path.relative_to(temporary).as_posix(), path.read_bytes()


def command_line(argv: Sequence[str], processes: int = 1) -> str | None:
    """The command that runs a script with these arguments, without secrets and without paths of this machine.

    Args:
        argv: path of the script, then its arguments.
        processes: that torchrun starts.

    Returns:
        The command; None if it was no script, such as in a notebook.
    """
    if not argv or not argv[0].endswith(".py") or "ipykernel" in argv[0]:
        return None
    words = [Path(argv[0]).name]
    hides_next = False
    for word in argv[1:]:
        flag, is_pair, value = word.partition("=")
        if hides_next:
            words.append("***")
            hides_next = False
        elif word.startswith("-") and flag.lower().endswith(_SECRETS):
            words.append(f"{flag}=***" if is_pair else flag)
            hides_next = not is_pair
        elif word.startswith("-") and is_pair:
            words.append(f"{flag}={_public(value)}")
        else:
            words.append(_public(word))
    start = "python" if processes == 1 else f"torchrun --nproc_per_node {processes}"
    return f"{start} {' '.join(word if word.endswith('***') else shlex.quote(word) for word in words)}"


def _public(word: str) -> str:
    return public_name(word) if Path(word).is_absolute() else word


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
