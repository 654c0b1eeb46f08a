"""Headers and indexes of remote objects in memory."""

from __future__ import annotations

from relex_codec.storage.header_cache import HeaderCache


def test_cached_headers_are_bounded_and_of_one_version() -> None:
    cache = HeaderCache(limit=100)
    cache.add("a", "1", 10, b"0123456789")
    cache.add("a", "1", 30, b"xyz")
    assert cache.find("a", "1", 12, 15) == b"234" and cache.find("a", "1", 31, 33) == b"yz"
    assert cache.find("a", "1", 9, 12) is None and cache.find("a", "1", 18, 21) is None
    assert cache.find("a", "2", 12, 15) is None and cache.find("b", "1", 12, 15) is None
    cache.add("a", "2", 0, b"new")
    assert cache.find("a", "1", 12, 15) is None and cache.find("a", "2", 0, 3) == b"new"
    for key in "cd":
        cache.add(key, "1", 0, bytes(48))
    assert [key in cache for key in "acd"] == [True, True, True]
    assert cache.find("c", "1", 0, 1) is not None  # used, so it stays longer
    cache.add("e", "1", 0, bytes(48))
    assert [key in cache for key in "acde"] == [False, True, False, True]
    cache.add("f", "1", 0, bytes(200))
    assert [key in cache for key in "cef"] == [False, False, True]
    cache.clear()
    assert "f" not in cache


def test_what_is_wrong_is_forgotten() -> None:
    cache = HeaderCache(limit=100)
    cache.add("a", "1", 0, b"0123456789")
    cache.add("a", "1", 10, b"abcdefghij")
    cache.add("a", "1", 5, b"5678")
    cache.add("b", "1", 0, b"other")
    cache.forget("a", 9, 10)
    assert cache.find("a", "1", 0, 3) is None and cache.find("a", "1", 5, 9) == b"5678"
    assert cache.find("a", "1", 10, 12) == b"ab" and cache.find("b", "1", 0, 5) == b"other"
    cache.forget("a", 0, 100)
    assert cache.find("a", "1", 10, 12) is None
    cache.forget("none", 0, 1)
    assert "none" not in cache
