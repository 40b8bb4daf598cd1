"""Overrides as a person types them: text stays text, tables take any name, commands are split as a shell would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.common.errors import ConfigError
from launcher.config import SlurmClusterConfig, compose, from_yaml, to_yaml
from launcher.config.explain import explain
from launcher.config.overrides import as_meant, setting_at, split

LOOK_LIKE_VALUES = [
    *("12e4", "1_1_1", "1e3", ".5", "1.", "+1", "inf", "nan", "NaN", "true", "False", "0x10", "012", "2024-01-01"),
    *("2024-01-01T10:00:00", "12:30", "1.2.3", "deadbeef", "00e1", "-1", "on", "null"),
]


@pytest.mark.parametrize("text", LOOK_LIKE_VALUES)
def test_text_settings_keep_what_was_typed(text: str) -> None:
    config = compose(
        [
            f"name={text}",
            f"trainer.env.A={text}",
            f"cluster.env={{B: {text}}}",
            f"secrets=[{text},C]",
            f"model.dtype={text}",
            f"trainer.command=[python,{text}]",
        ]
    )

    assert config.name == text
    assert config.trainer.env["A"] == text
    assert config.cluster.env == {"B": text}
    assert config.secrets == [text, "C"]
    assert config.model.dtype == text
    assert config.trainer.command == ["python", text]
    assert from_yaml(to_yaml(config)) == config


# In YAML, null is the absence of a value.
@pytest.mark.parametrize("text", [text for text in LOOK_LIKE_VALUES if text != "null"])
def test_text_in_a_preset_is_kept_as_well(tmp_path: Path, text: str) -> None:
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", f"output_dir: {text}", "trainer:", f"  env: {{A: {text}}}"]
    (tmp_path / "experiment/mine.yaml").write_text("\n".join(lines), encoding="utf-8")

    config = compose(["experiment=mine"], tmp_path)

    assert config.output_dir == text
    assert config.trainer.env["A"] == text


def test_numbers_and_null_stay_what_they_are_where_they_are_meant() -> None:
    config = compose(
        [
            *("trainer.lr=1e-4", "trainer.steps=1_000", "inference.enforce_eager=true", "model.path=null"),
            *("trainer.options.lr=1e-3", "trainer.options.deep.flag=true"),
        ]
    )

    assert (config.trainer.lr, config.trainer.steps, config.inference.enforce_eager) == (1e-4, 1000, True)
    assert config.model.path is None
    assert config.trainer.options["lr"] == 1e-3
    assert config.trainer.options["deep"] == {"flag": True}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("cluster.sbatch.comment=rl", {"comment": "rl"}),
        ("cluster.sbatch.comment=12e4", {"comment": "12e4"}),
        ("+cluster.sbatch.comment=rl", {"comment": "rl"}),
        ("++cluster.sbatch.comment=rl", {"comment": "rl"}),
        ("cluster.sbatch.contiguous=true", {"contiguous": True}),
        ("cluster.sbatch={comment: 1e3}", {"comment": "1e3"}),
    ],
)
def test_tables_take_any_name_without_a_plus_sign(override: str, expected: dict[str, Any]) -> None:
    config = compose(["+cluster=slurm", override])

    assert isinstance(config.cluster, SlurmClusterConfig)
    assert config.cluster.sbatch == expected


def test_a_table_of_the_other_kind_of_cluster_is_refused() -> None:
    with pytest.raises(Exception, match="sbatch") as raised:
        compose(["cluster.sbatch.comment=rl"])

    assert "`cluster.sbatch" in explain(raised.value)
    assert "+cluster=slurm" in explain(raised.value)


def test_what_a_table_has_already_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\ntrainer:\n  env: {A: b}\n", encoding="utf-8")

    assert compose(["experiment=mine", "trainer.env.A=c"], tmp_path).trainer.env["A"] == "c"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("python train.py --lr=1e-3 --x=a,b 'two words'", ["python", "train.py", "--lr=1e-3", "--x=a,b", "two words"]),
        ('"python train.py --lr=1e-3"', ["python", "train.py", "--lr=1e-3"]),
        ("[python,train.py,--lr=1e-3,a b]", ["python", "train.py", "--lr=1e-3", "a b"]),
        ("['python','a=b,c',\"it's\"]", ["python", "a=b,c", "it's"]),
        ("""bash -c 'echo "it is"; exit 3'""", ["bash", "-c", 'echo "it is"; exit 3']),
        ("""bash -c "echo it's" """, ["bash", "-c", "echo it's"]),
        (r"""grep 'a\\' 'b\'""", ["grep", r"a\\", "b\\"]),
        ("train.sh é", ["train.sh", "é"]),
        ("train.sh ${name}", ["train.sh", "rl"]),
        ("train.sh", ["train.sh"]),
    ],
)
def test_a_command_is_a_list_or_what_a_shell_would_split(typed: str, words: list[str]) -> None:
    assert compose(["name=rl", f"trainer.command={typed}"]).trainer.command == words


def test_a_command_with_an_open_quote_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`trainer.command` \(echo 'a\) cannot be split into words: No closing"):
        compose(["trainer.command=echo 'a"])


def test_a_command_in_a_preset_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/mine.yaml").write_text("command: python train.py --lr=1e-3 'a b'\n", encoding="utf-8")

    command = compose(["trainer=mine"], tmp_path).trainer.command

    assert command == ["python", "train.py", "--lr=1e-3", "a b"]


@pytest.mark.parametrize("value", ["é", "a;b", "~/x", "a=b", "a&b", "a#b", "50%", "a  b"])
def test_text_that_hydra_would_refuse_needs_no_quotes(value: str) -> None:
    assert compose([f"cluster.env.NOTE={value}"]).cluster.env == {"NOTE": value}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("name=1e2,1e3", "name='1e2','1e3'"),
        ("name=choice(1e2,b)", "name=choice('1e2',b)"),
        ("trainer.env.A=1e2,x", "++trainer.env.A='1e2',x"),
        ("trainer.command=[a,1e3],[b]", "trainer.command=[a,'1e3'],[b]"),
        ("trainer.lr=1e-3,1e-4", "trainer.lr=1e-3,1e-4"),
        ("experiment=a,b", "experiment=a,b"),
        ("-m", "-m"),
        ("~trainer.env.A=1", "~trainer.env.A='1'"),
        ("hydra.verbose=true", "hydra.verbose=true"),
        ("name='1e3'", "name='1e3'"),
        ("name=run-${hydra:job.num}", "name=run-${hydra:job.num}"),
    ],
)
def test_sweeps_and_other_words(word: str, meant: str) -> None:
    assert as_meant([word]) == [meant]


@pytest.mark.parametrize(
    ("text", "parts"),
    [("", []), ("a,b", ["a", "b"]), ("[a,b],c", ["[a,b]", "c"]), ("'a,b',c", ["'a,b'", "c"]), (r"a\,b", [r"a\,b"])],
)
def test_values_are_split_at_their_own_commas(text: str, parts: list[str]) -> None:
    assert split(text) == parts


def test_what_is_a_table_is_read_from_the_schema() -> None:
    tables = ("cluster.sbatch.x", "cluster.env.x", "trainer.env.x", "inference.env.x", "trainer.options.x.y")
    assert all(setting.is_in_table for path in tables if (setting := setting_at(path)))
    assert setting_at("trainer.steps.x") is None
    assert setting_at("trainer.nothing") is None
