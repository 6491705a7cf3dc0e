"""Objectives by name, and limits on those that are known before an evaluation."""

import math

import pytest

from hf_nas import Parts, SizeTable, SubNetwork, describe
from hf_nas.profiling import LatencyPlan, LatencyTable, MemoryTable
from hf_nas.search import objectives
from hf_nas.search.objectives import (
    Constraint,
    Objective,
    ObjectiveSources,
    check_constraints,
    error_objective,
    get_constraints,
    get_objectives,
    is_allowed,
    known_objectives,
    latency_objective,
    memory_objective,
    register_objective,
)
from tests import zoo


MODEL = zoo.build("bert")
STRUCTURE = describe(MODEL)
FULL = SubNetwork.full(STRUCTURE)
HALF = SubNetwork.of(STRUCTURE, {s.name: s.units // 2 for s in STRUCTURE})
NOTHING = SubNetwork.of(STRUCTURE, dict.fromkeys(STRUCTURE.names))


def latency_table() -> LatencyTable:
    """Of a machine on which every unit takes a second, and a network without any 20."""
    plan = LatencyPlan.of(STRUCTURE)
    seconds = [20.0 + sum(count or 0 for count in network.counts()) for network in plan.sub_networks]
    return LatencyTable.fit(plan, seconds, {})


@pytest.fixture
def sources() -> ObjectiveSources:
    return ObjectiveSources(
        error_objective("accuracy"), SizeTable(MODEL), 16, latency_table, lambda: MemoryTable(MODEL, 2, 16)
    )


def test_names(sources) -> None:
    assert known_objectives() == ("error", "params", "macs", "latency", "memory")
    found = get_objectives(["macs", "error", "latency", "params", "memory"], sources)
    assert [objective.name for objective in found] == ["error", "macs", "latency", "parameters", "memory"]
    assert found[0].cost(FULL, {"accuracy": 0.75}) == 0.25
    assert all(objective.cost(FULL, {}) == 1.0 for objective in found[1:])
    assert all(0 < objective.cost(NOTHING, {}) < 1 for objective in found if objective.name in ("latency", "memory"))
    assert all(0 < objective.cost(HALF, {}) < 1 for objective in found[1:])


def test_a_metric_that_is_no_number_is_the_worst_there_is() -> None:
    assert error_objective("correlation").cost(FULL, {"correlation": math.nan}) == 1.0
    assert error_objective("loss", greater_is_better=False).cost(FULL, {"loss": math.nan}) == math.inf
    assert error_objective("loss", greater_is_better=False).cost(FULL, {"loss": 2.5}) == 2.5


def test_latency_and_memory_are_fractions_of_the_full_network(sources) -> None:
    units = sum(FULL.counts())
    latency = latency_objective(sources.latency_table)
    assert latency.cost(HALF, {}) == pytest.approx((20 + units / 2) / (20 + units))
    assert latency.cost(NOTHING, {}) == pytest.approx(20 / (20 + units))
    table = sources.memory_table
    memory = memory_objective(table)
    assert memory.cost(HALF, {}) == table.total_bytes(HALF) / table.total_bytes(FULL)
    assert table.parameter_bytes(HALF) == 4 * SizeTable(MODEL).parameters(HALF, Parts())


def test_tables_are_made_once_and_only_if_needed() -> None:
    made = []

    def make() -> LatencyTable:
        made.append(1)
        return latency_table()

    sources = ObjectiveSources(error_objective("accuracy"), SizeTable(MODEL), 16, make)
    get_objectives(["error", "params", "macs"], sources)
    assert made == []
    get_objectives(["error", "latency"], sources)
    get_constraints({"latency": 0.5}, sources)
    assert made == [1]
    with pytest.raises(ValueError, match="The objective 'memory' needs a table of the model; give make_memory_table"):
        get_objectives(["error", "memory"], sources)


@pytest.mark.parametrize(
    "names, message",
    [
        (["error"], r"The objectives are \['error'\]; give 'error' and one or more others"),
        ([], "one or more others"),
        (["params", "macs"], "give 'error'"),
        (["error", "params", "params"], "each once"),
        (["error", "flops"], "no objective 'flops'; choose from 'error', 'params', 'macs', 'latency', 'memory'"),
    ],
)
def test_names_that_are_refused(names: list, message: str, sources) -> None:
    with pytest.raises(ValueError, match=message):
        get_objectives(names, sources)


def test_an_objective_of_ones_own(monkeypatch, sources) -> None:
    monkeypatch.setattr(objectives, "_OBJECTIVES", dict(objectives._OBJECTIVES))
    depth = lambda sub_network, _: sum(kept is not None for kept in sub_network.kept)  # noqa: E731
    register_objective("depth", lambda sources: Objective("depth", depth))
    found = get_objectives(["error", "depth"], sources)
    assert found[1].cost(FULL, {}) == 6 and found[1].cost(NOTHING, {}) == 0
    (constraint,) = get_constraints({"depth": 3}, sources)
    assert constraint.allows(NOTHING) and not constraint.allows(FULL)


def test_constraints(sources) -> None:
    half_params = sources.size_table.parameters(HALF, Parts.encoder()) / sources.size_table.parameters(
        FULL, Parts.encoder()
    )
    exact = get_constraints({"params": half_params, "macs": None, "latency": None, "memory": None}, sources)
    assert len(exact) == 1 and exact[0].value(HALF) == half_params
    assert is_allowed(exact, HALF) and is_allowed(exact, NOTHING) and not is_allowed(exact, FULL)
    below = get_constraints({"params": math.nextafter(half_params, 0)}, sources)
    assert not is_allowed(below, HALF)
    several = get_constraints({"params": 0.9, "latency": 0.3, "memory": 1.0}, sources)
    assert [constraint.objective.name for constraint in several] == ["parameters", "latency", "memory"]
    assert not is_allowed(several, HALF) and is_allowed(several, NOTHING)
    assert is_allowed([], FULL)


def test_constraints_that_nothing_can_meet(sources) -> None:
    constraints = get_constraints({"params": 0.9, "latency": 0.1}, sources)
    with pytest.raises(ValueError, match=r"The limit of latency is 0.1, but the smallest .* has 0.1923"):
        check_constraints(constraints, NOTHING)
    check_constraints(constraints[:1], NOTHING)


@pytest.mark.parametrize("limit", [0, -0.5, math.nan])
def test_limits_that_are_refused(limit: float, sources) -> None:
    with pytest.raises(ValueError, match="The limit of macs is .*; give a number above 0"):
        get_constraints({"macs": limit}, sources)


def test_what_cannot_be_limited(sources) -> None:
    with pytest.raises(ValueError, match="The error is known only once"):
        get_constraints({"error": 0.5}, sources)
    with pytest.raises(ValueError, match="There is no objective 'flops'"):
        get_constraints({"flops": None}, sources)
    with pytest.raises(ValueError, match="needs a table"):
        get_constraints({"latency": 0.5}, ObjectiveSources(sources.error, sources.size_table, 16))
    with pytest.raises(ValueError, match="The limit of x is 0"):
        Constraint(Objective("x", lambda *_: 1.0), 0)
