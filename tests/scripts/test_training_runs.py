"""Runs of the training: checkpoints, ends at any moment, the processes that draw beside it."""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from models.cpu import CpuChoice
from scripts.benchmarks import dtype as bench_dtype
from scripts.paths import ROOT
from scripts.training import __main__ as train_embedded
from scripts.training import judge as judges
from scripts.training import measure_embedded
from scripts.training.clip import WithHeads, finished_clip, make_clip
from scripts.training.data import draw_scenes
from scripts.training.export import export
from scripts.training.pairs import CHUNK, Feed, Phase
from scripts.training.stages import start_from, unet_plan
from scripts.training.trainer import Plan, Run, load_checkpoint, save_checkpoint
from scripts.training.vae import finished_vae, make_vae
from server.cpus import Cpus

CPU = torch.device("cpu")
SHIPPED = ROOT / "models" / "embedded"
TINY = Phase("tiny", (((64, 64), 1.0),), CHUNK, CHUNK)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")


def run_of(folder: Path, steps: int, stop: int) -> torch.Tensor:
    """Train a line through fixed points, up to step `stop` of a plan of `steps`."""
    torch.manual_seed(4)
    model = torch.nn.Linear(3, 1)
    plan = Plan(steps, 1e-2, warm_up=2, ema=0.9)
    run = Run(folder, model, plan)

    def step(index: int) -> dict[str, torch.Tensor]:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(index))
        if run.step + 1 >= stop:
            object.__setattr__(plan, "minutes", 0.0)
        return {"loss": (model(x) - x.sum(dim=1, keepdim=True)).pow(2).mean()}

    run.train(step)
    assert run.step == stop
    return run.averaged_weights()["weight"].clone()


def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole", 12, 12)
    run_of(tmp_path / "parts", 12, 5)
    assert torch.equal(run_of(tmp_path / "parts", 12, 12), whole)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_saves_and_goes_on(
    tmp_path: Path, asked: signal.Signals
) -> None:
    model = torch.nn.Linear(2, 1)
    before = signal.getsignal(asked)
    run = Run(tmp_path, model, Plan(None, 1e-2, minutes=10, ema=0.9))

    def step(index: int) -> dict[str, torch.Tensor]:
        if index == 1:
            os.kill(os.getpid(), asked)
        return {"loss": model(torch.ones(1, 2)).pow(2).mean()}

    run.train(step)
    assert run.step == 2
    assert signal.getsignal(asked) is before
    again = Run(tmp_path, torch.nn.Linear(2, 1), Plan(None, 1e-2, minutes=10, ema=0.9))
    assert again.step == 2
    assert torch.equal(again.averages["weight"], run.averages["weight"])


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    plan = Plan(1000, 1e-3, warm_up=100)
    assert plan.rate(0) < plan.rate(50) < plan.rate(99)
    assert plan.rate(99) > plan.rate(500) > plan.rate(999) > 0
    assert plan.rate(1000) == 0
    timed = Plan(None, 1e-3, warm_up=100, minutes=30)
    assert timed.rate(500) == pytest.approx(1e-3)
    assert timed.rate(500, 15) == pytest.approx(5e-4)
    assert timed.rate(500, 31) == 0


def test_a_cards_checkpoints_are_read_without_one(
    tmp_path: Path, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, clip = make_vae(), WithHeads(make_clip(tokenizer))
    with monkeypatch.context() as patches:
        patches.setattr("torch.serialization.location_tag", lambda _: "cuda:0")
        run_of(tmp_path / "run", 12, 2)
        for name, model in (("vae", vae), ("clip", clip)):
            save_checkpoint(tmp_path / name, {"model": model.state_dict()})
    run_of(tmp_path / "run", 12, 4)
    text = finished_clip(tmp_path / "clip", tokenizer).text_projection.weight
    assert torch.equal(text, clip.clip.text_projection.weight)
    monkeypatch.setattr("scripts.training.vae.draw_scenes", lambda *_: draw_scenes(2, (64, 64), 7))
    kept = finished_vae(tmp_path / "vae", CPU).decoder.conv_in.weight
    assert torch.equal(kept, vae.decoder.conv_in.weight)


def test_a_row_is_the_mean_of_the_steps_since_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.training.trainer.SAVE_MINUTES", 0.0)
    for steps in (3, 8):  # the second goes on from the first, which ended before a row
        model = torch.nn.Linear(1, 1)
        run = Run(tmp_path, model, Plan(steps, 1e-3, log_every=4))
        run.train(
            lambda _, model=model: {"loss": 1 + 0 * model.bias.sum()},
            lambda step: {"psnr": 7 * step},
        )
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [(row["step"], row["loss"]) for row in rows] == [("4", "1.0"), ("8", "1.0")]
    assert all(None not in row for row in rows)  # every value has a name
    measured = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    assert measured == [{"step": "4", "psnr": "28"}, {"step": "8", "psnr": "56"}]


def test_a_start_from_what_ships_that_was_cut_off_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr("scripts.training.export.make_clip", cut_off)
        with pytest.raises(KeyboardInterrupt):
            start_from(SHIPPED, tmp_path)
    vae = load_checkpoint(tmp_path / "vae")
    save_checkpoint(tmp_path / "vae", {**vae, "step": 5})
    start_from(SHIPPED, tmp_path)
    assert load_checkpoint(tmp_path / "clip")["step"] == 0
    assert load_checkpoint(tmp_path / "vae")["step"] == 5  # what was trained meanwhile stays
    # From then on nothing is filled in: what is not there is not what ships.
    (tmp_path / "unet" / "checkpoint.pt").unlink()
    start_from(SHIPPED, tmp_path)
    assert not (tmp_path / "unet" / "checkpoint.pt").exists()


def test_a_checkpoint_cut_off_while_it_is_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(_: object, path: Path) -> None:
        path.write_bytes(b"PK")
        raise KeyboardInterrupt

    save_checkpoint(tmp_path, {"step": 1})
    monkeypatch.setattr("torch.save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {"step": 2})
    assert load_checkpoint(tmp_path)["step"] == 1


def test_all_goes_by_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run: list[argparse.Namespace] = []
    monkeypatch.setattr(train_embedded, "run_stage", lambda _, options: run.append(options))
    monkeypatch.setattr(sys, "argv", ["train_embedded", "all", "--steps", "9"])
    with pytest.raises(SystemExit):
        train_embedded.main()
    assert "all needs --minutes" in capsys.readouterr().err
    assert run == []
    for stage, steps in (("all", None), ("unet", 9)):
        arguments = ["train_embedded", stage, "--steps", "9", "--minutes", "3"]
        monkeypatch.setattr(sys, "argv", arguments)
        train_embedded.main()
        plan = unet_plan(run[-1])
        assert (plan.steps, plan.minutes) == (steps, 3)


@pytest.mark.parametrize(
    ("script", "next_call", "arguments"),
    [
        (train_embedded.main, (train_embedded, "run_stage"), ["export"]),
        (measure_embedded.main, (judges, "load_judge"), []),
        (bench_dtype.main, (bench_dtype, "compare"), []),
    ],
)
def test_a_script_runs_no_more_threads_than_it_has_cpus(
    script: Callable[[], None],
    next_call: tuple[object, str],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reached(Exception):
        pass

    def reached(*_: object) -> None:
        raise Reached

    before = torch.get_num_threads()
    monkeypatch.setattr("server.cpus.usable_cpus", lambda: Cpus(3, "a test"))
    monkeypatch.setattr(*next_call, reached)
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    torch.set_num_threads(7)  # as on a host of more CPUs than the container may use
    try:
        with pytest.raises(Reached):
            script()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_feed_encodes_in_what_the_cpu_is_fast_in(
    fast: bool, dtype: torch.dtype, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.device.choose_by_cpu", lambda _: CpuChoice(fast, "a test"))
    monkeypatch.setattr("scripts.training.pairs.DataLoader", lambda stream, **_: stream)
    monkeypatch.setattr("scripts.training.pairs.FILL", 1)
    encoded: list[torch.dtype] = []
    vae = make_vae().eval()
    vae.encoder.register_forward_pre_hook(lambda _, given: encoded.append(given[0].dtype))
    Feed(TINY, vae, tokenizer, CPU, seed=3).take(torch.Generator().manual_seed(0))
    assert encoded == [dtype]


@pytest.mark.slow("weights")
def test_one_command_trains_what_ships_on_and_may_be_ended_at_any_moment(tmp_path: Path) -> None:
    checkpoint = tmp_path / "unet" / "checkpoint.pt"
    command = [sys.executable, str(ROOT / "scripts" / "train_embedded"), "unet"]
    command += ["--phase", "small", "--folder", str(tmp_path), "--learning-rate", "1e-4"]
    with subprocess.Popen([*command, "--minutes", "30"], stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(2400):
                if (tmp_path / "unet" / "log.csv").exists() or process.poll() is not None:
                    break
                time.sleep(0.2)
            process.terminate()
            assert process.wait(240) == 0
        finally:
            process.kill()
    first = torch.load(checkpoint, weights_only=True)
    assert first["step"] >= 20
    shipped = load_file(ROOT / "models/embedded/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(first["start"][name], one.float()) for name, one in shipped.items())
    assert not torch.equal(first["model"]["conv_out.weight"], first["start"]["conv_out.weight"])
    subprocess.run([*command, "--minutes", "0.01"], check=True, stdout=subprocess.DEVNULL)
    second = torch.load(checkpoint, weights_only=True)
    assert second["step"] > first["step"]
    assert all(torch.isfinite(value).all() for value in second["averages"].values())
    for share in (0.0, 0.5):  # of the start, in what is exported
        export(tmp_path, tmp_path / "exported", share)
        made = load_file(tmp_path / "exported/unet/diffusion_pytorch_model.safetensors")
        mean = torch.lerp(
            second["averages"]["conv_in.weight"], second["start"]["conv_in.weight"], share
        )
        assert torch.allclose(made["conv_in.weight"].float(), mean, atol=1e-3)


@pytest.mark.slow("weights")
@pytest.mark.process
def test_a_feed_takes_in_new_pairs_as_it_trains(
    tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.training.pairs.FILL", 4)
    monkeypatch.setattr("scripts.training.pairs.CAPACITY", 2 * CHUNK)
    monkeypatch.setattr("scripts.training.pairs.REUSE", 1)
    phase = Phase("tiny", (((64, 64), 1.0),), CHUNK, 128)
    feed = Feed(phase, make_vae().eval(), tokenizer, CPU, seed=3)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(6):
        batch = feed.take(generator)
        assert batch.latents.shape == batch.earlier.shape == (CHUNK, 4, 8, 8)
        assert batch.ids.shape == (CHUNK, 77)
        assert not torch.equal(batch.latents, batch.earlier)
        seen |= {float(one.sum()) for one in batch.latents}
    assert len(seen) > 3 * CHUNK / 2  # more than a pool that never grows could give
    feed.close()


TRAINING = """
import sys, time
from pathlib import Path
import torch
from transformers import CLIPTokenizer
from scripts.training.pairs import CHUNK, Feed, Phase
from scripts.training.trainer import Plan, Run
from scripts.training.vae import make_vae

if __name__ == "__main__":
    folder, shipped = map(Path, sys.argv[1:])
    cpu, model = torch.device("cpu"), torch.nn.Linear(1, 1)
    tokenizer = CLIPTokenizer.from_pretrained(shipped / "tokenizer")
    phase = Phase("tiny", (((64, 64), 1.0),), CHUNK, CHUNK)
    feed, generator = Feed(phase, make_vae().eval(), tokenizer, cpu, 0), torch.Generator()

    def step(number):
        feed.take(generator)
        print("trains", flush=True)
        time.sleep(2)
        return {"loss": model(torch.ones(1, 1)).sum()}

    try:
        Run(folder, model, Plan(None, 1e-3)).train(step)
    finally:
        feed.close()
"""


@contextmanager
def training(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A training in the middle of its first step, in a process group of its own."""
    (folder / "training.py").write_text(TRAINING)
    command = [sys.executable, str(folder / "training.py"), str(folder), str(SHIPPED)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "trains\n"
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow("weights")
@pytest.mark.process
def test_what_draws_ends_with_a_training_that_is_killed(tmp_path: Path) -> None:
    with training(tmp_path) as process:
        process.kill()
        process.communicate(timeout=60)  # until nobody holds its output


@pytest.mark.slow("weights")
@pytest.mark.process
def test_a_signal_to_the_whole_group_loses_no_step(tmp_path: Path) -> None:
    with training(tmp_path) as process:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert load_checkpoint(tmp_path)["step"] == 1
