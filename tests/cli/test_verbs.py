"""Every verb as a real process: what it prints for people and, against kept files, for programs.

``OOC_REGENERATE=1 pytest tests/cli/test_verbs.py`` writes the kept files anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from .process import FLAT, command, environment, run

GOLDEN = Path(__file__).parent / "golden"

#: Values that differ between runs, machines or versions, or follow from k-means: of these, and of all
#: that is below them, only the type is compared.
VOLATILE = {
    "seconds", "time", "updated", "started", "finished", "pid", "host", "fingerprint", "digest",
    "private_bytes", "peak_private_bytes", "scratch_bytes", "peak_disk_bytes", "bytes", "rows_per_second",
    "versions", "stages", "defaults", "recall", "times", "assignment_error",
    "memory_by_stage", "index_bytes", "list_sizes", "template_bytes", "checksums",
}  # fmt: skip


def masked(value: Any, directory: Path, *, key: str = "", hidden: bool = False) -> Any:
    hidden = hidden or key in VOLATILE or (key == "plan" and isinstance(value, str))
    if isinstance(value, dict):
        # What is expected depends on what the process holds; the budget does not.
        expected = {"memory_bytes"} if key == "forecast" else set()
        return {k: masked(v, directory, key=k, hidden=hidden or k in expected) for k, v in value.items()}
    if hidden:
        return f"<{type(value).__name__}>"
    if isinstance(value, list):
        return [masked(item, directory) for item in value]
    return value.replace(str(directory), "<dir>") if isinstance(value, str) else value


def check_golden(name: str, text: str, directory: Path) -> None:
    """One JSON document and nothing else, equal to the kept one but for what is volatile."""
    shown = json.dumps(masked(json.loads(text), directory), indent=2) + "\n"
    kept = GOLDEN / f"{name}.json"
    if os.environ.get("OOC_REGENERATE"):
        kept.write_text(shown)
    assert shown == kept.read_text()


def test_plan_says_what_it_costs_and_writes_nothing(here: Path) -> None:
    done = run("plan", "x.npy", "new.ooc", *FLAT, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "3 000 x 16 float32, mapped" in done.stdout
    assert re.search(r"^ +fill +\S+ MiB +\d+% +\S+ MiB$", done.stdout, re.M)
    assert max(map(len, done.stdout.splitlines())) < 120
    assert sorted(path.name for path in here.iterdir()) == ["q.npy", "x.npy"]


def test_plan_json(here: Path) -> None:
    done = run("plan", "x.npy", "--json", *FLAT, cwd=here)
    assert done.stderr == ""
    check_golden("plan", done.stdout, here)


def test_build_json_and_again(here: Path) -> None:
    done = run("build", "x.npy", "b.ooc", "--json", "--quiet", *FLAT, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    check_golden("build", done.stdout, here)
    again = run("build", "x.npy", "b.ooc", "--quiet", *FLAT, cwd=here)
    assert again.returncode == 0
    assert "already" in again.stdout
    assert "nothing to do" in again.stdout


def test_build_log_json_is_events_and_nothing_else(here: Path) -> None:
    done = run("build", "x.npy", "b.ooc", "--log-json", *FLAT, cwd=here)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [e["event"] for e in events[:1]] == ["started"]
    assert events[-1]["event"] == "finished"
    begun = [e["stage"] for e in events if e["event"] == "stage_started"]
    over = [e["stage"] for e in events if e["event"] == "stage_finished"]
    assert begun[-5:] == ["train", "fill", "merge", "calibrate", "publish"]
    assert set(begun) <= set(over)
    counts = [e["done"] for e in events if e["event"] == "progress" and e["stage"] == "fill"]
    assert counts == sorted(counts)
    assert counts[-1] == 3000


def test_progress_without_a_terminal_is_lines_with_the_time(here: Path) -> None:
    done = run("build", "x.npy", "b.ooc", *FLAT, cwd=here)
    lines = done.stderr.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in lines), done.stderr
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    assert any(re.search(r"fill +started +3 000 rows", line) for line in lines)
    assert any(re.search(r"fill +done in .*3 000 rows", line) for line in lines)
    assert done.stdout.count("\n") == 2
    assert "forecast: " in done.stdout
    assert re.search(r"b\.ooc: 3 000 rows, .*iB, built in ", done.stdout)


def test_info_draws_list_sizes_and_bytes(collection: Path) -> None:
    done = run("info", "my.ooc", cwd=collection)
    assert (done.returncode, done.stderr) == (0, "")
    for wanted in ("3 000 of 16 dimensions, metric l2", "IVF16,Flat", "lists.ivfdata", "generation", "█"):
        assert wanted in done.stdout
    drawn = [int(m[1]) for m in re.finditer(r"^ +\d+ to +\d+ +(\d+)", done.stdout, re.M)]
    assert sum(drawn) == 16
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_info_json(collection: Path) -> None:
    check_golden("info", run("info", "my.ooc", "--json", cwd=collection).stdout, collection)


def test_info_says_what_a_smaller_copy_lost(here: Path) -> None:
    planned = run("plan", "x.npy", "--copy-dtype", "int8", *FLAT, cwd=here).stdout
    assert "the index's own copy of the rows as int8" in planned
    run("build", "x.npy", "b.ooc", "--quiet", "--copy-dtype", "int8", *FLAT, cwd=here)
    shown = re.search(r"own rows +int8 copy, relative error (\S+) %", run("info", "b.ooc", cwd=here).stdout)
    assert shown is not None
    (segment,) = json.loads(run("info", "b.ooc", "--json", cwd=here).stdout)["segments"]
    assert 100 * segment["copy_error"] == pytest.approx(float(shown[1]), rel=0.1)
    assert 0.001 < segment["copy_error"] < 0.02
    run("build", "x.npy", "c.ooc", "--quiet", "--copy-vectors", "always", *FLAT, cwd=here)
    assert "a copy in the store's dtype" in run("info", "c.ooc", cwd=here).stdout


def test_info_where_the_store_is_gone(here: Path) -> None:
    run("build", "x.npy", "b.ooc", "--quiet", *FLAT, cwd=here)
    (here / "x.npy").rename(here / "moved.npy")
    assert "NOT REACHABLE" in run("info", "b.ooc", cwd=here).stdout
    found = run("search", "b.ooc", "q.npy", "-k", "1", "--json", "--store", "moved.npy", cwd=here)
    assert [result["ids"] for result in json.loads(found.stdout)["results"]] == [[i] for i in range(5)]


def test_search_prints_a_line_a_hit(collection: Path) -> None:
    done = run("search", "my.ooc", "q.npy", "-k", "2", "--first", "3", "--nprobe", "16", cwd=collection)
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = [line.split() for line in done.stdout.splitlines()]
    assert head == ["query", "rank", "id", "distance"]
    assert [row[:3] for row in rows if row[1] == "1"] == [[str(i), "1", str(i)] for i in range(3)]
    assert len(rows) == 6


def test_search_json(collection: Path) -> None:
    done = run("search", "my.ooc", "q.npy", "-k", "1", "--nprobe", "16", "--json", cwd=collection)
    check_golden("search", done.stdout, collection)


def test_search_json_has_null_where_there_is_no_hit(here: Path) -> None:
    np.save(here / "few.npy", np.eye(3, 16, dtype=np.float32))
    run("build", "few.npy", "b.ooc", "--factory", "IVF1,Flat", "--quiet", cwd=here)
    done = run("search", "b.ooc", "few.npy", "-k", "5", "--json", "--first", "1", cwd=here)
    (result,) = json.loads(done.stdout)["results"]
    assert result["ids"] == [0, 1, 2, -1, -1]
    assert result["distances"] == [0.0, 2.0, 2.0, None, None]


@pytest.mark.parametrize("suffix", ["npz", "h5", "zarr", "parquet"])
def test_search_out_holds_what_is_printed(collection: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"hits.{suffix}"
    args = ("search", "my.ooc", "q.npy", "-k", "3", "--nprobe", "16")
    done = run(*args, "--out", str(out), "--quiet", cwd=collection)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 hits each of 5 queries" in done.stdout
    if suffix == "npz":
        with np.load(out) as file:
            distances, ids, settings = file["distances"], file["ids"], json.loads(str(file["settings"]))
    elif suffix == "h5":
        with h5py.File(out) as file:
            distances, ids = file["distances"][:], file["ids"][:]
            settings = json.loads(file.attrs["settings"])
    elif suffix == "parquet":
        table = pq.read_table(out)
        distances, ids = (np.array(table[name].to_pylist()) for name in ("distances", "ids"))
        distances = distances.astype(np.float32)
        settings = json.loads(table.schema.metadata[b"settings"])
    else:
        group: Any = zarr.open_group(out, mode="r")
        distances, ids, settings = group["distances"][:], group["ids"][:], group.attrs["settings"]
    printed = json.loads(run(*args, "--json", cwd=collection).stdout)["results"]
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    assert ids.tolist() == [result["ids"] for result in printed]
    np.testing.assert_array_equal(
        distances, np.array([result["distances"] for result in printed], np.float32)
    )
    assert (settings["k"], settings["nprobe"], settings["metric"]) == (3, 16, "l2")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_search_out_is_not_overwritten_unless_asked(collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.npz"
    out.write_bytes(b"mine")
    args = ("search", "my.ooc", "q.npy", "--out", str(out), "--quiet")
    refused = run(*args, cwd=collection)
    assert refused.returncode == 7
    assert "--overwrite" in refused.stderr
    assert out.read_bytes() == b"mine"
    assert run(*args, "--overwrite", cwd=collection).returncode == 0
    with np.load(out) as file:
        assert file["ids"].shape == (5, 10)


def test_search_that_fails_midway_leaves_no_file_and_no_half_document(
    collection: Path, tmp_path: Path
) -> None:
    queries = np.zeros((600, 16), np.float32)
    queries[500, 3] = np.nan
    np.save(tmp_path / "bad.npy", queries)
    bad = str(tmp_path / "bad.npy")
    out = ("--out", str(tmp_path / "h.npz"), "--batch", "400")  # it is in the second batch
    done = run("search", "my.ooc", bad, *out, "--quiet", cwd=collection)
    assert done.returncode == 4
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npy"]
    done = run("search", "my.ooc", bad, "--json", cwd=collection)
    assert json.loads(done.stdout)["error"]["kind"] == "query-values"


def test_search_out_json_and_progress(collection: Path, tmp_path: Path) -> None:
    args = ("search", "my.ooc", "x.npy", "--out", str(tmp_path / "hits.parquet"), "--batch", "1000")
    done = run(*args, "--json", "--log-json", cwd=collection)
    figures = json.loads(done.stdout)
    assert (figures["nq"], figures["k"], figures["out"]) == (3000, 10, args[4])
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [e["done"] for e in events if e["event"] == "progress"] == [1000, 2000, 3000]
    told = run(*args, "--overwrite", cwd=collection).stderr
    assert re.search(r"search +started +3 000 queries", told)
    assert re.search(r"search +done in .*3 000 queries", told)


def test_a_reader_that_leaves_early_is_no_error(collection: Path) -> None:
    # The pipe is closed before anything is written.
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command("search", "my.ooc", "q.npy"),
        cwd=collection, env=environment(), stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_status_of_a_finished_index(collection: Path) -> None:
    done = run("status", "my.ooc", cwd=collection)
    assert done.stdout == "my.ooc: no build is running; generation 1 is live\n"
    check_golden("status", run("status", "my.ooc", "--json", cwd=collection).stdout, collection)


def test_verify(collection: Path, tmp_path: Path) -> None:
    done = run("verify", "my.ooc", "--full", "--json", "--quiet", cwd=collection)
    assert (done.returncode, done.stderr) == (0, "")
    check_golden("verify", done.stdout, collection)
    shutil.copytree(collection / "my.ooc", tmp_path / "my.ooc")
    with (tmp_path / "my.ooc/segments/s1/lists.ivfdata").open("r+b") as file:
        file.write(b"?")
    assert run("verify", "my.ooc", "--quiet", cwd=tmp_path).returncode == 0  # which does not read them
    done = run("verify", "my.ooc", "--full", cwd=tmp_path)
    assert done.returncode == 6
    assert "segments/s1/lists.ivfdata, block 0: it is not what was written\n" in done.stdout
    assert "ooc verify --repair" in done.stdout
    assert re.search(r"verify +done in", done.stderr)
    done = run("verify", "my.ooc", "--full", "--repair", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "repaired: " in done.stdout


def test_convert(here: Path) -> None:
    done = run("convert", "x.npy", "x.h5::/emb", "--dtype", "float16", "--json", "--quiet", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    check_golden("convert", done.stdout, here)
    with h5py.File(here / "x.h5") as file:
        np.testing.assert_array_equal(file["emb"][:], np.load(here / "x.npy").astype(np.float16))
    refused = run("convert", "x.npy", "x.h5::/emb", cwd=here)
    assert refused.returncode == 7
    told = run("convert", "x.npy", "x.h5::/emb", "--overwrite", cwd=here)
    assert "3 000 x 16 float32 as hdf5" in told.stdout
    assert re.search(r"copy +done in", told.stderr)


def test_help_lists_and_shows_pages(tmp_path: Path) -> None:
    listed = run("help", cwd=tmp_path).stdout
    assert re.search(r"^ +cli +The command line$", listed, re.M)
    assert "## Exit codes" in run("help", "cli", cwd=tmp_path).stdout
    assert "--memory SIZE" in run("help", "build", cwd=tmp_path).stdout


def test_version_and_help_need_no_heavy_imports(tmp_path: Path) -> None:
    for flag in ("--version", "-h"):
        done = subprocess.run(
            [command()[0], "-X", "importtime", "-m", "ooc", flag],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "ooc.cli.main" in imported
        assert not imported & {"numpy", "faiss", "rich", "zarr", "h5py"}
