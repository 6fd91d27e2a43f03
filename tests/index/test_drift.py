"""When the recall that was measured tells nothing of the rows that came later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc.cli.info import describe
from ooc.index.drift import calibrated, measured_rows, stale
from tests.helpers import embeddings, rewrite, unsealed

FIRST = {"rows": 1000, "assignment_error": 0.5}


def generation(*names: str, by: Any = None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "segments": [{"name": name} for name in names],
        "calibration": {"settings": {}, "by": "rows"},
    }
    return record if by is None else {**record, "calibrated": by}


def test_rows_like_those_before_leave_it_as_it_is() -> None:
    assert stale(generation("s1"), [FIRST]) is None
    assert stale(generation("s1", "s2"), [FIRST, {"rows": 10, "assignment_error": 0.52}]) is None
    assert stale(generation("s1", "s2"), [FIRST, {"rows": 10, "assignment_error": 0.1}]) is None


def test_rows_that_lie_far_from_their_centroids_are_said() -> None:
    reason = stale(generation("s1", "s2", "s3"), [FIRST, FIRST, {"rows": 500, "assignment_error": 0.7}])
    assert reason is not None
    assert "s3" in reason
    assert "1.40 times" in reason
    # Of few rows few were measured: that may be chance.
    assert stale(generation("s1", "s2"), [FIRST, {"rows": 50, "assignment_error": 0.7}]) is None
    assert stale(generation("s1", "s2"), [FIRST, {"rows": 50, "assignment_error": 1.1}]) is not None
    exactly = stale(generation("s1", "s2"), [{**FIRST, "assignment_error": 0}, FIRST])
    assert exactly is not None


def test_few_rows_that_are_left_are_said() -> None:
    by = calibrated(1, ["s1"], [FIRST])
    record = generation("s1", by=by)
    record["segments"][0]["dead"] = 490
    assert stale(record, [FIRST]) is None
    record["segments"][0]["dead"] = 510
    assert stale(record, [FIRST]) == "recall was measured on 1000 rows, and 490 are left"
    # After a compaction too.
    assert "490 are left" in str(stale(generation("s2", by=by), [{"rows": 490}]))
    # Measured anew with the dead rows still in the lists.
    record["calibrated"] = calibrated(3, ["s1"], [FIRST], 490)
    assert stale(record, [FIRST]) is None
    assert measured_rows(record, [FIRST]) == 490


def test_what_was_measured_since_counts_no_more() -> None:
    segments = [FIRST, {"rows": 1000, "assignment_error": 0.7}]
    by = calibrated(5, ["s1", "s2"], segments)
    assert by == {"generation": 5, "segments": [{"name": "s1", **FIRST}, {"name": "s2", **segments[1]}]}
    assert stale(generation("s1", "s2", by=by), segments) is None
    # What comes now is held against all of these, 0.6 in the mean.
    third = [*segments, {"rows": 90, "assignment_error": 0.85}]
    assert stale(generation("s1", "s2", "s3", by=by), third) is None
    third[2]["assignment_error"] = 0.95
    assert "s3" in str(stale(generation("s1", "s2", "s3", by=by), third))
    # Segments that were merged are held against what was measured, though it is gone.
    merged = [{"rows": 2010, "assignment_error": 0.61}]
    assert "2000 rows" in str(stale(generation("s4", by=by), [{**merged[0], "rows": 4001}]))
    assert stale(generation("s4", by=by), merged) is None
    assert "s4" in str(stale(generation("s4", by=by), [{**merged[0], "assignment_error": 0.8}]))


def test_many_more_rows_make_it_stale() -> None:
    assert stale(generation("s1", "s2"), [FIRST, {**FIRST, "rows": 1000}]) is None
    assert "1000 rows" in str(stale(generation("s1", "s2"), [FIRST, {**FIRST, "rows": 1001}]))


def test_what_is_not_known_is_not_said() -> None:
    older: dict[str, Any] = {"rows": 1000}
    assert stale(generation("s1", "s2"), [older, FIRST]) is None
    assert stale(generation("s1", "s2"), [FIRST, older]) is None
    assert stale({**generation("s1", "s2"), "calibration": {}}, [FIRST, {**FIRST, "rows": 9999}]) is None


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("factory", ["HR,IVF32,RaBitQ", "PCA16,IVF32,SQ8"])
def test_filling_measures_how_far_rows_are_from_their_centroids(
    tmp_path: Path, metric: Any, factory: str
) -> None:
    x = embeddings(8000, 48)
    x[3], x[16] = np.nan, np.nan
    ooc.build(x, tmp_path / "i.ooc", metric=metric, factory=factory, copy_vectors="always", on_bad="skip")
    told = json.loads((tmp_path / "i.ooc/segments/s1/segment.json").read_text())["assignment_error"]
    with ooc.open_index(tmp_path / "i.ooc") as index:
        segment = index._view().segments
        rows = np.nan_to_num(x)
        if metric == "cosine":
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        y, c = segment.transform(rows), segment.centroids
        if metric != "l2":
            y = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-30)
        squared = ((y[:, None] - c[None]) ** 2).sum(axis=2).min(axis=1)
        some = np.setdiff1d(np.arange(0, 8000, 16), [16])
        assert told == pytest.approx(squared[some].mean(), rel=0.01)
        assert index.info()["segments"][0]["assignment_error"] == told
        assert index.info()["recall"]["stale"] is None


def test_rows_of_another_kind_lie_farther(tmp_path: Path) -> None:
    """By the template of the first ones: what appending them would say."""
    rows = embeddings(16_000, 48)
    other = embeddings(8000, 48, seed=9)
    errors = []
    ooc.build(rows[:8000], tmp_path / "a", copy_vectors="always")
    for i, x in enumerate((rows[8000:], other)):
        ooc.build(x, tmp_path / str(i), copy_vectors="always", template=tmp_path / "a")
        errors.append(json.loads((tmp_path / f"{i}/segments/s1/segment.json").read_text()))
    first = json.loads((tmp_path / "a/segments/s1/segment.json").read_text())
    assert stale(generation("s1", "s2"), [first, errors[0]]) is None
    assert "s2" in str(stale(generation("s1", "s2"), [first, errors[1]]))


def test_info_warns(tmp_path: Path) -> None:
    ooc.build(embeddings(3000, 16), tmp_path / "i", copy_vectors="always", factory="IVF8,SQ8")
    path = tmp_path / "i/generations/1.json"
    calibrated = unsealed(path)["calibrated"]
    calibrated["segments"] = [{"name": "s0", "rows": 3000, "assignment_error": 1e-3}]
    rewrite(path, calibrated=calibrated)
    with ooc.open_index(tmp_path / "i") as index:
        lines = describe(index.info(), 100)
    (at,) = (i for i, line in enumerate(lines) if "STALE" in line)
    assert "segment s1" in lines[at]
    assert "`ooc eval --update`" in lines[at + 1]
    ooc.evaluate(tmp_path / "i", update=True)
    with ooc.open_index(tmp_path / "i") as index:
        assert not any("STALE" in line for line in describe(index.info(), 100))
