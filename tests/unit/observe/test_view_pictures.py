"""The pictures are made, hold something, and their absence is said in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.schema import Config, InferenceConfig, LayoutConfig
from launcher.layout import layout_to_json, plan
from launcher.observe.plots.pictures import MISSING, save_figure, write_pictures
from tests.unit import view_events
from tests.unit.view_events import T0

pytestmark = pytest.mark.slow

pytest.importorskip("matplotlib")

from launcher.observe.plots.layout import draw_layout  # noqa: E402


def size_and_colours(path: Path) -> tuple[int, int, int]:
    """Width and height in pixels, and how many different colours there are."""
    import numpy as np
    from matplotlib.image import imread

    pixels = (imread(path)[:, :, :3] * 255).astype(np.uint32)
    packed = pixels[:, :, 0] << 16 | pixels[:, :, 1] << 8 | pixels[:, :, 2]
    return packed.shape[1], packed.shape[0], len(np.unique(packed))


def test_all_three(tmp_path: Path) -> None:
    view_events.write(tmp_path, [*view_events.startup(), *view_events.steps(60), *view_events.ending(180)])
    (tmp_path / "layout.json").write_text(layout_to_json(plan(Config())))
    written = write_pictures(tmp_path)
    assert [path.name for path in written] == ["reward.png", "startup.png", "layout.png"]
    for path in written:
        width, height, colours = size_and_colours(path)
        assert width >= 900 and height >= 250 and colours > 20


def test_only_what_there_is_data_for(tmp_path: Path) -> None:
    assert write_pictures(tmp_path) == ()
    events = [event for event in view_events.startup() if event["time"] < T0 + 30]
    view_events.write(tmp_path, [*events, *view_events.engine_killed(30)])
    assert [path.name for path in write_pictures(tmp_path)] == ["startup.png"]


def test_a_trainer_that_reports_little(tmp_path: Path) -> None:
    step = {"time": T0, "event": "step", "step": 0, "reward": -0.5}
    view_events.write(tmp_path, [step, step | {"time": T0 + 1, "step": 1, "mismatch": 0.0, "mismatch_max": 0.0}])
    assert [path.name for path in write_pictures(tmp_path)] == ["reward.png"]


@pytest.mark.parametrize(
    ("layout", "tensor_parallel_size", "pipeline_parallel_size"),
    [
        (LayoutConfig(nodes=2, inference_nodes=1, device="cpu", gpus_per_node=1), 1, 1),
        (LayoutConfig(nodes=2, inference_nodes=0, colocate="share"), 2, 1),
        (LayoutConfig(nodes=6, inference_nodes=4), 8, 2),
        (LayoutConfig(nodes=64, inference_nodes=16), 4, 1),
        (LayoutConfig(nodes=4096, inference_nodes=1024), 1, 1),
    ],
)
def test_layouts(tmp_path: Path, layout: LayoutConfig, tensor_parallel_size: int, pipeline_parallel_size: int) -> None:
    shape = InferenceConfig(tensor_parallel_size=tensor_parallel_size, pipeline_parallel_size=pipeline_parallel_size)
    figure = draw_layout(plan(Config(layout=layout, inference=shape)), title="a run")
    path = save_figure(figure, tmp_path / "layout.png")
    width, height, colours = size_and_colours(path)
    assert 900 <= width <= 2000 and 200 <= height <= 1500 and colours > 20


def test_without_matplotlib_one_line_says_which_extra(tmp_path: Path) -> None:
    view_events.write(tmp_path, view_events.steps(3))
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from launcher.observe.plots.pictures import write_pictures\n"
        f"assert write_pictures(Path({str(tmp_path)!r})) == ()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [MISSING]


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    modules = ", ".join(
        f"launcher.{name}"
        for name in (
            "observe.terminal.follow",
            "observe.terminal.summary",
            "observe.plots.pictures",
            "events.reader",
        )
    )
    code = f"import sys, {modules}; print({{'rich', 'matplotlib', 'torch', 'vllm', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
