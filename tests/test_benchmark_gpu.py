"""The script for a GPU, at toy size on a CPU: that it runs, goes on, and tells what failed."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import labels, measuring, rows, steps, training
from benchmarks.gpu_parts.measuring import Context, Figures
from segcore.data.batches import Batch


def context(out: Path, seconds: float = 600) -> Context:
    return Context(True, time.monotonic() + seconds, None, None, out)


def test_a_part_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--toy", "--out", str(tmp_path), "--parts", "matrix_rate"]
    assert gpu.main(arguments) == 0
    told = json.loads((tmp_path / "matrix_rate.json").read_text())
    assert told["toy"]
    assert told["figures"]["bf16_tflops"] > 0
    assert told["machine"]["torch"]
    (tmp_path / "matrix_rate.json").write_text(json.dumps(told | {"seconds": "kept"}))
    capsys.readouterr()
    assert gpu.main(arguments) == 0
    assert "| matrix_rate | kept | no bar | toy |" in capsys.readouterr().out


def test_what_would_not_fit_is_left_for_another_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--toy", "--out", str(tmp_path), "--parts", "compile", "--seconds", "20"]) == 0
    assert not [*tmp_path.iterdir()]
    assert "| compile | | | not measured |" in capsys.readouterr().out


def test_a_part_that_fails_says_why_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = ["--toy", "--inside", "--out", str(tmp_path), "--parts", "matrix_rate"]

    def fails(context: Context) -> Figures:
        raise RuntimeError("CUDA error: out of luck")

    monkeypatch.setattr(training, "matrix", fails)
    assert gpu.main(inside) == 0
    told = json.loads((tmp_path / "matrix_rate.json").read_text())
    assert told["error"] == "RuntimeError: CUDA error: out of luck"
    assert "in fails" in told["where"]
    assert not gpu._is_good(told, toy=True)
    assert gpu.main(["--toy", "--out", str(tmp_path), "--parts", "matrix_rate"]) == 0
    assert "error" not in json.loads((tmp_path / "matrix_rate.json").read_text())


def test_what_is_known_of_a_part_that_is_ended_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(command: list[str], limit: float) -> None:
        options = gpu._options([*command[3:]])
        gpu._context(options, 0.0).keep({"deeplab": {"ms_a_step": 1.0}})

    monkeypatch.setattr(rows, "finished", ended)
    assert gpu.main(["--toy", "--out", str(tmp_path), "--parts", "compile"]) == 1
    told = json.loads((tmp_path / "compile.json").read_text())
    assert told["figures"] == {"deeplab": {"ms_a_step": 1.0}}
    assert told["error"] == "ended after 240 s"


def test_a_missed_bar_is_told_by_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value, code in ((0.5, 0), (0.4, 1)):
        bars = {"share": measuring.bar(value, at_least=0.45)}
        told = {"complete": True, "figures": {}, "bars": bars, "seconds": 3.0}
        (tmp_path / "train_vgg.json").write_text(json.dumps(told))
        assert gpu.main(["--out", str(tmp_path), "--parts", "train_vgg"]) == code
    out = capsys.readouterr().out
    assert "| train_vgg | 3.0 | share 0.5 (>= 0.45) | met |" in out
    assert "| train_vgg | 3.0 | share 0.4 (>= 0.45) | missed |" in out


@pytest.mark.parametrize(("value", "met"), [(1.2, True), (1.3, True), (1.31, False), (float("nan"), False)])
def test_a_bar_from_above(value: float, met: bool) -> None:
    assert measuring.bar(value, at_most=1.3)["met"] is met


def test_the_boundary_loss_is_a_part_of_its_step(tmp_path: Path) -> None:
    figures = labels.boundary_crf(context(tmp_path))["figures"]
    assert figures["share"] == pytest.approx(figures["ms_boundary"] / figures["ms_a_step"])
    assert figures["cells"] == 9


def test_flops_are_those_of_the_design() -> None:
    """VGG-16 LargeFOV at 321 pixels: 305 GFLOP a training image by hand, without the gradient of the pixels."""
    settings = steps.settings(toy=False)
    with torch.device("meta"):
        system = steps.built(settings, "deeplab").eval()
        images, tags = torch.zeros(1, 3, 321, 321), torch.zeros(1, 20)
        labels = torch.zeros(1, 321, 321, dtype=torch.int64)
    batch = Batch(("one",), images, tags, labels, torch.zeros(1, dtype=torch.bool))

    def step() -> None:
        torch.stack([term.total for term in system.losses(batch).values()]).sum().backward()

    assert measuring.flops(step) / 1e9 == pytest.approx(305, rel=0.01)


def test_a_command_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    assert rows.finished([sys.executable, "-c", parent], 1.0) is None
    assert time.monotonic() - begin < 2.5
    time.sleep(3)
    assert not mark.exists()


def test_rows_are_of_the_profiles(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in rows.FILES.values():
        (weights / file).touch()
    asked = SimpleNamespace(out=tmp_path, voc=tmp_path / "voc", weights=weights, data=None, toy=False)
    wanted = gpu._context(asked, time.monotonic() + 600)  # type: ignore[arg-type]
    for trunk, system in rows.ROWS:
        given = rows.write_params(wanted, trunk)
        assert given["split"]["strong"] == {"kind": "per_class", "images": 5}
        start = given["systems"][system]["start"].partition("/")
        backbone = start[2] if start[0] == "backbones" else given["classifiers"][start[2]]["backbone"]
        assert given["backbones"][backbone]["weights"] == str(weights / rows.FILES[trunk])
        assert given["backbones"][backbone]["name"] == {"vgg": "vgg16"}.get(trunk, trunk)
        names = [stage.name for stage in rows._stages(wanted, trunk, system, given)]
        assert names[-2:] == ["train_segmenter", "evaluate"]
