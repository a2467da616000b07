import json
from pathlib import Path

import pytest

from vleff.bench.matching import Match
from vleff.bench.results import Cell, ResultFile, Results, processor

DATE = "2026-03-04T05:06:07+00:00"
FLOPS = {"dense_padded": 400, "dense_true": 200, "vleff": 200}


def results(*cells: Cell) -> Results:
    return Results("m", "random", "words", "vleff bench", DATE, {"threads": 2}, list(cells))


@pytest.fixture
def cell() -> Cell:
    times = {"dense": [6.0, 8.0, 7.0], "vleff": [4.0, 4.2, 3.0], "openvino": [5.0, 5.0, 5.0]}
    matches = {"vleff": Match(True, 1e-7, 1.0)}
    return Cell("fp32", 4, 2, 50.0, 100.0, FLOPS, times, matches)


def test_derived_numbers(cell: Cell) -> None:
    assert cell.rounds == 3
    assert cell.milliseconds("dense") == pytest.approx(3500)  # the round has two batches
    assert cell.speedup().speedup == pytest.approx(7 / 4)
    assert cell.speedup(over="openvino").speedup == pytest.approx(5 / 4)
    assert cell.flop_ratio == 2
    assert cell.efficiency() == pytest.approx(7 / 8)


def test_median_of_an_even_number_of_rounds(cell: Cell) -> None:
    cell.times["dense"].append(1.0)
    assert cell.milliseconds("dense") == pytest.approx(3250)
    assert cell.rounds == 3


def test_json_holds_everything(cell: Cell) -> None:
    content = json.loads(json.dumps(results(cell).as_json()))
    assert set(content) == {
        *("model", "weights", "samples", "command", "date", "machine", "cells", "unavailable", "complete")
    }
    assert set(content["cells"][0]) == {
        *("dtype", "batch", "batches", "mean_length", "padded_length", "flops", "times", "matches", "rounds"),
        *("milliseconds", "speedup", "flop_ratio", "efficiency"),
    }
    assert content["cells"][0]["speedup"]["dense"] == {
        "speedup": 1.75,
        "low": None,
        "high": None,
        "rounds": 3,
    }
    assert content["cells"][0]["matches"]["vleff"]["ok"] is True


def test_earlier_results_are_never_replaced(tmp_path: Path, cell: Cell) -> None:
    files = [ResultFile(tmp_path / "new", results(*[cell] * number)) for number in range(3)]
    assert len({file.path for file in files}) == 3
    files[1].write(results(*[cell] * 5))
    assert [len(json.loads(file.path.read_text())["cells"]) for file in files] == [0, 5, 2]
    assert files[0].path == tmp_path / "new" / "m-2026-03-04T050607.json"


def test_a_run_replaces_its_own_file_in_one_step(tmp_path: Path, cell: Cell) -> None:
    file = ResultFile(tmp_path, results())
    with file.path.open() as earlier:
        file.write(results(cell))
        assert json.load(earlier)["cells"] == []
    assert len(json.loads(file.path.read_text())["cells"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name]


def test_processor_has_a_name() -> None:
    assert processor().strip()
