"""What tests compile is kept under the hash of all that it is made of."""

import shutil

import compiled
import pytest


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def place(folder, *flags):
    return compiled.place(["g++"], flags, [folder])


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ on PATH")
def test_a_place_is_that_of_the_sources_and_flags_wherever_they_are(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep/a.h").write_text("int a;")
        (folder / "b.cu").write_text("int b;")
    first = place(one, "-O1")
    assert place(two, "-O1") == first
    assert place(one, "-O2") != first
    (two / "README.md").write_text("no source")
    assert place(two, "-O1") == first
    (two / "b.cu").write_text("int c;")
    assert place(two, "-O1") != first
    shutil.move(one / "deep/a.h", one / "deep/c.h")
    assert place(one, "-O1") != first


def test_a_result_is_found_with_what_was_said_until_thirty_others_were_used(tmp_path):
    result = tmp_path / "program"
    result.write_bytes(b"machine code")
    result.chmod(0o755)
    places = [compiled.cache() / f"{i:064}" for i in range(31)]
    assert compiled.find(places[0]) is None
    for i, kept in enumerate(places):
        compiled.keep(result, kept, f"warning {i}")
        if i:  # the first one is used again and again
            assert compiled.find(places[0]) == "warning 0"
    assert compiled.find(places[1]) is None
    assert not places[1].exists()
    assert compiled.find(places[30]) == "warning 30"
    assert places[30].read_bytes() == b"machine code"
    assert places[30].stat().st_mode & 0o777 == 0o755
