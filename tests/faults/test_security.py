"""Untrusted files run no code and name no file outside their folder. See docs/security.md."""

import ast
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from loratune.config.train import TrainConfig
from loratune.data import token_cache
from loratune.data.sources.files import read_file_records
from loratune.data.sources.hub import choose_files
from loratune.data.sources.readers import read_rows
from loratune.errors import UserError
from loratune.models.adapter import load_adapter, read_adapter_weights
from loratune.models.load import load_model
from loratune.models.resolve import list_weight_files, resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system import hub
from support.deadline import enforce_deadline
from support.small_models import save_model
from support.tuned_models import save_tuned

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "src").rglob("*.py")), *sorted(ROOT.glob("*.py"))]

# Reading what these write can run any code.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
}


def find_unsafe_calls(source: str) -> list[str]:
    """What a program does that could run code from a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            found += [name for name in names if name.partition(".")[0] in UNSAFE_MODULES]
            found += [
                f"{names[0]}.{alias.name}"
                for alias in node.names
                if f"{names[0]}.{alias.name}" in UNSAFE_CALLS
            ]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            found += [called] if called in UNSAFE_CALLS else []
            found += [
                name
                for name in ("shell", "allow_pickle", "trust_remote_code")
                if given.get(name, "False") != "False"
            ]
            if called.endswith(".from_pretrained") and "trust_remote_code" not in given:
                found.append(f"{called} without trust_remote_code=False")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_package_calls_nothing_unsafe(path):
    assert find_unsafe_calls(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "from torch import load",
        "torch.load(path)",
        "eval(text)",
        "yaml.load(text)",
        "subprocess.run(text, shell=True)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, trust_remote_code=trusted)",
    ],
)
def test_unsafe_calls_are_detected(line):
    assert find_unsafe_calls(line)


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture
def trap(tmp_path):
    """A pickle, and at the end of the test the proof that nobody opened it."""
    marker = tmp_path / "the trap was opened"
    yield pickle.dumps(Trap(marker))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()  # it would have worked


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_pickled_models_are_refused(tmp_path, trap, name):
    save_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / name).write_bytes(trap)
    with pytest.raises(UserError, match=r"is a pickle|no \.safetensors files"):
        resolve_model(str(tmp_path / "model"))
    with pytest.raises(UserError):
        resolve_model(str(tmp_path / "model" / name))
    # Another safetensors file beside it does not let it in.
    (tmp_path / "model" / "other.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(resolve_model(str(tmp_path / "model")))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_adapters_are_refused(tmp_path, monkeypatch, trap, name):
    monkeypatch.chdir(tmp_path)
    save_tuned(tmp_path)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / name).write_bytes(trap)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing \(pickled"):
        read_adapter_weights(tmp_path / "adapter")
    # Nor does one that is called safetensors.
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(trap)
    with pytest.raises(UserError, match="cannot be read"):
        read_adapter_weights(tmp_path / "adapter")


@pytest.mark.parametrize("kind", [".pkl", ".pickle", ".pt", ".bin", ".npy", ".npz", ".yaml", ".py"])
def test_data_formats_that_run_code_are_refused(tmp_path, trap, kind):
    (tmp_path / f"mine{kind}").write_bytes(trap)
    with pytest.raises(UserError, match="unknown kind of file"):
        read_rows(tmp_path / f"mine{kind}")


def test_pickle_in_parquet_metadata_is_not_loaded(tmp_path, trap):
    """Arrow's extension types for Python were pickles once (CVE-2023-47248)."""
    hidden = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": trap}
    fields = [
        pyarrow.field("prompt", pyarrow.string(), metadata=hidden),
        pyarrow.field("completion", pyarrow.string()),
    ]
    schema = pyarrow.schema(fields, metadata={b"pandas": trap.hex().encode()})
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], schema=schema), tmp_path / "mine.parquet")
    (record,) = read_file_records(tmp_path / "mine.parquet", {}, "mine")
    assert (record.instruction, record.output) == ("a", "b")


def test_pickle_in_the_token_cache_is_not_loaded(tmp_path, trap):
    np.savez(
        tmp_path / "tokens-key.npz",
        metadata=np.array([Trap(tmp_path / "the trap was opened")], dtype=object),
        ids=1,
        lengths=1,
    )
    assert token_cache.load_or_tokenize(tmp_path, "key", lambda: ([], {"made": {}})) == ([], {"made": {}})


CODE = (
    "from pathlib import Path\nPath({marker!r}).touch()\nclass Model: pass\nclass Config: pass\nclass "
    "Tokenizer: pass\n"
)


@pytest.mark.parametrize(
    ("architecture", "tokenizer"),
    [("llama", False), ("llama", True), ("stranger", False), ("stranger", True)],
)
def test_code_in_a_model_folder_is_not_run(tmp_path, monkeypatch, architecture, tokenizer):
    """Nor is the user asked whether it may."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    marker, folder = tmp_path / "it ran", tmp_path / "model"
    save_model(folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    own = {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoTokenizer": ["own.Tokenizer", None],
    }
    kernel = {"attn_implementation": "somebody/kernel", "_attn_implementation": "somebody/kernel"}
    for name, change in (
        ("config.json", {"model_type": architecture, "auto_map": own} | kernel),
        ("tokenizer_config.json", {"auto_map": own, "tokenizer_class": "Tokenizer"} if tokenizer else {}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    try:
        base = load_model(resolve_model(str(folder)))
        assert base.tokenizer.encode("a") and architecture == "llama" and not tokenizer
    except UserError:
        assert architecture == "stranger" or tokenizer
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "/other.safetensors",
        "sub/../../x.safetensors",
        "pytorch_model.bin",
        "..",
        "",
        "none.safetensors",
    ],
)
def test_weight_index_cannot_name_other_files(tmp_path, trap, name):
    folder = tmp_path / "model"
    save_model(folder)
    (tmp_path / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "pytorch_model.bin").write_bytes(trap)
    index = {"metadata": {}, "weight_map": {"a": "part.safetensors", "b": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"index\.json: weight_map: b: .* is not a \.safetensors file of this folder"
    ):
        resolve_model(str(folder))


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{"])
def test_broken_weight_index_is_refused(tmp_path, content):
    save_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        list_weight_files(tmp_path)


def test_adapter_inside_a_base_folder_is_refused(tmp_path):
    save_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/somewhere/else"}))
    with pytest.raises(UserError, match="there is an adapter in it"):
        resolve_model(str(tmp_path))


def test_adapter_config_cannot_name_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tuned(tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    elsewhere = {
        "base_model_name_or_path": "../../etc/passwd",
        "auto_mapping": {"base_model_class": "os"},
        "revision": "../x",
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | elsewhere))
    monkeypatch.setattr(hub, "download", lambda *_, **__: pytest.fail("something was fetched"))
    load_adapter(load_model(resolve_model("base")).decoder, tmp_path / "adapter")


@pytest.mark.parametrize(
    "name", ["../train.jsonl", "/etc/train.jsonl", "data/../../train.jsonl", "..\\train.jsonl"]
)
def test_hub_data_set_cannot_name_other_files(name):
    with pytest.raises(UserError, match="names a file outside of itself"):
        choose_files(["data/train.jsonl", name], "owner/name", "")


@pytest.mark.parametrize(
    "run", ["../run", "/run", "a/b", "..", ".", ".hidden", "", "a\\b", "a\n", "a\0", "~", "-rf", "a b"]
)
def test_run_name_cannot_leave_the_runs_folder(run):
    with pytest.raises(UserError, match="run: "):
        TrainConfig.validate_all({"run": run})


HEADERS = {
    "2^63 bytes of header": struct.pack("<Q", 2**63) + b"{}",
    "more header than file": struct.pack("<Q", 1000) + b"{}",
    "nothing": b"",
    "no JSON": struct.pack("<Q", 4) + b"oops",
    "deep nesting": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "deep nesting in an object": struct.pack("<Q", 200_005) + b'{"a":' + b"[" * 200_000,
    "not UTF-8": struct.pack("<Q", 7) + b'{"\xff":1}',
}
TENSORS = {
    "past the end": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**60]}},
    "a shape of another size": {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
    "overlapping": {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    },
    "backwards": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    "negative": {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
    "an unknown type": {"a": {"dtype": "OBJECT", "shape": [2], "data_offsets": [0, 8]}},
    "not an object": {"a": 5},
    "a hole": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
}
for what, tensors in TENSORS.items():
    HEADERS[what] = struct.pack("<Q", len(json.dumps(tensors))) + json.dumps(tensors).encode() + bytes(8)


@pytest.mark.parametrize("what", HEADERS)
def test_hostile_safetensors_are_refused(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    save_tuned(tmp_path)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(HEADERS[what])
    (tmp_path / "base" / "model.safetensors").write_bytes(HEADERS[what])
    with (
        enforce_deadline(),
        pytest.raises(UserError, match=r"adapter=.*: adapter_model\.safetensors cannot be read"),
    ):
        read_adapter_weights(tmp_path / "adapter")
    with enforce_deadline(), pytest.raises(UserError, match="model=base: "):
        load_model(resolve_model("base"))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 100_000, '{"version": 1e999, "model": {"type": "x"}}', "\x00"]
)
def test_broken_model_configs_are_refused_or_harmless(tmp_path, name, content):
    save_model(tmp_path)
    (tmp_path / name).write_text(content)
    with enforce_deadline():
        try:
            assert Tokenizer.load(tmp_path).encode("a")
            load_model(resolve_model(str(tmp_path)))
        except UserError as error:
            assert str(tmp_path) in str(error)
        else:
            assert name == "tokenizer_config.json"
