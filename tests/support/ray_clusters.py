"""A Ray cluster of several nodes on this machine, for tests and benchmarks, and killing its nodes and workers."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._raylet import Config
from ray.cluster_utils import Cluster

import relex_codec

STORE = 100 << 20
"""Bytes of each node's object store."""
TOKEN = secrets.token_hex(32)
"""One for all clusters of a process: Ray reads it once."""
NODE = {"num_cpus": 1, "memory": 2 << 30, "object_store_memory": STORE}


@contextmanager
def cluster_of(nodes: int) -> Iterator[Cluster]:
    """Start a head that does no work and so many nodes of one processor; the environment is set for drivers too."""
    paths = [str(Path(__file__).parents[1]), str(Path(relex_codec.__file__).parents[1])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # of 15, which on a busy machine is hardly any time
        patch.setenv("RAY_AUTH_MODE", "token")  # anybody on the network may run code on a cluster without
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        Config.initialize("")  # it looked at them when Ray was imported
        patch.setenv("PYTHONPATH", os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]))
        config = {"health_check_period_ms": 1000, "health_check_timeout_ms": 20000}  # a busy machine answers late
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "_system_config": config,
            },
        )  # fmt: skip
        try:
            for _ in range(nodes):
                cluster.add_node(wait=False, **NODE)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()


def raylet_of(node: Any) -> psutil.Process:
    """The process that stands for a node."""
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def workers_of(node: Any) -> list[psutil.Process]:
    """Processes of a node that do tasks, or could; a node ends without its agents, which are not among them."""
    found = []
    for process in raylet_of(node).children():
        try:
            title = " ".join(process.cmdline())
            if (title.startswith("ray::") and "Agent" not in title) or "default_worker.py" in title:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def lose(cluster: Cluster, node: Any) -> None:
    """Kill a node and its workers as when its machine loses power."""
    for process in [raylet_of(node), *workers_of(node)]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    cluster.remove_node(node, allow_graceful=False)
