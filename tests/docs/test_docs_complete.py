"""What README.md and the pages say is true, and nothing public is left out."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc import errors
from ooc.build.factory import CODES, choose_nlist, parse_factory
from ooc.cli.main import EXIT_BROKEN_PIPE, EXIT_UNFORESEEN, VERBS, make_parser
from ooc.stores.formats import FORMATS
from ooc.stores.write_raw import RAW_DTYPES
from tests.docs.pages import DOCS, PAGES, README, fences, inline_code, prose, slugs, tables
from tests.helpers import embeddings

TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
ALL = "\n".join(TEXT.values())


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    actions = make_parser()._actions
    return dict(next(a.choices for a in actions if isinstance(a, argparse._SubParsersAction)))


@pytest.mark.parametrize("name", ooc.__all__)
def test_every_public_name_is_mentioned_in_readme(name: str) -> None:
    assert re.search(rf"\b{re.escape(name)}\b", TEXT["README.md"])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_readme_and_in_the_reference(verb: str) -> None:
    assert f"ooc {verb}" in TEXT["README.md"]
    assert f"## ooc {verb}\n" in TEXT["cli.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_options_and_topics_that_are_named_exist(page: Path) -> None:
    code = [
        *inline_code(page),
        *(line for f in fences(page) if not f.why_not for line in f.text.splitlines()),
    ]
    commands = [re.sub(r"^\$ ", "", text) for text in code if re.match(r"(\$ )?ooc [a-z]", text)]
    parsers = verb_parsers()
    for command in commands:
        _, verb, *rest = command.split()
        assert verb in VERBS, command
        known = {option for action in parsers[verb]._actions for option in action.option_strings}
        assert {word for word in rest if word.startswith("-")} <= known, command
        if verb == "help" and rest and rest[0].islower():
            assert (DOCS / f"{rest[0]}.md").exists(), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_are_named_alone_exist(page: Path) -> None:
    of_tools = {"--large"}
    known = {o for p in verb_parsers().values() for action in p._actions for o in action.option_strings}
    named = {text.split()[0] for text in inline_code(page) if text.startswith("--")}
    assert named - of_tools <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        assert target.is_file(), link
        assert not anchor or anchor in slugs(target), link


def test_readme_links_every_page() -> None:
    assert {page.name for page in PAGES[1:]} == set(re.findall(r"\(ooc/docs/(\w+\.md)\)", TEXT["README.md"]))


def test_every_page_begins_with_its_title() -> None:
    assert all(text.startswith("# ") for text in TEXT.values())


def test_exit_codes_are_those_of_the_classes() -> None:
    table = next(t for t in tables(README) if t[0][0] == "exit code")
    shown = {(int(row[0]), row[1].strip("`")) for row in table[1:]}
    classes = [getattr(errors, name) for name in errors.__all__ if name not in ("OocError", "RecallWarning")]
    expected = {(cls.exit_code, cls.__name__) for cls in classes}
    assert shown == expected | {(0, ""), (EXIT_UNFORESEEN, ""), (EXIT_BROKEN_PIPE, "")}


@pytest.mark.parametrize("page", [README, DOCS / "plan.md"], ids=lambda page: page.name)
def test_sizes_of_codes_are_true(page: Path) -> None:
    table = next(t for t in tables(page) if t[0][0] == "code")
    assert len(table) > 5
    for code, small, large, *_ in table[1:]:
        sizes = [parse_factory(code.strip("`"), n=10**6, d=d, metric="l2").code_size for d in (768, 1024)]
        assert [int(small), int(large)] == sizes, code


def test_codes_that_are_compared_are_named() -> None:
    text = prose(DOCS / "plan.md")
    assert ", ".join(f"`{code}`" for code in CODES) in text


def test_numbers_of_lists_are_true() -> None:
    line = next(line for line in TEXT["plan.md"].splitlines() if line.startswith("Lists, by rows:"))
    pairs = re.findall(r"([\d ]+): ([\d ]+)[;.]", line.partition(":")[2])
    assert len(pairs) == 5
    for n, nlist in pairs:
        assert choose_nlist(int(n.replace(" ", ""))) == int(nlist.replace(" ", "")), n


def test_refused_codes_are_refused_and_what_is_to_be_used_works() -> None:
    table = next(t for t in tables(DOCS / "plan.md") if t[0][0] == "string")
    for refused, _, instead in table[1:]:
        for code in re.findall(r"`([^`]+)`", refused):
            with pytest.raises(ooc.PlanError):
                parse_factory(code, n=10**6, d=64, metric="ip")
        for code in re.findall(r"`([A-Z][^`]+)`", instead):
            parse_factory(code, n=10**6, d=64, metric="ip")


def test_accepted_codes_are_accepted() -> None:
    paragraph = re.search(r"^Also accepted:.*?\n\n", TEXT["plan.md"], re.M | re.S)
    assert paragraph is not None
    accepted = [code for code in re.findall(r"`([^`]+)`", paragraph[0]) if "<" not in code]
    assert len(accepted) > 12
    for code in accepted:
        is_transform = re.match(r"(HR|RR|PCA|OPQ|ITQ)", code)
        parse_factory(f"{code},SQ8" if is_transform else code, n=10**6, d=768, metric="l2")


@pytest.mark.parametrize("suffix", [s for f in FORMATS for s in f.suffixes] + list(RAW_DTYPES))
def test_every_suffix_is_in_the_page_of_stores(suffix: str) -> None:
    assert f"`{suffix}`" in TEXT["stores.md"]


def test_every_extra_is_named() -> None:
    for extra in ("parquet", "remote", "hdf5plugin", "bfloat16"):
        assert f"`[{extra}]`" in TEXT["README.md"]
        assert f"`[{extra}]`" in TEXT["stores.md"]


def test_defaults_of_a_search_are_as_said() -> None:
    from ooc.search.promise import CONFIDENCE, DEFAULT_RECALL, TABLED_K, Choice, default_rerank

    assert [default_rerank(k) for k in (1, 10, 50)] == [100, 100, 500]
    assert (CONFIDENCE, DEFAULT_RECALL, TABLED_K) == (0.8, 0.95, (1, 10, 100))
    # 2·√nlist, rounded down.
    for nlist, lists_per_row, expected in ((4096, 1, 128), (2048, 1, 90), (2048, 2, 45), (1, 2, 1)):
        made = Choice(None, name="i", n=10**6, nlist=nlist, lists_per_row=lists_per_row)
        assert made.default_nprobe == expected


@pytest.mark.parametrize("keys", [None, range(1500), [str(i) for i in range(1500)]])
def test_every_file_and_field_of_an_index_is_in_the_page_of_the_format(tmp_path: Path, keys: Any) -> None:
    store, index = tmp_path / "x.npy", tmp_path / "x.ooc"
    np.save(store, embeddings(1500, 16))
    ooc.build(store, index, copy_vectors="always", keys=None if keys is None else list(keys))
    text = TEXT["format.md"]
    undocumented = []
    for path in (p for p in index.rglob("*") if p.is_file()):
        relative = path.relative_to(index).as_posix()
        assert path.name in text, relative
        if path.suffix == ".json":
            record = json.loads(path.read_bytes())
            named = {*record, *(record["plan"] if relative == "generations/1.json" else ())}
            named |= set(record.get("keys") or ()) if path.name == "segment.json" else set()
            undocumented += [f"{relative}: {key}" for key in named if f"`{key}`" not in text]
    assert not undocumented


def test_every_field_of_a_shard_is_in_the_page_of_the_format(tmp_path: Path) -> None:
    import threading

    store, index = tmp_path / "x.npy", tmp_path / "x.ooc"
    np.save(store, embeddings(40_000, 8))
    stop = threading.Event()

    def observer(event: ooc.events.Event) -> None:
        if isinstance(event, ooc.events.Progress) and event.stage == "fill":
            stop.set()

    with pytest.raises(ooc.Stopped):
        ooc.build(
            store,
            index,
            shard_rows=1024,
            observer=observer,
            stop=stop,
            keys=np.arange(40_000, dtype=np.int32),
        )
    (build,) = (index / "build").iterdir()
    text = TEXT["format.md"]
    for path in build.iterdir():
        assert f"`{path.name}" in text, path.name
    assert all(f"`{key}`" in text for key in json.loads((build / "keys.json").read_bytes()))
    shard = next(path for path in (build / "shards").glob("*.json"))
    assert all(f"`{key}`" in text for key in json.loads(shard.read_bytes()))


def test_parameters_of_the_tour_exist() -> None:
    for name in ("observer", "stop", "memory", "metric", "progress"):
        assert name in inspect.signature(ooc.build).parameters


def test_pages_keep_to_the_project() -> None:
    for word in ("TODO", "FIXME"):
        assert word not in ALL


#: Kinds that are made of a name at run time.
MADE_KINDS = {
    ("ArgumentError", kind)
    for kind in ("metric", "copy_vectors", "copy_dtype", "spill", "on_bad", "threads", "shard_rows", "nprobe")
} | {
    ("ArgumentError", "keep"),
    ("ArgumentError", "rerank"),
    ("ArgumentError", "k"),
    ("ArgumentError", "first"),
    ("ArgumentError", "batch"),
    ("ArgumentError", "count"),
    ("ArgumentError", "candidates"),
    ("ConflictError", "convert-source-differs"),
    ("ConflictError", "convert-settings-differs"),
    ("MissingExtraError", "missing-extra"),
    ("Stopped", "stopped"),
}


def raised_kinds() -> set[tuple[str, str]]:
    """Class and kind of every error that the package makes with a literal kind, and of notes."""
    found = set()
    for path in DOCS.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            kinds = [keyword.value for keyword in node.keywords if keyword.arg == "kind"]
            if name in ("note", "_note"):
                name = "Note"
            if name not in (*errors.__all__, "Note"):
                continue
            for kind in kinds:
                # "a" if x else "b" is two kinds; an f-string is among those made at run time.
                parts = [] if isinstance(kind, ast.JoinedStr) else [kind]
                if isinstance(kind, ast.IfExp):
                    parts = [kind.body, kind.orelse]
                found |= {(name, str(part.value)) for part in parts if isinstance(part, ast.Constant)}
    return found


def test_kinds_of_errors_are_all_in_their_page_and_no_others() -> None:
    kinds, notes = (t for t in tables(DOCS / "errors.md") if "kind" in t[0])
    shown = set()
    for cls, named, when in kinds[1:]:
        words = re.findall(r"`([^`]+)`", named) or re.findall(r"`([^`]+)`", when)
        shown |= {(cls.strip("`"), word) for word in words}
    shown |= {("Note", row[0].strip("`")) for row in notes[1:]}
    assert shown == raised_kinds() | MADE_KINDS
