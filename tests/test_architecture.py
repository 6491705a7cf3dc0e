"""Imports run one way, and hf_nas never knows a Trainer."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
# A package, or a file beside the packages, imports only from those before it (and from itself).
BELOW = {
    "hf_nas": (
        "version", "ops", "files", "run_files", "graph_names", "bypass", "main_input", "structures", "subnetwork",
        "resize", "profiling", "gates", "importance", "space", "distillation", "elastic", "nncf_config", "search",
        "extraction", "export", "report",
    ),
    "trainer_plugins": (
        "arguments", "run_state", "model_card", "distillation", "super_network", "eftnas", "search", "tasks",
        "pruning", "head_pruning", "checks", "scripts",
    ),
}  # fmt: skip
LEVELS = (
    *(f"hf_nas.{name}" for name in BELOW["hf_nas"]), "hf_nas",
    *(f"trainer_plugins.{name}" for name in BELOW["trainer_plugins"]), "trainer_plugins",
    "hf_nas.cli", "examples",
)  # fmt: skip


def level(module: str) -> int:
    package, *rest = module.split(".")
    inside = f"{package}.{rest[0]}" if rest else package
    return LEVELS.index(inside if inside in LEVELS else package)


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


SOURCES = files("hf_nas", "trainer_plugins")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for name in imports(path):
        if name.split(".")[0] in ("hf_nas", "trainer_plugins", "examples"):
            assert level(name) <= level(own), f"{own} imports {name}"
        if own.startswith("hf_nas"):
            assert name.split(".")[0] != "trainer_plugins", f"{own} imports {name}"
            assert not name.endswith(("Trainer", "TrainingArguments", "TrainerCallback")), f"{own} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_readable_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", files("examples", "benchmarks"), ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_know_the_commands_alone(path: Path) -> None:
    found = [name for name in imports(path) if name.startswith("hf_nas.cli")]
    assert set(found) <= {"hf_nas.cli.main"}
