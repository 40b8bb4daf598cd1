"""Old names of settings: read for one version wherever a released configuration may have them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from launcher.common.errors import ConfigError
from launcher.config import CONFIG_FILE, compose, from_yaml, load_run_config, to_yaml
from launcher.config import renamed as module
from launcher.config.explain import COMPOSITION_ERRORS, explain
from launcher.config.overrides import as_meant, setting_at
from launcher.config.renamed import RENAMED, with_names_of
from launcher.sweep.candidates import combinations


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test sees its warnings, which a process gives once."""
    monkeypatch.setattr(module, "_warned", set())


def preset(directory: Path, text: str, name: str = "experiment/mine.yaml") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return directory


def test_every_row_names_a_setting_that_exists_in_the_group_of_the_old_name() -> None:
    for old, new in RENAMED.items():
        assert setting_at(new) is not None
        assert setting_at(old) is None
        assert old.rpartition(".")[0] == new.rpartition(".")[0]


@pytest.mark.parametrize(
    "override", ["restart.engine_max=7", "++restart.engine_max=7", "restart={engine_max: 7}", "restart={engine_max:7}"]
)
def test_an_override_may_use_an_old_name(override: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = compose([override])

    assert config.restart.max_engine_restarts == 7
    (message,) = caplog.messages
    assert message.startswith("`restart.engine_max` is called `restart.max_engine_restarts` now.")


@pytest.mark.parametrize(
    "overrides",
    [
        ["restart.engine_max=7", "restart.max_engine_restarts=7"],
        ["restart={engine_max: 7, max_engine_restarts: 7}"],
    ],
)
def test_both_names_at_once_are_refused(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"`restart.engine_max` is the old name of `restart.max_engine_restarts`"):
        compose(overrides)


@pytest.mark.parametrize(
    ("name", "text", "override"),
    [
        ("experiment/mine.yaml", "# @package _global_\nrestart:\n  failure_max: 9\n", "experiment=mine"),
        ("restart/mine.yaml", "failure_max: 9\n", "+restart=mine"),
        ("other/mine.yaml", "# @package restart\nfailure_max: 9\n", "+other=mine"),
    ],
)
def test_a_preset_may_use_an_old_name(
    tmp_path: Path, name: str, text: str, override: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config = compose([override], preset(tmp_path, text, name))

    assert config.restart.max_failures == 9
    assert "`restart.max_failures`" in caplog.text


def test_a_preset_that_is_placed_by_another_one_is_refused_with_the_new_name(tmp_path: Path) -> None:
    """Which settings its content stands for is known only to Hydra, and only when it merges."""
    preset(tmp_path, "failure_max: 9\n", "other/mine.yaml")
    directory = preset(tmp_path, "# @package _global_\ndefaults:\n  - /other@restart: mine\n  - _self_\n")

    with pytest.raises(COMPOSITION_ERRORS) as raised:
        compose(["experiment=mine"], directory)

    assert "`restart.failure_max` is called `restart.max_failures` now. HINT: write that." in explain(raised.value)


def test_paired_settings_of_a_sweep_may_have_old_names(caplog: pytest.LogCaptureFixture) -> None:
    words = as_meant(["restart.engine_max=1,2", "trainer.seed=3,4"])
    overrides = OverridesParser.create().parse_overrides(words)

    assert combinations(overrides, ["restart.engine_max", "trainer.seed"]) == [
        ["restart.max_engine_restarts=1", "trainer.seed=3"],
        ["restart.max_engine_restarts=2", "trainer.seed=4"],
    ]


def test_an_override_wins_over_the_old_name_in_a_preset(tmp_path: Path) -> None:
    directory = preset(tmp_path, "# @package _global_\nrestart:\n  failure_max: 9\n")

    assert compose(["experiment=mine", "restart.max_failures=3"], directory).restart.max_failures == 3


def test_a_preset_with_both_names_is_refused(tmp_path: Path) -> None:
    directory = preset(tmp_path, "# @package _global_\nrestart:\n  failure_max: 9\n  max_failures: 9\n")

    with pytest.raises(ConfigError, match="both are given"):
        compose(["experiment=mine"], directory)


def test_a_reference_to_an_old_name_is_followed(tmp_path: Path) -> None:
    directory = preset(tmp_path, "# @package _global_\nname: run-${restart.failure_max}\n")

    assert compose(["experiment=mine", "restart.max_failures=4"], directory).name == "run-4"


def test_a_frozen_configuration_with_old_names_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = to_yaml(compose())
    for old, new in RENAMED.items():
        text = text.replace(f"  {new.rpartition('.')[2]}:", f"  {old.rpartition('.')[2]}:")
    text = text.replace("timeout_max: 100", "timeout_max: 41")
    (tmp_path / CONFIG_FILE).write_text(text, encoding="utf-8")

    with caplog.at_level(logging.WARNING):
        config = load_run_config(tmp_path)

    assert config.restart.max_timeouts == 41
    assert "`restart.timeout_max` is called `restart.max_timeouts` now." in caplog.text


def test_a_new_name_is_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        from_yaml(to_yaml(compose(["restart.max_failures=4"])))

    assert caplog.messages == []


def test_code_of_then_gets_the_names_of_then() -> None:
    then = {"restart": {"engine_max": 3, "window_s": 60.0}, "name": "x"}
    now = {"restart": {"max_engine_restarts": 5, "count_window_s": 60.0, "step_timeout_s": 4}, "name": "y"}

    assert with_names_of(now, then) == {
        "restart": {"engine_max": 5, "window_s": 60.0, "step_timeout_s": 4},
        "name": "y",
    }
