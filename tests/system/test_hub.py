"""The hub's protocol against a local server, each command in its own process."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow
import pyarrow.parquet
import pytest

from loratune.data import snapshot
from loratune.data.sources.hub import choose_files
from loratune.errors import UserError
from loratune.system import hub
from support.small_models import save_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "datasets/somebody/gated"


class StandIn(BaseHTTPRequestHandler):
    """Serves `repositories`, {"datasets/owner/name": {file: content}}, as the hub does."""

    repositories: dict[str, dict[str, bytes]]

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == [""]:
            return self.answer(200)
        listing = parts[0] == "api"
        name = "/".join(parts[1:4] if listing else parts[:3])
        if name == GATED:
            return self.answer(403, b'{"error": "Access is restricted"}', {"X-Error-Code": "GatedRepo"})
        if name not in self.repositories:
            return self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        files = self.repositories[name]
        if not listing:  # datasets/owner/name/resolve/COMMIT/FILE
            content = files["/".join(parts[5:])]
            return self.answer(
                200, content, {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            )
        if parts[4] == "tree":
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": "0"}
                for file, content in files.items()
            ]
            return self.answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        info = {
            "id": "/".join(parts[2:4]),
            "sha": COMMIT,
            "siblings": [{"rfilename": file} for file in files],
        }
        self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET

    def answer(self, code: int, content: bytes = b"", headers=None):
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serving(repositories):
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Serving", (StandIn,), {"repositories": repositories})
    )
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def finqa_parquet(folder, name: str) -> bytes:
    """FinQA flattened; as some copies do, with the table as JSON text and the answer as `final_result`."""
    rows = snapshot.read(name)[:8]
    kept = ("id", "pre_text", "post_text", "question", "program", "gold_inds")
    flat = [
        {field: row[field] for field in kept}
        | {"table": json.dumps(row["table"]), "final_result": row["answer"]}
        for row in rows
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), folder / name)
    return (folder / name).read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A stand-in hub, an empty cache, and a model to count tokens with."""
    folder = tmp_path_factory.mktemp("hub")
    save_model(folder / "model")
    repositories = {
        "datasets/databricks/databricks-dolly-15k": {
            "README.md": b"# Dolly",
            "databricks-dolly-15k.jsonl": jsonl(snapshot.read("dolly")[:60]),
        },
        "datasets/PTPReasoning/finqa": {
            f"data/{part}-00000-of-00001.parquet": finqa_parquet(folder, name)
            for part, name in (("train", "finqa_train"), ("validation", "finqa_dev"), ("test", "finqa_test"))
        },
        "datasets/somebody/parted": {
            "train.jsonl": jsonl(
                [{"prompt": f"What is {n} times itself?", "completion": str(n * n)} for n in range(30)]
            ),
            "test.jsonl": jsonl(
                [{"prompt": f"Name a {one}.", "completion": "No."} for one in ("river", "hill")]
            ),
        },
        "datasets/somebody/own": {
            "train.csv": b"prompt,completion\nName a red fruit,Cherry\nName a green tree,Fir\n",
            "test.csv": b"prompt,completion\nName a blue flower,Flax\n",
        },
    }
    with serving(repositories) as address:
        yield folder, address


def prepare(place, *options: str, **environment: str):
    folder, address = place
    command = [
        sys.executable,
        "-m",
        "loratune",
        "prepare",
        "--json",
        "--model",
        str(folder / "model"),
        "--val-fraction",
        "0.2",
    ]
    clean = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment = (
        clean
        | {"HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        | environment
    )
    return subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, input="", timeout=120
    )


def test_data_sets_come_from_the_hub_and_then_from_the_cache(place, tmp_path):
    data = ("--data", "dolly", "finqa", "somebody/own")
    first = prepare(place, *data, "--out", str(tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    assert "from the Hugging Face hub, because it answers" in first.stderr
    report = json.loads(first.stdout)
    assert report["sources"]["dolly"]["origin"] == "databricks/databricks-dolly-15k on the Hugging Face hub"
    assert (report["sources"]["dolly"]["read"], report["sources"]["finqa"]["read"]) == (60, 24)
    assert report["sources"]["somebody/own"]["splits"] == {"train": 2, "val": 0, "test": 1}
    offline = prepare(place, *data, "--source", "hub", "--out", str(tmp_path / "second"), HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    for file in ("train.jsonl", "val.jsonl", "test.jsonl"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_missing_hub_validation_split_is_drawn_from_train(place, tmp_path):
    result = prepare(place, "--data", "somebody/parted", "--out", str(tmp_path / "data"))
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)["rows"]
    assert counts["test"] == 2 and counts["val"] > 0 and counts["train"] + counts["val"] == 30


def test_unknown_hub_data_set_is_refused(place, tmp_path):
    result = prepare(place, "--data", "somebody/nothing", "--out", str(tmp_path / "data"))
    assert result.returncode == 2 and not (tmp_path / "data").exists()
    assert (
        "data set somebody/nothing: the hub has no such data set" in result.stderr
        and "Traceback" not in result.stderr
    )


def test_gated_data_set_is_refused_without_a_login_prompt(place, tmp_path):
    result = prepare(place, "--data", GATED.removeprefix("datasets/"), "--out", str(tmp_path / "data"))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "its owner asks for a login and consent on the hub" in result.stderr


WATCHED = """
import json, os, sys
called = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        called.append(str(arguments[:2]))
sys.addaudithook(watch)
from loratune.cli.main import main
codes = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps({"codes": codes, "called": called, "telemetry": os.environ["HF_HUB_DISABLE_TELEMETRY"]}))
"""


def test_local_model_and_data_make_no_network_request(place, tmp_path):
    data = tmp_path / "own.jsonl"
    data.write_bytes(
        jsonl([{"instruction": f"What is {n}?", "output": f"It is {n * n}."} for n in range(40)])
    )
    (tmp_path / "test.json").write_text('["What is 7?"]')
    base, short = ["--model", str(place[0] / "model")], ["--adapter", "adapter", "--max-new-tokens", "2"]
    commands = [
        ["prepare", *base, "--data", str(data), "--val-fraction", "0.2", "--out", "data"],
        [
            "train",
            *base,
            "--data",
            "data",
            "--max-tokens",
            "256",
            "--steps",
            "1",
            "--out",
            "adapter",
            "--precision",
            "fp32",
        ],
        ["evaluate", *short, "--data", "data/test.jsonl", "--generate", "1", "--forgetting", str(data)],
        ["compare", *short],
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    clean |= {
        "LORATUNE_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "none"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-c", WATCHED, json.dumps(commands)]
    result = subprocess.run(
        command, cwd=tmp_path, env=clean, capture_output=True, text=True, input="", timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "codes": [0, 0, 0, 0],
        "called": [],
        "telemetry": "1",
    }


def test_missing_hub_and_cache_are_reported_with_a_remedy(place, tmp_path):
    options = ("--data", "dolly", "--source", "hub", "--out", str(tmp_path / "data"))
    result = prepare(place, *options, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "not in the local cache, and the hub cannot be reached" in result.stderr


def test_hub_reachability_is_detected(monkeypatch):
    from huggingface_hub import constants

    with serving({}) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub.is_hub_reachable()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert hub.is_hub_reachable()
    assert not hub.is_hub_reachable()


def test_hanging_hub_counts_as_unreachable(monkeypatch):
    import socket

    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        start = time.monotonic()
        assert not hub.is_hub_reachable(seconds=0.3)
        assert time.monotonic() - start < 2


def test_data_set_files_are_chosen():
    assert choose_files(["README.md", "a.jsonl", "data/b.parquet", "data/a.parquet"], "o/n", "") == [
        "data/a.parquet",
        "data/b.parquet",
    ]
    assert choose_files(["dataset_infos.json", "train.json", ".x.json"], "o/n", "") == ["train.json"]
    assert choose_files(["main/a.csv", "other/a.csv"], "o/n", "other") == ["other/a.csv"]
    with pytest.raises(UserError, match="choose one: o/n/main o/n/other"):
        choose_files(["main/a.csv", "other/a.csv"], "o/n", "")
    with pytest.raises(UserError, match=r"no \.parquet, \.jsonl, \.json, \.csv, \.tsv files"):
        choose_files(["README.md"], "o/n", "")
