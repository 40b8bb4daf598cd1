"""Job scripts: what each template makes of a configuration, checked as text, by shellcheck and by running them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from launcher.common.errors import ConfigError
from launcher.common.paths import sbatch_templates_dir
from launcher.config import Config, compose
from launcher.layout import plan
from launcher.submit.job_array import submit_array
from launcher.submit.job_script import render, template_names, template_path
from launcher.submit.resources import slurm_config
from launcher.submit.run_dir import create
from launcher.submit.slurm import SbatchCluster
from launcher.submit.validate import check
from tests.unit.golden_scripts import GOLDEN, SCENARIOS, config_of, golden, script_of

pytestmark = pytest.mark.slow

ACCEPT = "look at the difference; if it is right: python -m tests.unit.golden_scripts"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenarios are made from the top of the checkout."""
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.delenv("PYTHONPATH", raising=False)


def text_of(config: Config, run_dir: Path = Path("/runs/a")) -> str:
    return render(SbatchCluster(config).script(run_dir), template_path(slurm_config(config)))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_golden(scenario: str) -> None:
    assert golden(script_of(scenario)) == (GOLDEN / f"{scenario}.sbatch").read_text(), ACCEPT


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_scenario_is_a_configuration_without_problems(scenario: str) -> None:
    check(config_of(scenario))


def test_every_template_has_a_scenario() -> None:
    assert {name.partition("-")[0] for name in SCENARIOS} >= set(template_names())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_shell_understands_it(scenario: str) -> None:
    assert subprocess.run(["bash", "-n"], input=script_of(scenario), text=True, check=False).returncode == 0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_shellcheck_has_nothing_to_say(scenario: str) -> None:
    if shutil.which("shellcheck") is None and not os.environ.get("CI"):
        pytest.skip("no program 'shellcheck'; .ci/system-packages installs it")
    found = subprocess.run(["shellcheck", "-"], input=script_of(scenario), capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", template_names())
def test_a_template_has_about_twenty_lines_of_shell(name: str) -> None:
    lines = [line.strip() for line in (sbatch_templates_dir() / f"{name}.sbatch.j2").read_text().splitlines()]
    assert len([line for line in lines if line and not line.startswith(("#", "{%"))]) <= 24


def test_a_template_of_the_users_own_may_extend_ours(tmp_path: Path) -> None:
    own = tmp_path / "mine.sbatch.j2"
    own.write_text('{% extends "plain.sbatch.j2" %}{% block setup %}\nmodule load cuda\n{% endblock %}')
    config = compose(["+cluster=slurm", f"cluster.template={own}"])
    check(config)
    lines = text_of(config).splitlines()
    assert "module load cuda" in lines
    assert "#SBATCH --nodes=2" in lines


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("#SBATCH --nodes={{ nodez }}", "'nodez' is undefined. HINT: a template knows title, components, "),
        ("{{ components[0].count }}", "has no attribute 'count'"),
        ("{% block x %}", "mine.j2, line 1: Unexpected end of template"),
        ('{% extends "nope.j2" %}', "there is no file nope.j2. HINT: the templates are array, container, "),
    ],
)
def test_a_wrong_template_is_one_message(tmp_path: Path, text: str, wanted: str) -> None:
    own = tmp_path / "mine.j2"
    own.write_text(text)
    with pytest.raises(ConfigError) as caught:
        text_of(compose(["+cluster=slurm", f"cluster.template={own}"]))
    (problem,) = caught.value.problems
    assert problem.startswith(f"`cluster.template` ({own}) cannot be filled in: ")
    assert wanted in problem


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["cluster.template=nope"], "`cluster.template` (nope) is neither a template of the launcher's (array, "),
        (["cluster.template=array"], "`cluster.template` (array) is for many runs at once"),
        (["cluster.template=plain", "cluster.trainer.partition=x"], "asks for all nodes in the same way"),
        (["cluster.trainer.partition=x", "layout.inference_nodes=0"], "`layout.inference_nodes` (0) lets every node"),
        (["cluster.inference.mem=much"], "`cluster.inference.mem` (much) is no amount"),
        (["cluster.inference.partition=' '"], "`cluster.inference.partition` (' ') is empty"),
        (["cluster.trainer.cpus_per_task=0"], "`cluster.trainer.cpus_per_task` (0)"),
        (["cluster.signal_s=0"], "`cluster.signal_s` (0)"),
        (["cluster.container_runtime=docker"], "`cluster.container_runtime` (docker) is not one of pyxis, apptainer"),
    ],
)
def test_settings_that_contradict_each_other(overrides: list[str], wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose(["+cluster=slurm", *overrides]))
    assert wanted in str(caught.value)


def test_a_path_with_blanks_and_quotes_stays_one_word(tmp_path: Path) -> None:
    run_dir = tmp_path / "it's here"
    text = text_of(compose(["+cluster=slurm"]), run_dir)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    (line,) = [line for line in text.splitlines() if line.startswith("RUN_DIR=")]
    shown = subprocess.run(["bash", "-c", f"{line}; echo $RUN_DIR"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"{run_dir}\n"


@pytest.mark.parametrize(
    ("srun", "code"),
    [
        ("exit 0", 0),
        ("exit 137", 137),
        # A node was lost, and the run went on.
        ("echo 0 > $LAUNCHER_EXIT_FILE; exit 137", 0),
        ("echo 5 > $LAUNCHER_EXIT_FILE; exit 137", 5),
        ("echo 4 > $LAUNCHER_EXIT_FILE; exit 0", 4),
        # A node that cannot be reached.
        ("echo 0 > $LAUNCHER_EXIT_FILE; exec sleep 60", 0),
    ],
)
def test_the_job_ends_as_node_0_says(tmp_path: Path, srun: str, code: int) -> None:
    # What the script does with srun's end is under test; jobs on a real SLURM show what srun does.
    (tmp_path / "srun").write_text(f"#!/bin/sh\n{srun}\n")
    (tmp_path / "srun").chmod(0o755)
    text = text_of(compose(["+cluster=slurm"]), tmp_path)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    assert subprocess.run(["bash"], input=text, text=True, env=environ, check=False).returncode == code


def test_4096_nodes_cost_no_more_than_4() -> None:
    config = compose(["+cluster=slurm", "layout=gpu", "layout.nodes=4096", "layout.inference_nodes=2048"])
    begin = time.process_time()
    text = text_of(config)
    assert time.process_time() - begin < 1
    assert "#SBATCH --nodes=4096" in text
    assert len(text) < 4000


@pytest.mark.parametrize(
    ("what", "overrides"), [("layout.nodes", ["layout.nodes=3"]), ("cluster", ["cluster.time=30"])]
)
def test_an_array_takes_only_runs_that_ask_for_the_same(tmp_path: Path, what: str, overrides: list[str]) -> None:
    run_dirs = []
    for words in ([], overrides):
        config = compose(["+cluster=slurm", f"output_dir={tmp_path}", "snapshot=false", *words])
        run_dirs.append(create(config, plan(config)))
    with pytest.raises(ConfigError, match=f"`{what}` of .* differs from that of "):
        submit_array(run_dirs)
    assert not list(tmp_path.glob(".array*"))
