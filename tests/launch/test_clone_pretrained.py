"""Clones that see with a pretrained model, whose folder was moved after they had learnt."""

from pathlib import Path

import pytest

from engram.launch.main import main

KEY = "policy.vision.path"


def save_encoder(folder: Path) -> Path:
    hf = pytest.importorskip("transformers", reason="needs engram[vla]")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    config = hf.ViTConfig(image_size=32, patch_size=8, num_attention_heads=2, **sizes)
    hf.ViTModel(config).save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("engram: ") and error.count("\n") == 1
    return error


@pytest.mark.slow
def test_a_model_that_was_moved_is_named_anew(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, other = save_encoder(tmp_path / "old"), save_encoder(tmp_path / "other")
    pictures = [setting for setting in tiny if "objects" not in setting]
    out = tmp_path / "o"
    clone = ["clone", *pictures, "demonstrations.image=32", "vision=pretrained", "memory=gru"]
    clone += ["seeds=1", f"out={out}"]
    assert main([*clone, f"{KEY}={old}"]) == 0
    run = out / "remember_color" / "gru" / "seed0"
    new = old.rename(tmp_path / "new")
    asked = ["eval", f"out={run}", "episodes=1", "gaps=[1]"]
    film = ["film", f"run={run}", f"out={tmp_path / 'film.gif'}"]
    for arguments in (asked, film):
        error = refused(capsys, *arguments)
        assert str(old) in error and "where it is now says policy.vision.path" in error
        error = refused(capsys, *arguments, f"{KEY}={old}")
        assert error.startswith(f"engram: with {KEY}={str(old)!r}: path is {str(old)!r}; allowed: ")
        assert "another pretrained model" in refused(capsys, *arguments, f"{KEY}={other}")
        assert main([*arguments, f"{KEY}={new}"]) == 0
    (run / "evaluation.json").unlink()  # as if it had been stopped before
    assert main([*clone, f"{KEY}={new}", "resume=true"]) == 0
    assert (run / "evaluation.json").exists() and main(asked) == 0


@pytest.mark.slow
def test_a_model_is_named_in_vain_to_policies_that_see_with_none(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, film = study / "remember_color" / "gru" / "seed0", tmp_path / "film.gif"
    for arguments in (["eval", f"out={run}"], ["film", f"run={run}", f"out={film}"]):
        error = refused(capsys, *arguments, f"{KEY}=here")
        assert f"the policy in {run} sees with no pretrained model" in error
    assert not film.exists()
