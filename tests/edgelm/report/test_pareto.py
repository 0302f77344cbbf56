from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from report_factory import energy_of
from run_factory import make_run

from edgelm.bench import Run
from edgelm.report.pareto import Front, front_of, not_dominated
from edgelm.report.rows import group_runs

points = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 5)] * width), min_size=1, max_size=25)
)


@given(points)
def test_the_front_is_that_of_the_definition(costs: list[tuple[int, ...]]) -> None:
    def dominates(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and any(
            a < b for a, b in zip(one, other, strict=True)
        )

    expected = tuple(not any(dominates(other, point) for other in costs) for point in costs)
    assert not_dominated(costs) == expected
    assert any(expected)


def _front(*runs: Run, comparable: bool = True) -> Front:
    (group,) = group_runs(runs)
    return front_of(group.answers, accuracies_comparable=comparable)


def test_speed_and_accuracy_and_energy() -> None:
    fast = make_run(name="fast", median_s=0.001, accuracy=0.86)
    good = make_run(name="good", median_s=0.010, accuracy=0.92)
    worse = make_run(name="worse", median_s=0.012, accuracy=0.90)
    front = _front(fast, good, worse)
    assert front.objectives == ("p50", "accuracy")
    assert front.numbers == {1, 2}
    # A slower and worse one that needs the least energy is on the front; one without an energy is not judged.
    with_energy = [
        dataclasses.replace(run, energy=energy_of(joules)) for run, joules in ((fast, 0.3), (good, 0.2), (worse, 0.1))
    ]
    assert _front(*with_energy).numbers == {1, 2, 3}
    front = _front(fast, *with_energy[1:])
    assert (front.objectives, front.judged, front.numbers) == (("p50", "accuracy", "energy"), 2, {2, 3})


def test_energies_of_different_scopes_are_not_weighed() -> None:
    board, package = make_run(name="a"), make_run(name="b")
    runs = [
        dataclasses.replace(board, energy=energy_of(0.1)),
        dataclasses.replace(package, energy=energy_of(0.01, scope="package")),
    ]
    assert "energy" not in _front(*runs).objectives


def test_without_accuracy_size_is_weighed() -> None:
    runs = [make_run(name=name, accuracy=None, size_bytes=size) for name, size in (("a", 10), ("b", 20))]
    assert _front(*runs).objectives == ("p50", "size")
    assert _front(make_run(), comparable=False).objectives == ("p50", "size")
