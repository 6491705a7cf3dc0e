"""A stand-in for the Hub: what is pushed is written into a folder, and everything that was asked is kept."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers.trainer
from huggingface_hub import CommitOperationAdd
from transformers.utils import hub


@dataclass
class HubFolder:
    """The few functions of `HfApi` that a push needs.

    Args:
        folder: of all repositories.
    """

    folder: Path
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def install(cls, folder: Path, monkeypatch) -> "HubFolder":
        """Put it in the place of the Hub."""
        api = cls(folder)
        monkeypatch.setattr(hub, "hf_api", lambda: api)
        monkeypatch.setattr(transformers.trainer, "hf_api", lambda: api)
        return api

    def create_repo(self, name: str, **options: Any) -> SimpleNamespace:
        """A folder for the repository."""
        repository = name if "/" in name else f"me/{name}"
        (self.folder / repository).mkdir(parents=True, exist_ok=True)
        self.created.append({"name": name, **options})
        return SimpleNamespace(repo_id=repository)

    def create_commit(self, repo_id: str, operations: list, run_as_future: bool = False, **options: Any) -> Any:
        """Write the files of a commit."""
        written = []
        for operation in operations:
            assert isinstance(operation, CommitOperationAdd)
            path = self.folder / repo_id / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as source:
                path.write_bytes(source.read())
            written.append(operation.path_in_repo)
        return self._done(repo_id, written, run_as_future, options)

    def upload_folder(
        self, repo_id: str, folder_path: str, ignore_patterns: Any = None, run_as_future: bool = False, **options: Any
    ) -> Any:
        """What `Trainer` pushes with; the files are named, not copied."""
        written = [path.name for path in Path(folder_path).iterdir()]
        return self._done(repo_id, written, run_as_future, options)

    def _done(self, repo_id: str, written: list[str], run_as_future: bool, options: dict[str, Any]) -> Any:
        self.commits.append({"repo_id": repo_id, "files": sorted(written), **options})
        answer = SimpleNamespace(commit_url=f"folder:{repo_id}")
        if not run_as_future:
            return answer
        future: Future = Future()
        future.set_result(answer)
        return future
