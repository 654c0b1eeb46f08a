"""A cache that is bounded by bytes: what was not used for longest goes, the last values put in never do."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from relex_codec.core.byte_lru import ByteLRU


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache: ByteLRU[str, int] = ByteLRU(limit=10)
    cache.put_all({"a": (1, 4), "b": (2, 4)})
    assert cache.get("a") == 1 and cache.get("z") is None
    cache.put_all({"c": (3, 4)})
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    assert (len(cache), cache.nbytes) == (2, 8)


def test_looking_is_not_using() -> None:
    cache: ByteLRU[str, int] = ByteLRU(limit=10)
    cache.put_all({"a": (1, 4), "b": (2, 4)})
    assert "a" in cache
    cache.put_all({"c": (3, 4)})
    assert "a" not in cache and "b" in cache


def test_exactly_the_limit_fits() -> None:
    cache: ByteLRU[str, int] = ByteLRU(limit=10)
    cache.put_all({"a": (1, 5)})
    cache.put_all({"b": (2, 5)})
    assert len(cache) == 2
    cache.put_all({"c": (3, 1)})
    assert "a" not in cache and (len(cache), cache.nbytes) == (2, 6)


def test_values_that_were_put_in_together_stay_together() -> None:
    cache: ByteLRU[str, int] = ByteLRU(limit=10)
    cache.put_all({"a": (1, 1)})
    cache.put_all({"b": (2, 30), "c": (3, 30)})  # above the limit, but about to be used
    assert "a" not in cache and (cache.get("b"), cache.get("c"), cache.nbytes) == (2, 3, 60)
    cache.put_all({"d": (4, 1)})
    assert "b" not in cache and "c" not in cache and (cache.get("d"), cache.nbytes) == (4, 1)


def test_a_value_that_is_replaced_counts_once() -> None:
    cache: ByteLRU[str, int] = ByteLRU(limit=10)
    cache.put_all({"a": (1, 4), "b": (2, 4)})
    cache.put_all({"a": (5, 6)})
    assert (cache.get("a"), cache.get("b"), cache.nbytes) == (5, 2, 10)
    cache.put_all({"a": (6, 2)})
    assert (cache.get("a"), cache.get("b"), cache.nbytes) == (6, 2, 6)


def test_updates_see_the_value_and_count_as_use() -> None:
    cache: ByteLRU[str, str] = ByteLRU(limit=10)
    for letter in "xyz":
        cache.update("a", lambda old: ((old or "") + letter, len(old or "") + 1))  # noqa: B023 (called at once)
    assert (cache.get("a"), cache.nbytes) == ("xyz", 3)
    cache.put_all({"b": ("", 6)})
    cache.update("a", lambda old: (f"{old}!", 4))
    cache.put_all({"c": ("", 5)})
    assert "b" not in cache and cache.get("a") == "xyz!"


def test_nothing_is_left_after_clearing() -> None:
    cache: ByteLRU[str, int] = ByteLRU(limit=10)
    cache.put_all({"a": (1, 4)})
    cache.clear()
    assert (cache.get("a"), len(cache), cache.nbytes) == (None, 0, 0)


def test_threads_share_it() -> None:
    cache: ByteLRU[int, int] = ByteLRU(limit=500)

    def use(seed: int) -> None:
        chances = random.Random(seed)
        for _ in range(500):
            key = chances.randrange(40)
            found = cache.get(key)
            assert found is None or found == key
            cache.put_all({key: (key, chances.randrange(1, 100))})
            cache.update(40, lambda old: ((old or 0) + 1, 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert cache.nbytes == sum(size for _, size in cache._entries.values()) <= 500


def test_no_update_is_lost() -> None:
    cache: ByteLRU[str, int] = ByteLRU(limit=1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cache.update("n", lambda old: ((old or 0) + 1, 1)), range(2000)))
    assert cache.get("n") == 2000
