"""What is known of the model that a run started from: its name on the Hub, its licence, its language."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file


__all__ = ["BaseModel", "hub_id", "public_name"]

_LICENSE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class BaseModel:
    """A pretrained model.

    Args:
        name: for people; of a local folder only its last parts.
        repository: its name on the Hub, None where it has none.
        license: what its card or configuration states: `license`, `license_name`, `license_link`; empty where neither
            does.
        languages: that its card states.
    """

    name: str
    repository: str | None = None
    license: Mapping[str, str] | None = None
    languages: tuple[str, ...] = ()

    @classmethod
    def read(cls, name_or_path: str, repository: str | None = None) -> "BaseModel":
        """Read the card and the configuration of a model, from its folder, the local cache or the Hub.

        Args:
            name_or_path: folder or Hub name.
            repository: its name on the Hub, where it was loaded from a folder.

        Raises:
            ValueError: if `repository` cannot be the name of one.
        """
        if repository is not None and hub_id(repository) is None:
            raise ValueError(
                f"{repository!r} cannot be the name of a model on the Hub; give one such as "
                "'google-bert/bert-base-cased'."
            )
        card = _card_of(name_or_path)
        license = {key: str(card[key]) for key in _LICENSE_KEYS if isinstance(card.get(key), str)}
        if "license" not in license:
            stated = _config_of(name_or_path).get("license")
            license = {"license": stated} if isinstance(stated, str) and stated else {}
        languages = card.get("language") or ()
        languages = (languages,) if isinstance(languages, str) else tuple(map(str, languages))
        found = repository or hub_id(name_or_path)
        return cls(found or public_name(name_or_path), found, license, languages)


def hub_id(name_or_path: str) -> str | None:
    """The name of a repository on the Hub, None if this is a folder here or cannot be such a name."""
    if Path(name_or_path).exists():
        return None
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return None
    return name_or_path


def public_name(name_or_path: str) -> str:
    """A name that tells nothing of this machine: of a path its last two parts."""
    path = Path(name_or_path)
    return "/".join(path.parts[-2:]).strip("/") if path.is_absolute() or path.exists() else name_or_path


def _file_of(name_or_path: str, file_name: str) -> str | None:
    """The text of a file of a model, None where there is none or no network to look for it."""
    path = cached_file(
        name_or_path,
        file_name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if path is None else Path(path).read_text(encoding="utf-8", errors="replace")


def _card_of(name_or_path: str) -> Mapping[str, Any]:
    try:
        text = _file_of(name_or_path, "README.md")
        return {} if text is None else ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    # Somebody else's card may be anything, and a name may be no repository; both say nothing of the licence.
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _config_of(name_or_path: str) -> Mapping[str, Any]:
    try:
        found = json.loads(_file_of(name_or_path, "config.json") or "{}")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
