"""What a release uploads: wheel and sdist are built from the checkout, and each is installed and used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import relex_codec
from support.commands import ELSEWHERE

REPOSITORY = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "relex_codec", "cli")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(one) for one in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            # the link that developers may have is not a part of the sources
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "cli"))
        else:
            shutil.copy(REPOSITORY / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", source, cwd=ELSEWHERE)
    (wheel,), (sdist,) = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_uploaded_can_be_installed_and_used(kind: str, built: dict[str, Path], tmp_path: Path) -> None:
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    (own,) = environment.glob("lib/python*/site-packages")
    # what the package needs is that of these tests; the package itself comes first from the new environment
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ("install", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", built[kind])
    run(sys.executable, "-m", "pip", "--python", environment / "bin" / "python", *install, cwd=tmp_path)

    place = run(environment / "bin" / "python", "-c", "import relex_codec; print(relex_codec.__file__)", cwd=tmp_path)
    assert Path(place.strip()) == own / "relex_codec" / "__init__.py"
    said = run(environment / "bin" / "relex-codec", "--version", cwd=tmp_path)
    assert relex_codec.__version__ in said
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = {name for name in archive.namelist() if name.startswith("relex_codec/")}
    there = {str(path.relative_to(own)) for path in (own / "relex_codec").rglob("*") if path.is_file()}
    assert names == {name for name in there if "__pycache__" not in name}
    assert "relex_codec/cli/encode.py" in names and "relex_codec/py.typed" in names
