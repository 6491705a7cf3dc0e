"""The page on families is what the layouts say."""

from pathlib import Path

import pytest

from hf_nas.structures import _FAMILIES, known_families
from hf_nas.structures.table import families_document, families_table
from tests import zoo


PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"


def test_the_page_is_generated() -> None:
    assert PAGE.read_text(encoding="utf-8") == families_document(), (
        "run `python -m hf_nas.structures.table > docs/families.md`"
    )


def test_every_family_has_a_row_and_a_tiny_model() -> None:
    rows = [line for line in families_table().splitlines() if line.startswith("| `")]
    families = [row.split("`")[1] for row in rows]
    assert len(set(families)) == len(families)
    assert set(families) == set(zoo.FAMILIES) == set(known_families()) - {"toy"}


@pytest.mark.parametrize(
    "family, wanted",
    [
        ("bert", ["encoder", "heads", "plain", "yes", "any", "yes"]),
        ("qwen3", ["decoder", "key-value heads", "gated", "no", "any", "no"]),
        ("phi3", ["decoder", "key-value heads, fused", "gated, fused", "no", "any", "no"]),
        ("t5", ["encoder + decoder", "heads, cross-attention apart", "plain or gated", "no", "any", "no"]),
        ("modernbert", ["encoder", "heads, fused", "gated, fused", "no",
                        "any; the first one stays in the list, bypassed", "no"]),
    ],
)  # fmt: skip
def test_rows_written_by_hand(family: str, wanted: list[str]) -> None:
    row = next(line for line in families_table().splitlines() if line.startswith(f"| `{family}` |"))
    assert [cell.strip() for cell in row.strip("|").split("|")[1:]] == wanted


def test_what_the_table_says_of_gated_networks_and_hidden_dimensions_is_so() -> None:
    """The modules of tiny models, against the columns."""
    rows = {line.split("`")[1]: line.strip("|").split("|") for line in families_table().splitlines()[2:]}
    for family in zoo.FAMILIES:
        model = zoo.build(family)
        layers = model.base_model.get_submodule(_FAMILIES[family].stacks[0].path)
        names = {name.rpartition(".")[2] for name, _ in layers[0].named_modules()}
        gated = bool(names & {"gate_proj", "gate_up_proj", "wi_0"}) or {"Wi", "Wo"} <= names
        assert rows[family][3].strip() == "plain or gated" or ("gated" in rows[family][3]) == gated, family
        grouped = getattr(model.config, "num_key_value_heads", None) not in (None, model.config.num_attention_heads)
        assert ("key-value" in rows[family][2]) == grouped, family
