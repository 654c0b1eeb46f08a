"""What reading from S3 and from web servers costs, counted at the server."""

from __future__ import annotations

import numpy as np
import relex_codec
from relex_codec.kept import OBJECTS
from conftest import Made
import pytest

def test_x(bucket, zoo_run, zoo_file):
    path = zoo_file("raw")
    bucket.put("run.relex", path.read_bytes())
    bucket.upload(zoo_run.base_path, "base")
    p = bucket.proxy
    with relex_codec.open(bucket.url("run.relex"), base=bucket.url("base"), storage_options=bucket.options) as run:
        print(p.requests); p.clear()
        run.bits("layers.0.proj.weight", 12); print(p.requests); p.clear()
        run.bits("layers.0.proj.weight", 5); print(p.requests); p.clear()
        run.state_dict(12); print(p.requests); p.clear()
    with relex_codec.open(bucket.url("run.relex"), base=bucket.url("base"), storage_options=bucket.options) as run:
        print(p.requests); p.clear()
        run.bits("layers.0.proj.weight", 12); print(p.requests); p.clear()
    assert 0
