"""`DiffusionPipeline.from_pretrained(model, custom_pipeline=…)`, by each kind of name that diffusers takes."""

import logging
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from diffusers import ControlNetModel, DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler

from diffusers_groundavideo import GroundAVideoPipeline
from one_edit import edit
from small_checkpoint import NOISE_SCHEDULE, build_controlnet


EXAMPLES = Path(__file__).parents[1] / "examples"
SHIM = EXAMPLES / "custom_pipeline"
PACKAGE_INDEX = "https://pypi.org/pypi/diffusers/json"


@pytest.mark.usefixtures("remote_code")
@pytest.mark.parametrize("custom_pipeline", [SHIM, SHIM / "pipeline.py"], ids=["folder", "file"])
def test_the_shim_gives_the_class_of_the_package_offline(full_size_layout, custom_pipeline):
    controlnet, scheduler = build_controlnet(), DDIMScheduler(**NOISE_SCHEDULE, clip_sample=False)
    pipe = DiffusionPipeline.from_pretrained(
        full_size_layout,
        custom_pipeline=str(custom_pipeline),
        trust_remote_code=True,
        controlnet=controlnet,
        scheduler=scheduler,
    )
    assert type(pipe) is GroundAVideoPipeline
    assert pipe.controlnet is controlnet and pipe.scheduler is scheduler
    package = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=controlnet, scheduler=scheduler)
    assert edit(pipe) == edit(package)


@pytest.mark.usefixtures("remote_code")
def test_another_scheduler_is_converted_with_a_warning(full_size_layout, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = DiffusionPipeline.from_pretrained(
        full_size_layout, custom_pipeline=str(SHIM), trust_remote_code=True, controlnet=None, scheduler=scheduler
    )
    assert type(pipe.scheduler) is DDIMScheduler and not pipe.scheduler.config.clip_sample
    assert pipe.scheduler.config.beta_end == 0.012
    assert "EulerDiscreteScheduler is converted to a DDIMScheduler" in caplog.text


@pytest.mark.usefixtures("remote_code")
def test_two_loads_are_one_class(full_size_layout):
    first, second = (
        DiffusionPipeline.from_pretrained(full_size_layout, custom_pipeline=str(SHIM), trust_remote_code=True)
        for _ in range(2)
    )
    assert type(first) is type(second) and first.unet is not second.unet
    assert first.controlnet is None


@pytest.mark.usefixtures("remote_code")
def test_no_code_runs_that_is_not_trusted(full_size_layout):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(full_size_layout, custom_pipeline=str(SHIM))


def test_the_shim_in_a_repo_on_the_hub(hub, full_size_layout, tmp_path):
    model = {path.relative_to(full_size_layout).as_posix(): path for path in full_size_layout.rglob("*.*")}
    hub.add_repo("tester/gligen", {name: path.read_bytes() for name, path in model.items()})
    revision = hub.add_repo("tester/ground-a-video", {"pipeline.py": (SHIM / "pipeline.py").read_text()})
    hub.add_repo("tester/ground-a-video", {"pipeline.py": "raise RuntimeError('a later revision')"})
    build_controlnet().save_pretrained(tmp_path / "controlnet")
    result = hub.python(
        """
import sys
from diffusers import ControlNetModel, DiffusionPipeline
from diffusers_groundavideo import GroundAVideoPipeline
from one_edit import edit

controlnet = ControlNetModel.from_pretrained(sys.argv[1])
pipe = DiffusionPipeline.from_pretrained(
    "tester/gligen",
    custom_pipeline="tester/ground-a-video",
    custom_revision=sys.argv[2],
    trust_remote_code=True,
    controlnet=controlnet,
    variant="fp16",
)
assert type(pipe) is GroundAVideoPipeline
assert pipe.controlnet is controlnet
print(edit(pipe.to(dtype=controlnet.dtype)))
""",
        tmp_path / "controlnet",
        revision,
    )
    controlnet = ControlNetModel.from_pretrained(tmp_path / "controlnet")
    package = GroundAVideoPipeline.from_pretrained(full_size_layout, controlnet=controlnet, variant="fp16")
    assert result.stdout.splitlines() == [edit(package.to(dtype=controlnet.dtype))], result.stderr


def test_the_bare_name_of_a_community_pipeline(hub, small_checkpoint):
    try:
        urllib.request.urlopen(PACKAGE_INDEX, timeout=10).close()
    except OSError as error:
        pytest.skip(f"diffusers asks {PACKAGE_INDEX} for its releases first, which cannot be reached: {error}")
    source = (EXAMPLES / "community" / "ground_a_video.py").read_text(encoding="utf-8")
    files = {f"v{version('diffusers')}/ground_a_video.py": source, "main/ground_a_video.py": source}
    hub.add_repo("diffusers/community-pipelines-mirror", files, repo_type="dataset")
    script = """
import sys
sys.modules["diffusers_groundavideo"] = None
from diffusers import DiffusionPipeline
from one_edit import edit

# A bare name needs no trust: diffusers looks after that repo itself.
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline="ground_a_video")
print(type(pipe).__name__, edit(pipe))
"""
    result = hub.python(script, small_checkpoint)
    expected = f"GroundAVideoPipeline {edit(GroundAVideoPipeline.from_pretrained(small_checkpoint))}"
    assert result.stdout.splitlines() == [expected], result.stderr
    assert any(f"resolve/main/v{version('diffusers')}/ground_a_video.py" in request for request in hub.requests)
