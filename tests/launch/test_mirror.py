"""A second home for a run: what is lost here is fetched from there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engram.launch.main import main
from engram.launch.mirror import Mirror, MirrorError

QUICK = ["env=chain_bit", "env.length=6", "agent.rollout=16", "agent.chunk=8", "num_envs=8"]
QUICK += ["evaluation.episodes=16", "evaluation.num_envs=8", "policy.width=16", "device=cpu"]
TRAIN = ["train", *QUICK, "memory=gru", "seeds=1", "checkpoint_seconds=0"]


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def test_a_run_that_lost_its_folder_goes_on_from_the_mirror(tmp_path: Path) -> None:
    out, through = tmp_path / "r", tmp_path / "through"
    mirror = f"mirror=file://{tmp_path}/there"
    assert main([*TRAIN, f"out={out}", mirror, "budget=256"]) == 0
    there = tmp_path / "there/gru/seed0"
    assert {path.name for path in there.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "evaluation.json",
    }
    shutil.rmtree(out)
    assert main([*TRAIN, f"out={out}", mirror, "budget=512", "resume=true"]) == 0
    assert main([*TRAIN, f"out={through}", "budget=512"]) == 0
    assert metrics(out / "gru/seed0") == metrics(through / "gru/seed0")
    assert metrics(there) == metrics(out / "gru/seed0")


def test_a_mirrored_run_is_neither_overwritten_nor_continued_as_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mirror = f"out={tmp_path / 'r'}", f"mirror={tmp_path / 'there'}"
    assert main([*TRAIN, out, mirror, "budget=256"]) == 0
    shutil.rmtree(tmp_path / "r")
    kept = metrics(tmp_path / "there/gru/seed0")
    assert main([*TRAIN, out, mirror, "budget=512"]) == 2
    assert "already holds a run; allowed: resume=true" in capsys.readouterr().err
    assert main([*TRAIN, out, mirror, "budget=512", "agent.clip=0.5", "resume=true"]) == 2
    assert "resume: agent.clip is 0.5; allowed: as the run" in capsys.readouterr().err
    assert metrics(tmp_path / "there/gru/seed0") == kept


def test_a_folder_with_a_checkpoint_is_not_overwritten_from_the_mirror(tmp_path: Path) -> None:
    here, there = tmp_path / "gru/seed0", tmp_path / "there"
    (there / "gru/seed0").mkdir(parents=True)
    here.mkdir(parents=True)
    (there / "gru/seed0/checkpoint.safetensors").write_text("theirs")
    (here / "checkpoint.safetensors").write_text("mine")
    mirror = Mirror(str(there), here)
    mirror.fetch()
    assert (here / "checkpoint.safetensors").read_text() == "mine"
    (here / "checkpoint.safetensors").unlink()
    mirror.fetch()
    assert (here / "checkpoint.safetensors").read_text() == "theirs"
    assert [path.name for path in here.iterdir()] == ["checkpoint.safetensors"]


def test_any_file_system_will_do(tmp_path: Path) -> None:
    full, empty = tmp_path / "here/gru/seed0", tmp_path / "there/gru/seed0"
    full.mkdir(parents=True)
    empty.mkdir(parents=True)
    (full / "config.json").write_text("{}")
    (full / "checkpoint.safetensors").write_text("weights")
    assert not Mirror("memory://engram-test", full).occupied()
    Mirror("memory://engram-test", full).send()
    assert Mirror("memory://engram-test", full).occupied()
    Mirror("memory://engram-test/", empty).fetch()
    assert (empty / "checkpoint.safetensors").read_text() == "weights"


@pytest.mark.parametrize("address", ["nowhere://x", "file:///proc/engram"])
def test_an_address_that_cannot_be_used_is_named(address: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_text("weights")
    with pytest.raises(MirrorError, match=r"cannot be written to .*; allowed: an address") as told:
        Mirror(address, tmp_path).send()
    assert address in str(told.value) and "\n" not in str(told.value)


def test_without_an_address_nothing_is_sent(tmp_path: Path) -> None:
    mirror = Mirror(None, tmp_path)
    mirror.send()
    mirror.fetch()
    assert list(tmp_path.iterdir()) == []
