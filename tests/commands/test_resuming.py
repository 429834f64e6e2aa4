"""What a run is made from may not change behind its back: named with what was and what is, and refused unless
accepted.
"""

import json

import pytest

from loratune.cli.main import main
from loratune.config.base import format_flag, read_toml
from loratune.config.train import TrainConfig
from loratune.system.read import read_json
from loratune.training import resume as resuming
from support.small_models import save_model

SIZES = ["--batch-tokens", "400", "--micro-tokens", "400", "--max-tokens", "300"]
ROWS = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(30)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two steps, and all that it is made from."""
    place = tmp_path_factory.mktemp("resuming")
    save_model(place / "base")
    (place / "data").mkdir()
    for name, rows in (("train", ROWS[5:]), ("val", ROWS[:5])):
        (place / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "own.toml").write_text('with_input = "{instruction} {input}"\nwithout_input = "{instruction}"\n')
    return place


@pytest.fixture
def place(made, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setenv("LORATUNE_CACHE", str(made / "cache"))
    if not (made / "runs" / "one").exists():
        words = [
            "--model",
            "base",
            "--steps",
            "2",
            "--template",
            "own.toml",
            "--threads",
            "1",
            "--precision",
            "fp32",
            *SIZES,
        ]
        assert main(["train", "--run", "one", *words]) == 0
    before = {
        path: path.read_bytes() for path in [*made.glob("*.toml"), *made.glob("data/*"), *made.glob("base/*")]
    }
    before |= {path: path.read_bytes() for path in made.glob("runs/one/*.*") if path.is_file()}
    yield made
    for path, content in before.items():
        path.write_bytes(content)


def resume(*options: str) -> int:
    return main(["train", "--run", "one", "--resume", *options])


def refused(capsys, *options: str) -> str:
    capsys.readouterr()
    assert resume(*options) == 2
    return capsys.readouterr().err


def facts(place) -> dict:
    return read_json(place / "runs" / "one" / "facts.json")


def test_a_run_of_which_nothing_has_changed_goes_on_whatever_is_said_twice(place, capsys):
    again = [
        "--model",
        "auto",
        "--precision",
        "auto",
        "--threads",
        "0",
        "--device",
        "auto",
        "--steps",
        "2",
        "--rank",
        "16",
    ]
    before = facts(place)
    assert resume(*again, *SIZES) == 0
    assert "warning" not in capsys.readouterr().out and facts(place) == before


def change_weights(place) -> None:
    path = place / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def change_config(place) -> None:
    path = place / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-5}))


def change_tokenizer(place) -> None:
    path = place / "base" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|end|>"}))


def change_data(place) -> None:
    path = place / "data" / "train.jsonl"
    path.write_text(path.read_text() + json.dumps(ROWS[0]) + "\n")


def change_template(place) -> None:
    (place / "own.toml").write_text(
        'with_input = "{instruction}: {input}"\nwithout_input = "{instruction}:"\n'
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (change_weights, "base"),
        (change_config, "config"),
        (change_tokenizer, "tokenizer"),
        (change_data, "train.jsonl"),
        (change_template, "template"),
    ],
)
def test_changed_files_are_named_refused_and_on_request_accepted_and_recorded(place, capsys, change, name):
    then = facts(place)[name]
    change(place)
    told = refused(capsys)
    assert f"error: {name}: {then[:12]} when the run began, " in told and "--accept-changes" in told
    assert told.count("when the run began") == 1
    assert resume("--accept-changes") == 0
    assert f"warning: {name}: {then[:12]} when the run began, " in " ".join(capsys.readouterr().out.split())
    now = facts(place)
    assert now[name] != then
    assert [(one["name"], one["then"], one["now"]) for one in now["changes"]] == [(name, then, now[name])]
    assert resume() == 0  # accepted once and for all


@pytest.mark.parametrize("change", [change_config, change_tokenizer])
def test_a_run_that_says_nothing_of_configuration_and_tokenizer_goes_on(place, change):
    """As those of the first version of loratune."""
    path = place / "runs" / "one" / "facts.json"
    before = {name: value for name, value in facts(place).items() if name not in ("config", "tokenizer")}
    path.write_text(json.dumps(before))
    change(place)
    assert resume() == 0
    assert facts(place) == before


@pytest.mark.parametrize("package", resuming.PACKAGES)
def test_another_version_of_a_package_that_matters_is_refused(place, capsys, monkeypatch, package):
    version = resuming.version
    monkeypatch.setattr(resuming, "version", lambda name: "9.9" if name == package else version(name))
    assert f"error: {package}: '{version(package)}' when the run began, '9.9' now" in refused(capsys)


def test_another_processor_is_refused(place, capsys, monkeypatch):
    monkeypatch.setattr(resuming, "identify_processor", lambda device: "Abacus 3")
    assert "now" in (told := refused(capsys)) and "error: processor: " in told and "'Abacus 3' now" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--learning-rate", "0.1"], "--learning-rate: 0.001 when the run began, 0.1 now"),
        (["--steps", "3"], "--steps: 2 when the run began, 3 now"),
        (["--budget", "5s"], "--budget: None when the run began, 5.0 now"),
        (["--threads", "2"], "--threads: 1 when the run began, 2 now"),
        (["--validations", "3"], "--validations: 10 when the run began, 3 now"),
    ],
)
def test_other_settings_are_refused_unless_accepted(place, capsys, options, told):
    before = (place / "runs" / "one" / "settings.toml").read_bytes()
    assert told in refused(capsys, *options)
    assert (place / "runs" / "one" / "settings.toml").read_bytes() == before


def test_accepted_settings_are_the_run_s_from_then_on(place, capsys):
    assert resume("--steps", "4", "--learning-rate", "0.01", "--accept-changes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    kept = read_toml(place / "runs" / "one" / "settings.toml")
    assert (kept["steps"], kept["learning_rate"], kept["accept_changes"], kept["resume"]) == (
        4,
        0.01,
        False,
        False,
    )
    assert {one["name"] for one in facts(place)["changes"]} == {"--steps", "--learning-rate"}
    rows = [json.loads(line) for line in (place / "runs" / "one" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    described = read_json(place / "model" / "gpt2_lora_finetuned" / "loratune.json")
    assert described["settings"]["steps"] == 4 and not described["settings"]["accept_changes"]


def test_a_stop_rule_that_is_accepted_replaces_the_old_one(place, capsys):
    assert resume("--budget", "1s", "--accept-changes") == 0
    kept = read_toml(place / "runs" / "one" / "settings.toml")
    assert kept["budget"] == 1.0 and "steps" not in kept


OTHER = {
    "rank": "4",
    "alpha": "8",
    "targets": "mlp",
    "seed": "7",
    "batch_tokens": "1200",
    "max_tokens": "200",
    "learn": "last",
}


@pytest.mark.parametrize("name", TrainConfig.FIXED)
def test_what_makes_the_adapter_or_the_order_of_the_data_never_changes(place, capsys, name):
    told = refused(capsys, format_flag(name), OTHER[name], "--accept-changes")
    assert f"error: {format_flag(name)}: " in told and "these never change within a run" in told


def test_settings_that_were_edited_by_hand_are_seen(place, capsys):
    path = place / "runs" / "one" / "settings.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.001", "learning_rate = 0.5"))
    assert "--learning-rate: 0.001 when the run began, 0.5 now" in refused(capsys)


def test_a_kill_between_the_two_files_of_an_accepted_change_is_seen(place, capsys):
    settings = (place / "runs" / "one" / "settings.toml").read_bytes()
    assert resume("--learning-rate", "0.01", "--accept-changes") == 0
    (place / "runs" / "one" / "settings.toml").write_bytes(
        settings
    )  # the second of the two was not written any more
    assert "--learning-rate: 0.01 when the run began, 0.001 now" in refused(capsys)


@pytest.mark.parametrize("broken", ["[]", "{}", '{"settings": 5}', "{"])
def test_facts_that_are_broken_are_refused(place, capsys, broken):
    (place / "runs" / "one" / "facts.json").write_text(broken)
    assert "facts.json" in refused(capsys)


def test_a_dry_run_of_a_resume_says_what_has_changed_and_changes_nothing(place, capsys):
    change_data(place)
    before = facts(place)
    assert "train.jsonl" in refused(capsys, "--dry-run")
    assert resume("--dry-run", "--accept-changes") == 0
    assert facts(place) == before


def test_to_accept_changes_there_must_be_a_run(place, capsys):
    assert main(["train", "--steps", "2", "--accept-changes"]) == 2
    assert "--accept-changes is for a run that goes on" in capsys.readouterr().err


def test_a_renamed_run_is_still_the_same(place):
    (place / "runs" / "one").rename(place / "runs" / "two")
    try:
        before = {path.name for path in (place / "runs").iterdir()}
        assert main(["train", "--resume"]) == 0
        assert {path.name for path in (place / "runs").iterdir()} == before
    finally:
        (place / "runs" / "two").rename(place / "runs" / "one")


def test_what_a_run_is_made_from_is_written_down(place):
    written = facts(place)
    files = {"base", "config", "tokenizer", "train.jsonl", "val.jsonl", "template"}
    assert {*files, "processor", "bos", "settings", *resuming.PACKAGES} == written.keys()
    assert (written["settings"]["threads"], written["settings"]["device"]) == (1, "cpu")
