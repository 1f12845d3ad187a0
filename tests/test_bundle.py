"""The pipeline as one file, `examples/community/ground_a_video.py`."""

import ast
import os
import re
import subprocess
import sys
from importlib import resources
from importlib.metadata import requires
from pathlib import Path

import pytest

from diffusers_groundavideo import GroundAVideoPipeline, bundling
from one_edit import edit


ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "examples" / "community" / "ground_a_video.py"

PARITY_AND_CONFORMANCE = [f"tests/test_{name}.py" for name in ("reference", "pipeline", "loading", "attention")]

# In this process nothing can import the package.
WITHOUT_THE_PACKAGE = "import sys; sys.modules['diffusers_groundavideo'] = None\n"


def run_on_bundle(python: str | Path, *arguments: str) -> str:
    """Runs tests in a process in which the bundle stands for the package; returns pytest's last line."""
    result = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "bundle_as_package", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=os.environ | {"GROUNDAVIDEO_BUNDLE": str(BUNDLE), "PYTHONPATH": "tests", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    return result.stdout.splitlines()[-1]


def test_is_what_the_modules_say():
    assert BUNDLE.read_text(encoding="utf-8") == bundling.bundle(), "run `make bundle`"


def test_needs_diffusers_alone():
    imported = set()
    for node in ast.walk(ast.parse(BUNDLE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            imported.add(node.module.split(".")[0])
    third_party = imported - sys.stdlib_module_names
    assert third_party == {"diffusers", "transformers", "torch", "numpy", "PIL", "safetensors"}
    # diffusers is never without it.
    assert "safetensors" in {re.split(r"[^\w-]", line)[0] for line in requires("diffusers") or [] if ";" not in line}


def test_a_module_that_is_left_out_is_missed(monkeypatch):
    monkeypatch.setattr(bundling, "MODULES", ("inputs", "grounding", "inversion", "smoothing", "pipeline"))
    with pytest.raises(ValueError, match="pipeline.py imports .attention, which is not bundled"):
        bundling.bundle()


def test_names_that_clash_are_found(monkeypatch, tmp_path):
    package = Path(bundling.__file__).parent
    for name in bundling.MODULES:
        (tmp_path / f"{name}.py").write_text((package / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    with (tmp_path / "smoothing.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef check_number(value):\n    return value\n")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="inputs.py and smoothing.py mean different things by `check_number`"):
        bundling.bundle()


def test_parity_and_conformance_where_there_is_no_package():
    assert "passed" in run_on_bundle(sys.executable, *PARITY_AND_CONFORMANCE)


def test_edits_like_the_package_without_it(hub, small_checkpoint, tmp_path):
    """By path, and as the `pipeline.py` of a folder."""
    folder = tmp_path / "plugin"
    folder.mkdir()
    (folder / "pipeline.py").write_text(BUNDLE.read_text(encoding="utf-8"), encoding="utf-8")
    script = WITHOUT_THE_PACKAGE + (
        "from diffusers import DiffusionPipeline\n"
        "from one_edit import edit\n"
        "for plugin in sys.argv[2:]:\n"
        "    pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=plugin, trust_remote_code=True)\n"
        "    print(type(pipe).__name__, edit(pipe))\n"
    )
    result = hub.python(script, small_checkpoint, BUNDLE, folder, HF_HUB_OFFLINE="1")
    expected = f"GroundAVideoPipeline {edit(GroundAVideoPipeline.from_pretrained(small_checkpoint))}"
    assert result.stdout.splitlines() == [expected, expected], result.stderr


@pytest.mark.slow
def test_parity_and_conformance_at_the_oldest_releases():
    python = ROOT / ".venv-oldest" / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no .venv-oldest, which `make test-oldest` installs")
    assert "passed" in run_on_bundle(python, *PARITY_AND_CONFORMANCE)
