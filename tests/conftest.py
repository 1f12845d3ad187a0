import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


# Read by the libraries when they are imported: no test may depend on the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from loopback_hub import LoopbackHub
from small_checkpoint import build_components, save_checkpoint, save_full_size_layout


if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture
def components() -> dict[str, Any]:
    """All components of a small pipeline, ControlNet included, new for every test: a test may change their weights."""
    return build_components()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks for a connection fails."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError(f"a socket was opened: {arguments} {keywords}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `GroundAVideoPipeline.save_pretrained` writes it, ControlNet included. Not to be written to."""
    return save_checkpoint(tmp_path_factory.mktemp("small_checkpoint"))


@pytest.fixture(scope="session")
def full_size_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of `masterful/gligen-1-4-inpainting-text-box`, of small size. Not to be written to."""
    return save_full_size_layout(tmp_path_factory.mktemp("full_size_layout"))


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Real clips: `clips/*.mp4` and `cases/*/{frames,edit.json}`."""
    if not os.environ.get("GROUNDAVIDEO_CLIPS_DIR"):
        pytest.skip("GROUNDAVIDEO_CLIPS_DIR is not set: there are no real clips")
    return Path(os.environ["GROUNDAVIDEO_CLIPS_DIR"])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub on 127.0.0.1. What talks to it runs in `hub.python(script)`, or in a process with `hub.env`."""
    with LoopbackHub(home=tmp_path / "huggingface") as server:
        yield server


@pytest.fixture
def remote_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets diffusers load code in this process: copied to a folder of the test, forgotten after it."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers_modules"]:
        del sys.modules[name]
