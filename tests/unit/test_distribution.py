"""How the tests are shared among processes: in units, the long ones first."""

from pathlib import Path

import pytest

from tests.distribution import TOGETHER, place_of, unit_of

ROOT = Path(__file__).parents[2]
MODULES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py"))]


@pytest.mark.parametrize("beginning", TOGETHER)
def test_every_unit_has_modules(beginning: str) -> None:
    """One whose folder was renamed would silently be spread over all processes."""
    assert [module for module in MODULES if unit_of(f"{module}::test") == beginning]


def test_tests_that_share_a_service_are_taken_together() -> None:
    cli, client = "tests/integration/test_cli.py::TestSubmit::test_a", "tests/integration/test_client.py::test_b[x]"
    assert unit_of(cli) == unit_of(client) != unit_of("tests/integration/tasks/test_every_task.py::test_c")


def test_other_tests_go_by_their_module() -> None:
    assert unit_of("tests/unit/test_ports.py::test_a[b::c]") == "tests/unit/test_ports.py"


def test_long_units_are_begun_before_the_rest() -> None:
    units = [*reversed(TOGETHER), "tests/unit/test_ports.py", "tests/fundamentals/test_jobs.py"]
    assert sorted(units, key=place_of) == [*TOGETHER, *units[-2:]]
