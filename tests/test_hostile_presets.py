"""Presets as somebody would write them who means harm: refused in words, or read as nothing but words and numbers."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusers_groundavideo import VideoGrounding
from diffusers_groundavideo.presets import EditPreset
from small_edit import SMALL_EDIT, make_frames


PRESET = EditPreset.from_call(
    make_frames(), VideoGrounding.from_dict(SMALL_EDIT), 8.0, source_prompt="a square", prompt="a circle"
)
SECONDS = 10.0

# What changes a file, starts a program or talks to a network. Reading is watched for by itself.
_EVENTS = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "subprocess.Popen", "pickle.find_class"),
    *("socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "shutil.rmtree", "compile", "exec"),
}
_seen: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event in _EVENTS:
        _seen.append(event)
    if event == "open":
        _seen.append(f"open {os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else arguments[0]}")


# There is no way to take a hook away again: it does nothing unless watched.
sys.addaudithook(_watch)


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for a preset among files that are nobody's business, the current folder among them."""
    for name in ("secret.txt", "preset.json", "elsewhere/preset.json", "someone/a-model/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("nobody's business")
    (tmp_path / "preset").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "preset"


def tree(folder: Path) -> dict[str, Any]:
    """What there is below a folder, with contents and times."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() and path.stat().st_size < 2**20 else None,
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def read(sandbox: Path) -> Iterator[Callable[..., EditPreset]]:
    """Reads a preset, and does all that can be done with one without weights.

    Nothing but files in `sandbox` may be opened, nothing be changed anywhere, no code run, and any error but a plain
    `ValueError` with a short message is a failure.
    """

    def call(name: Path) -> EditPreset:
        global _seen
        before, start = tree(sandbox.parent), time.perf_counter()
        _seen = []
        try:
            preset = EditPreset.from_pretrained(name)
            preset.card("someone/something", preview=True)
            assert EditPreset.from_dict(json.loads(preset.to_json())) == preset
            return preset
        except ValueError as error:
            assert type(error) is ValueError
            assert len(str(error)) < 1500
            assert "nobody's business" not in str(error)
            assert str(error).isprintable()
            raise
        finally:
            seen, _seen = _seen, None
            assert time.perf_counter() - start < SECONDS
            assert all(event.startswith(f"open {sandbox}{os.sep}") for event in seen), seen
            assert tree(sandbox.parent) == before

    # What is imported or compiled at the first use of a library is no preset's doing.
    (sandbox / "preset.json").write_text(PRESET.to_json())
    (sandbox / "warm.yaml").write_text("schema_version: !!x 1")
    EditPreset.from_pretrained(sandbox).card("a/b")
    with pytest.raises(ValueError):
        EditPreset.from_pretrained(sandbox / "warm.yaml")
    yield call


def changed(**changes: Any) -> str:
    """The text of a good preset with other values; a name with a double underscore reaches into a part."""
    data = json.loads(PRESET.to_json())
    for name, value in changes.items():
        *parents, last = name.split("__")
        part = data
        for parent in parents:
            part = part[parent]
        part[last] = value
    return json.dumps(data)


def with_object(**fields: Any) -> str:
    return changed(grounding={"objects": [{"source_phrase": "a", "target_phrase": "b", **fields}]})


GOOD = changed()
MODEL = {"id": "someone/a-model", "revision": None, "variant": None}

JSON_PRESETS: dict[str, str | bytes] = {
    # Paths where names belong
    "path as model": changed(model={"id": "/etc/passwd"}),
    "path traversal in a model": changed(model={"id": "../../someone/a-model"}),
    "path traversal in the middle": changed(model={"id": "someone/../../etc"}),
    "a dot for a namespace": changed(model={"id": "./a-model"}),
    "home as namespace": changed(model={"id": "~/a-model"}),
    "windows path": changed(model={"id": "C:\\models/x"}),
    "url as model": changed(model={"id": "https://example.com/x"}),
    "option as model": changed(model={"id": "--trust/remote-code"}),
    "three parts": changed(model={"id": "a/b/c"}),
    "path traversal in a revision": changed(model=MODEL | {"revision": "../../refs"}),
    "absolute revision": changed(model=MODEL | {"revision": "/etc"}),
    "path traversal in a variant": changed(model=MODEL | {"variant": "../fp16"}),
    "path traversal in a ControlNet": changed(controlnets=[{"id": "../a/b"}]),
    "path traversal in a licence": changed(license="../../LICENSE"),
    "path traversal in a tag": changed(tags=["../../x"]),
    "a path field": changed(preview="../../secret.txt"),
    "a grounding by file name": changed(grounding="../secret.txt"),
    "masks by file name": with_object(masks="../secret.npy"),
    # Code
    "code in a field": changed(custom_pipeline="someone/evil", trust_remote_code=True),
    "a class to build": json.dumps({**json.loads(GOOD), "__class__": "os.system"}),
    "a python object": changed(grounding={"py/object": "os.system", "py/reduce": ["id"]}),
    "a callback": changed(callback_on_step_end="os.system"),
    "an expression": changed(num_inference_steps="__import__('os').system('id')"),
    "code in a model": changed(model=MODEL | {"trust_remote_code": True}),
    # Sizes
    "a billion frames": changed(clip__num_frames=10**9),
    "a billion pixels a side": changed(clip__height=10**9, clip__width=10**9),
    "too many pixels together": changed(clip__num_frames=1000, clip__height=8000, clip__width=8000),
    "too large a working size": changed(height=8192, width=8192, clip__num_frames=1000),
    "a billion steps": changed(num_inference_steps=10**9),
    "a billion optimisation steps": changed(num_null_text_steps=10**9),
    "a huge prompt": changed(prompt="a" * 10**6),
    "a huge phrase": with_object(box=[0, 0, 1, 1], source_phrase="a" * 10**6),
    "a huge title": changed(title="a" * 10**6),
    "a hundred thousand tags": changed(tags=["x"] * 10**5),
    "a hundred thousand fields": json.dumps({**json.loads(GOOD), **{f"field{i}": i for i in range(10**5)}}),
    "a huge field name": json.dumps({**json.loads(GOOD), "x" * 10**6: 1}),
    "31 objects": changed(grounding={"objects": SMALL_EDIT["objects"][:1] * 31}),
    "a hundred thousand boxes": with_object(boxes=[None] * 10**5),
    "a hundred thousand keyframes": with_object(keyframes={str(i): None for i in range(10**5)}),
    "a keyframe at a billion": with_object(keyframes={"1000000000": [0, 0, 1, 1]}),
    "small masks that become terabytes": with_object(masks=[{"size": [8192, 8192], "counts": [8192**2]}] * 1024),
    "masks of a billion pixels a side": with_object(masks=[{"size": [10**9, 10**9], "counts": [10**18]}] * 4),
    "run lengths that overflow": with_object(masks=[{"size": [2, 2], "counts": [2**63, 2**63, 4]}] * 4),
    "negative run lengths": with_object(masks=[{"size": [2, 2], "counts": [-4, 8]}] * 4),
    "masks without a size": with_object(masks=[{"counts": [4]}] * 4),
    "no masks at all": with_object(masks=[None] * 4),
    "a seed beyond 64 bits": changed(seed=2**64),
    "a number of 5000 digits": GOOD.replace('"seed": 0', f'"seed": {"9" * 5000}'),
    "a file that is too large": " " * (4 * 2**20) + GOOD,
    # Numbers
    "NaN": GOOD.replace('"guidance_scale": 12.5', '"guidance_scale": NaN'),
    "infinity": GOOD.replace('"guidance_scale": 12.5', '"guidance_scale": Infinity'),
    "minus infinity": GOOD.replace('"eta": 0.0', '"eta": -Infinity'),
    "overflow to infinity": GOOD.replace('"guidance_scale": 12.5', '"guidance_scale": 1e999'),
    "overflow in a box": GOOD.replace("0.75", "1e999"),
    "a box of NaN": GOOD.replace("0.75", "NaN"),
    "a box inside out": with_object(box=[1, 1, 0, 0]),
    "a box out of the frame": with_object(box=[-1, 0, 2, 1]),
    "a box of five": with_object(box=[0, 0, 1, 1, 1]),
    "a box of words": with_object(box=["0", "0", "1", "1"]),
    "a box of truths": with_object(box=[False, False, True, True]),
    "a box of a dict": with_object(box={"x0": 0}),
    "a truth as a number": changed(num_inference_steps=True),
    "a number as a truth": changed(paste_back=1),
    "a word as a truth": changed(open_all_boxes="yes"),
    "a fraction of a step": changed(num_inference_steps=20.5),
    "a whole float as a step": changed(num_inference_steps=20.0),
    "a negative seed": changed(seed=-1),
    "no frames a second": changed(clip__fps=0),
    # Types and fields
    "a list": "[]",
    "a word": '"preset"',
    "null": "null",
    "nothing": "",
    "only spaces": "   \n",
    "half a file": GOOD[: len(GOOD) // 2],
    "something behind it": GOOD + "x",
    "an unknown field": changed(steps=20),
    "an unknown field in a part": changed(clip__path="clip.mp4"),
    "an unknown field of an object": with_object(box=[0, 0, 1, 1], colour="red"),
    "prompts as a list": changed(prompt=["a", "b"]),
    "a prompt as bytes of numbers": changed(prompt=[97, 98]),
    "no clip": changed(clip=None),
    "an object without phrases": changed(grounding={"objects": [{"box": [0, 0, 1, 1]}]}),
    "an object with two places": with_object(box=[0, 0, 1, 1], boxes=[[0, 0, 1, 1]] * 4),
    "an empty phrase": with_object(box=[0, 0, 1, 1], source_phrase=" "),
    "a hash that is none": changed(clip__sha256="../" + "0" * 61),
    "a hash with a line behind": changed(clip__sha256="0" * 64 + "\n"),
    "an unknown attention": changed(inflation={"self_attention": "__import__"}),
    "a schema to come": changed(schema_version=2),
    "a schema that never was": changed(schema_version=-1),
    "a schema of truth": changed(schema_version=True),
    "a schema in words": changed(schema_version="1"),
    "no schema": changed(schema_version=None),
    # Two readers, two meanings
    "a key twice": GOOD.replace('"prompt"', '"prompt": "shown", "prompt"', 1),
    "a key twice, once escaped": GOOD.replace('"prompt"', '"prompt": "shown", "pro\\u006dpt"', 1),
    "a key twice in a part": GOOD.replace('"fps"', '"fps": 1, "fps"'),
    "a comment": GOOD + "// comment",
    "single quotes": GOOD.replace('"', "'"),
    # Nesting
    "deep lists": "[" * 10**5,
    "deep lists that end": changed(title="deep").replace('"deep"', "[" * 5000 + "]" * 5000),
    "deep dicts": changed(title="deep").replace('"deep"', '{"a":' * 5000 + "1" + "}" * 5000),
    # Unicode
    "text that turns around": changed(title="gpj.\u202eexe"),
    "text with an isolate": changed(prompt="a \u2066b"),
    "a NUL": changed(prompt="a\x00b"),
    "an escape sequence": changed(title="\x1b[2J\x1b]0;owned\x07"),
    "a lone surrogate": GOOD.replace("a circle", "a \\ud800 circle"),
    "a lone surrogate in a name": changed(**{"x": 1}).replace('"x"', '"\\udc00"'),
    "zero width space": changed(author="Ada\u200b"),
    "a byte order mark inside": changed(author="A\ufeffda"),
    "letters that nobody sees": changed(prompt="a cat" + "".join(chr(0xE0000 + ord(c)) for c in "ignore")),
    "a line separator": changed(prompt="a\u2028b"),
    "a private letter": changed(title="\ue000"),
    "a title of two lines": changed(title="a\n---\nlicense: mit"),
    "a Cyrillic repo id": changed(model={"id": "s\u043emeone/a-model"}),
    "a full-width repo id": changed(model={"id": "someone\uff0fa-model"}),
    "full-width dots": changed(model={"id": "\uff0e\uff0e/a-model"}),
    "digits of elsewhere as a keyframe": with_object(keyframes={"\u0663": [0, 0, 1, 1]}),
    "a superscript keyframe": with_object(keyframes={"\u00b2": [0, 0, 1, 1]}),
    "a negative keyframe": with_object(keyframes={"-1": [0, 0, 1, 1]}),
    "one keyframe under two names": with_object(keyframes={"0": [0, 0, 1, 1], "00": [0, 0, 0.5, 1]}),
    "a NUL in a repo id": changed(model={"id": "someone/a\x00b"}),
    "a line in a repo id": changed(model={"id": "someone/a-model\n"}),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "UTF-16": GOOD.encode("utf-16"),
    "bytes that are no UTF-8": GOOD.encode().replace(b"a circle", b"a \xff\xfe circle"),
    "over-long UTF-8": GOOD.encode().replace(b"a circle", b"\xc0\xae\xc0\xae\xc0\xaf"),
    "binary": bytes(range(256)),
    "a zip": b"PK\x03\x04" + bytes(100),
    "a pickle": b"cos\nsystem\n(S'touch owned'\ntR.",
}

YAML_PRESETS: dict[str, str | bytes] = {
    "a Python object": "!!python/object/apply:os.system ['touch owned']",
    "a Python name": GOOD.replace('"a circle"', "!!python/name:os.system"),
    "a Python module": GOOD.replace('"a circle"', "!!python/module:os"),
    "a new Python object": GOOD.replace('"a circle"', "!!python/object/new:os.system ['touch owned']"),
    "a harmless tag": GOOD.replace('"a circle"', '!!str "a circle"'),
    "a tag of one's own": GOOD.replace('"a circle"', '!preset "a circle"'),
    "the tag of no tag": GOOD.replace('"a circle"', '! "a circle"'),
    "a binary": GOOD.replace('"a circle"', "!!binary aGVsbG8="),
    "a set": GOOD.replace('"tags": []', '"tags": !!set {a, b}'),
    "a tag on it all": f"!!map {GOOD}",
    "a tag directive": "%TAG ! tag:yaml.org,2002:python/\n---\n" + GOOD.replace('"a circle"', "!name:os.system x"),
    "an alias": GOOD.replace('"a square"', '&p "a square"').replace('"a circle"', "*p"),
    "an anchor alone": GOOD.replace('"a circle"', '&p "a circle"'),
    "an alias to itself": "&a [*a]",
    "billion laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
    "a merge": "{<<: {seed: 1}, " + GOOD[1:],
    "a key twice": GOOD[:-1] + ', "seed": 1}',
    "a key twice, once quoted": "schema_version: 1\n'schema_version': 1",
    "a list as key": "? [a, b]\n: 1",
    "a mapping as key": "? {a: b}\n: 1",
    "an empty key": ": 1",
    "two documents": GOOD + "\n---\n" + GOOD,
    "no document": "",
    "deep lists": "[" * 10**5,
    "deep mappings": "{a: " * 10**4,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(600)),
    "NaN": GOOD.replace('"guidance_scale": 12.5', '"guidance_scale": .nan'),
    "infinity": GOOD.replace('"guidance_scale": 12.5', '"guidance_scale": .inf'),
    "overflow to infinity": GOOD.replace('"guidance_scale": 12.5', '"guidance_scale": 1e999'),
    "a number of 5000 digits": GOOD.replace('"seed": 0', f'"seed": {"9" * 5000}'),
    "base sixty": GOOD.replace('"seed": 0', '"seed": 1:30'),
    "octal": GOOD.replace('"seed": 0', '"seed": 0777'),
    "a date as number": GOOD.replace('"seed": 0', '"seed": 2001-01-01'),
    "a date that overflows": GOOD.replace('"seed": 0', '"seed": 0001-01-01 00:00:00 +23:59'),
    "yes as a truth": GOOD.replace('"paste_back": true', '"paste_back": yes'),
    "underscores in a number": GOOD.replace('"seed": 0', '"seed": 1_0'),
    "too large": "#" * 2**18 + "\n" + GOOD,
    "an escape beyond Unicode": 'prompt: "\\U00110000"',
    "an escaped surrogate": GOOD.replace("a circle", "\\ud800"),
    "a NUL": "prompt: a\x00b",
    "tabs": "\tprompt: x",
    "an unknown version": "%YAML 9.9\n---\na: 1",
    "a colon too many": "a: b: c",
    "UTF-16": GOOD.encode("utf-16"),
}


@pytest.mark.parametrize("content", JSON_PRESETS.values(), ids=JSON_PRESETS.keys())
def test_hostile_json_is_refused(read: Callable[..., EditPreset], sandbox: Path, content: str | bytes) -> None:
    (sandbox / "preset.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError):
        read(sandbox)


@pytest.mark.parametrize("content", YAML_PRESETS.values(), ids=YAML_PRESETS.keys())
def test_hostile_yaml_is_refused(read: Callable[..., EditPreset], sandbox: Path, content: str | bytes) -> None:
    (sandbox / "edit.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError):
        read(sandbox / "edit.yaml")


def test_what_the_hostile_ones_are_made_of_is_good(read: Callable[..., EditPreset], sandbox: Path) -> None:
    for name in ("edit.json", "edit.yaml"):
        (sandbox / name).write_text(GOOD)
        assert read(sandbox / name) == PRESET
    (sandbox / "preset.json").write_text(with_object(masks=[{"size": [2, 3], "counts": [0, 6]}, None, None, None]))
    assert read(sandbox).video_grounding().objects[0].masks is not None


def link(target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "preset.json").symlink_to(target)


@pytest.mark.parametrize(
    "make",
    [
        link("../secret.txt"),
        link("../elsewhere/preset.json"),
        link("/etc/passwd"),
        link("/dev/zero"),
        link("preset.json"),
        link("nothing.json"),
        link(".."),
        lambda folder: os.mkfifo(folder / "preset.json"),
        lambda folder: (folder / "preset.json").mkdir(),
        lambda folder: None,
    ],
    ids=["secret", "elsewhere", "passwd", "zero", "itself", "nothing", "parent", "pipe", "folder", "none"],
)
def test_what_is_no_file_of_the_folder_is_not_opened(
    read: Callable[..., EditPreset], sandbox: Path, make: Callable[[Path], None]
) -> None:
    (sandbox / "preset.json").unlink()
    make(sandbox)
    global _seen
    _seen = []
    try:
        with pytest.raises(ValueError):
            EditPreset.from_pretrained(sandbox)
        assert not _seen
    finally:
        _seen = None


def test_a_link_inside_the_folder_is_followed(read: Callable[..., EditPreset], sandbox: Path) -> None:
    (sandbox / "preset.json").rename(sandbox / "first.json")
    link("first.json")(sandbox)
    assert read(sandbox) == PRESET


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/passwd", "/etc/passwd", "/dev/zero", "someone/../x", "~/x", "-x/y", "nothing.json", "x" * 10**5),
        *(
            "",
            "a\x00b",
            "a/b\n",
            "someone/\u0430-model",
            "someone/x.git",
            "hf://someone/x",
            "https://example.com/x.json",
        ),
    ],
)
def test_a_name_that_is_no_preset(sandbox: Path, name: str) -> None:
    with pytest.raises(ValueError) as refused:
        EditPreset.from_pretrained(name)
    assert type(refused.value) is ValueError


def test_a_preset_is_written_into_its_folder_only(sandbox: Path) -> None:
    (sandbox / "preset.json").symlink_to("../secret.txt")
    (sandbox / "README.md").symlink_to("../elsewhere/preset.json")
    before = tree(sandbox.parent)
    PRESET.save_pretrained(sandbox)
    after = tree(sandbox.parent)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {
        *("preset", "preset/preset.json", "preset/README.md")
    }
    assert EditPreset.from_pretrained(sandbox) == PRESET


# --- generated ones ---

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**9, 10**30, -1, 1e308, "../..", "\u202e", "__class__", "NaN", {}, [], [[0, 0, 1, 1]]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def places(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in a preset: its fields, and those of its parts."""
    for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
        yield (*path, key)
        yield from places(part[key], (*path, key))


PLACES = list(places(json.loads(GOOD)))


def read_or_refuse(read: Callable[[], EditPreset]) -> None:
    try:
        preset = read()
    except ValueError as error:
        assert type(error) is ValueError
        assert len(str(error)) < 1500
    else:
        assert EditPreset.from_dict(json.loads(preset.to_json())) == preset
        assert preset.card()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3))
def test_a_preset_with_junk_in_it(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    data = json.loads(GOOD)
    for path, junk in changes:
        part = data
        try:
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = junk
        except (TypeError, LookupError):
            # An earlier change took this place away.
            continue
    read_or_refuse(lambda: EditPreset.from_dict(data))


@settings(max_examples=100, deadline=None)
@given(JUNK)
def test_junk_alone(junk: Any) -> None:
    read_or_refuse(lambda: EditPreset.from_dict(junk))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".json", ".yaml"]),
    st.binary(max_size=200) | st.text(alphabet="{}[]:,-?&*!|>'\"%@#~<= \n\tabx019.e", max_size=60).map(str.encode),
    st.integers(0, len(GOOD)),
    st.integers(0, 50),
)
def test_files_with_junk_in_them(tmp_path: Path, suffix: str, junk: bytes, position: int, removed: int) -> None:
    path = tmp_path / f"edit{suffix}"
    text = GOOD.encode()
    path.write_bytes(text[:position] + junk + text[position + removed :])
    read_or_refuse(lambda: EditPreset.from_file(path))
