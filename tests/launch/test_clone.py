"""`engram clone`: what a study leaves, how it is continued, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engram.agents.imitation import Imitation
from engram.envs.manipulation.environment import make_task
from engram.kernels.errors import DataError, EngramError
from engram.launch.clone_config import compose_clone
from engram.launch.clone_run import _since, clone_job
from engram.launch.clone_saved import load_clone
from engram.launch.config import choices
from engram.launch.files import read_json
from engram.launch.main import main
from engram.launch.training import Job

STUDY = ["clone", "memory=[none,gru]", "seeds=1"]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if "second" not in name}


def same_lines(folder: Path) -> bool:
    """Whether the run and that of the study, which nobody stopped, measured the same."""
    whole = folder / "remember_color" / "gru" / "seed0"
    a, b = ([without_time(line) for line in lines(run)] for run in (folder / "run", whole))
    return a == b


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("engram: ") and error.count("\n") == 1
    return error


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """A study of its own, to be changed."""
    return Path(shutil.copytree(study, tmp_path / "s"))


def job(out: Path, tiny: list[str], *more: str, resume: bool = False) -> Job:
    """The run of the GRU in a study, on the demonstrations of that study."""
    folder = out / "demonstrations" / "remember_color"
    own = [*tiny, *more, "memory=gru", f"demonstrations.folder={folder}"]
    tree = compose_clone(own).trees["remember_color", "gru"]
    return Job("gru", 0, tree, tree["imitation"]["updates"], "cpu", out / "run", resume)


@pytest.mark.slow
def test_a_study_leaves_table_figure_and_report(study: Path) -> None:
    table = (study / "table.md").read_text()
    assert "gap 1: success / first choice" in table and "gap 3" in table
    assert "| remember_color | none | 0.33 |" in table and "| remember_color | gru |" in table
    assert (study / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = (study / "report.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page.replace("http-equiv", "")
    found = read_json(study / "results.json")
    assert [(row["memory"], row["gap"]) for row in found] == [
        ("none", 1), ("none", 3), ("gru", 1), ("gru", 3),
    ]  # fmt: skip
    assert all(row["episodes"] == 2 and row["updates"] == 4 for row in found)
    none, gru = found[0], found[2]
    assert none["memory_bytes"] == 0 < gru["memory_bytes"]
    assert gru["parameters"] - none["parameters"] == gru["memory_parameters"] > 0
    run = study / "remember_color" / "gru" / "seed0"
    assert [line["updates"] for line in lines(run)] == [2, 4]
    assert {"action", "cue", "success", "first_choice", "gradient_norm"} <= lines(run)[0].keys()
    assert list(run.glob("events.out.tfevents*"))
    facts = read_json(run / "evaluation.json")
    assert facts["gaps"].keys() == {"1", "3"} and facts["episodes"] == 3
    assert not [path for path in study.rglob("*") if path.name.startswith(".")]


@pytest.mark.slow
def test_the_policy_of_a_run_is_the_average_that_was_evaluated(study: Path) -> None:
    run = study / "remember_color" / "gru" / "seed0"
    (policy, vocabulary, updates, seconds), tree = load_clone(run, torch.device("cpu"))
    assert updates == 4 and seconds > 0
    assert not policy.training and policy.memory.read.out_features == tree["streams"]["width"]
    assert "color" in vocabulary.words or "colour" in vocabulary.words
    from safetensors.torch import load_file

    saved = load_file(run / "checkpoint.safetensors")
    name = "expert.action_in.weight"
    assert torch.equal(policy.state_dict()[name], saved[f"average.module.{name}"])
    assert not torch.equal(policy.state_dict()[name], saved[f"policy.{name}"])


@pytest.mark.slow
def test_an_interrupted_run_agrees_with_an_uninterrupted_one(
    copy: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def until(updates: int) -> Callable[[], bool]:
        """Stop after so many updates."""
        path = copy / "run" / "metrics.jsonl"
        return lambda: path.exists() and len(path.read_text().splitlines()) * 2 >= updates

    nothing: Any = lambda report: None  # noqa: E731
    assert clone_job(job(copy, tiny), report=nothing, stopping=until(2)) is None
    assert (copy / "run" / "checkpoint.safetensors").exists()
    assert not (copy / "run" / "evaluation.json").exists()
    iterate, made = Imitation.iterate, []
    monkeypatch.setattr(Imitation, "iterate", lambda self: made.append(1) or iterate(self))
    done = clone_job(job(copy, tiny, resume=True), report=nothing, stopping=lambda: False)
    assert done is not None and len(made) == 2  # of four: it did not begin anew
    whole = read_json(copy / "remember_color" / "gru" / "seed0" / "evaluation.json")
    assert without_time(done) == without_time(whole)
    assert same_lines(copy)
    # Once it is finished, there is nothing to do.
    again = clone_job(job(copy, tiny, resume=True), report=nothing, stopping=lambda: True)
    assert again == done


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2, 3, 4])
def test_a_run_that_was_stopped_anywhere_writes_the_lines_of_one_that_was_not(
    updates: int, copy: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was stopped in an evaluation, which is made again: here 2, and 4, the last."""
    iterate, made = Imitation.iterate, []
    monkeypatch.setattr(Imitation, "iterate", lambda self: made.append(1) or iterate(self))
    nothing: Any = lambda report: None  # noqa: E731
    stopping = lambda: len(made) >= updates  # noqa: E731
    assert clone_job(job(copy, tiny), report=nothing, stopping=stopping) is None
    assert len(lines(copy / "run")) == (updates - 1) // 2
    done = clone_job(job(copy, tiny, resume=True), report=nothing, stopping=lambda: False)
    assert done is not None and len(made) == 4
    assert same_lines(copy)
    events = EventAccumulator(str(copy / "run")).Reload()
    assert [event.step for event in events.Scalars("score")] == [2, 4]


@pytest.mark.slow
def test_a_run_that_was_killed_before_it_was_saved_writes_no_line_twice(
    copy: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    iterate, made = Imitation.iterate, []
    monkeypatch.setattr(Imitation, "iterate", lambda self: made.append(1) or iterate(self))
    nothing: Any = lambda report: None  # noqa: E731
    stopping = lambda: len(made) >= 2  # noqa: E731
    assert clone_job(job(copy, tiny), report=nothing, stopping=stopping) is None
    path = copy / "run" / "metrics.jsonl"
    with path.open("a") as file:  # as if the evaluation had ended and the process, too
        file.write(json.dumps({"updates": 2, "steps": 2, "score": -1.0}) + "\n")
    clone_job(job(copy, tiny, resume=True), report=nothing, stopping=lambda: False)
    assert same_lines(copy)


@pytest.mark.parametrize("seen", [3, [{}], [{"action": "a"}, 1], [{"action": 0.5}, 1.5]])
def test_a_damaged_record_of_what_was_reported_is_refused(seen: Any) -> None:
    with pytest.raises(DataError, match="since is"):
        _since({"since": seen}, Path("checkpoint"))
    assert _since({"since": [{"action": 0.5}, 2]}, Path("checkpoint")) == ({"action": 0.5}, 2)


@pytest.mark.slow
def test_a_finished_study_is_reported_again(copy: Path, tiny: list[str]) -> None:
    for name in ("table.md", "figure.png", "results.json"):
        (copy / name).rename(copy / f"old_{name}")
    # The study moved since: where its demonstrations lie is said in its runs.
    for run in copy.glob("remember_color/*/seed0"):
        facts = read_json(run / "config.json")
        folder = copy / "demonstrations" / "remember_color"
        facts["tree"]["demonstrations"]["folder"] = str(folder)
        (run / "config.json").write_text(json.dumps(facts))
    assert main([*STUDY, *tiny, f"out={copy}", "resume=true"]) == 0
    for name in ("table.md", "results.json"):
        assert (copy / name).read_text() == (copy / f"old_{name}").read_text()


@pytest.mark.slow
def test_a_damaged_evaluation_is_not_reported(
    copy: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for run in copy.glob("remember_color/*/seed0"):
        facts = read_json(run / "config.json")
        folder = copy / "demonstrations" / "remember_color"
        facts["tree"]["demonstrations"]["folder"] = str(folder)
        (run / "config.json").write_text(json.dumps(facts))
    (copy / "remember_color" / "gru" / "seed0" / "evaluation.json").write_text("{}")
    error = refused(capsys, *STUDY, *tiny, f"out={copy}", "resume=true").splitlines()[-1]
    assert "gru/seed0/evaluation.json is damaged: chance is None" in error


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_refused(
    study: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    out = f"out={study}"
    assert "resume=true" in refused(capsys, *STUDY, *tiny, out)
    other = refused(capsys, *STUDY, *tiny, "imitation.clip=0.5", out, "resume=true")
    assert "imitation.clip is 0.5" in other and other.strip().endswith("1.0")
    # Nothing was recorded or written before the refusal.
    more = refused(capsys, *STUDY, *tiny, "demonstrations.episodes=9", out, "resume=true")
    assert "demonstrations.episodes is 9" in more
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before


@pytest.mark.slow
def test_a_damaged_run_is_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy / "remember_color" / "gru" / "seed0"
    film = ["film", f"run={run}", f"out={tmp_path / 'a.gif'}"]
    whole = (run / "sight.json").read_text()
    for content in ("{", "[]", "{}", whole.replace('"format": 1', '"format": 7')):
        (run / "sight.json").write_text(content)
        assert "sight.json" in refused(capsys, *film)
    (run / "sight.json").write_text(whole)
    config = read_json(run / "config.json")
    without = {k: v for k, v in config["tree"].items() if k != "task"}
    for tree in ({}, without, {**config["tree"], "policy": {}}, {**config["tree"], "streams": []}):
        (run / "config.json").write_text(json.dumps({**config, "tree": tree}))
        assert "config.json is damaged" in refused(capsys, *film)
    (run / "config.json").write_text(json.dumps(config))
    path = run / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in refused(capsys, *film)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["task=remember_colour"], "did you mean remember_color"),
        (["memory=[none,bnak]"], "did you mean bank"),
        (["memory=[gru,gru]"], "different ones"),
        (["memory=[]"], "one name, or a list"),
        (["study=manipulations"], "did you mean manipulation"),
        (["size=bsae"], "did you mean base"),
        (["polcy.chunk=4"], "did you mean policy"),
        (["nonsense"], "key=value"),
        (["~evaluation.final=1"], "'~evaluation.final=1' takes a key away"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "clone", *arguments, f"out={tmp_path / 'o'}")
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting, said",
    [
        ("policy.execute=9", "execute is 9"),
        ("policy.chunk=0", "chunk"),
        ("policy.expert.heads=3", "heads is 3"),
        ("policy.guidance=0.5", "guidance is 0.5"),
        ("policy.perceptual=0", "1 or more"),
        ("imitation.learning_rate=0", "learning_rate"),
        ("imitation.updates=0", "updates"),
        ("batches.rows=0", "rows"),
        ("recollection.cue=-1", "recollection.cue is -1"),
        ("streams.width=x", "streams.width"),
        ("seeds=[0,0]", "seeds"),
        ("device=tpu", "device"),
        ("policy.expert.width=0", "width is 0; allowed: 1 or more"),
        ("+streams.foo=1", "unexpected keyword argument 'foo'"),
        ("+policy.expert.foo=1", "unexpected keyword argument 'foo'"),
        ("+batches.foo=1", "unexpected keyword argument 'foo'"),
        ("+recollection.foo=1", "key in recollection 'foo' does not exist"),
        ("+policy.chunks=4", "key in policy 'chunks' does not exist (did you mean chunk?)"),
        ("+evaluation.foo=1", "key in evaluation 'foo' does not exist"),
    ],
)
def test_wrong_values_are_refused_in_one_line(
    setting: str,
    said: str,
    study: Path,
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = f"demonstrations.folder={study / 'demonstrations' / 'remember_color'}"
    quick = [a for a in tiny if a.partition("=")[0] != setting.partition("=")[0]]
    out = tmp_path / "o"
    assert said in refused(
        capsys, "clone", *quick, "memory=gru", "seeds=1", folder, setting, f"out={out}"
    )
    assert not list(out.rglob("config.json"))  # the folder is free for the corrected command


@pytest.mark.slow
def test_demonstrations_that_do_not_fit_are_refused(
    study: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["clone", *tiny, "memory=none", "seeds=1", f"out={tmp_path / 'o'}"]
    folder = study / "demonstrations" / "remember_color"
    nowhere = refused(capsys, *arguments, f"demonstrations.folder={tmp_path / 'nowhere'}")
    assert "nowhere" in nowhere
    pictures = [a for a in arguments if a != "demonstrations.objects=true"]
    said = "demonstrations.objects is False; allowed: as the recording"
    assert said in refused(capsys, *pictures, f"demonstrations.folder={folder}")


@pytest.mark.slow
def test_every_study_names_tasks_and_different_memories() -> None:
    for name in choices("study"):
        settings = compose_clone([f"study={name}"])
        assert settings.trees.keys() == {(t, m) for t in settings.tasks for m in settings.memories}
        assert len(settings.seeds) >= 3
        trees = [settings.trees[settings.tasks[0], memory] for memory in settings.memories]
        different = [json.dumps(tree, sort_keys=True) for tree in trees]
        assert len(set(different)) == len(different)


HELD: dict[str, Callable[[dict[str, Any]], int]] = {
    "history": lambda layer: layer["window"],
    "hcam": lambda layer: layer["chunk"] * layer["capacity"],
    "memo": lambda layer: layer["segment"] * layer["capacity"],
}
"""Steps that the memories which forget the oldest step hold, given their layer."""


def test_no_memory_of_a_study_is_too_small_for_the_episodes_that_it_is_judged_by() -> None:
    settings = compose_clone(["study=manipulation", f"memory=[{','.join(HELD)}]"])
    for (name, memory), tree in settings.trees.items():
        task, longest = tree["task"], max(tree["task"]["gaps"])
        steps = make_task(task["name"], **{**task["settings"], "gap": [longest, longest]}).limit
        assert HELD[memory](tree["streams"]["memory"]["layer"]) >= steps, (name, memory, steps)


def test_keys_are_those_of_the_task_and_the_memory_that_were_chosen() -> None:
    arguments = ["task=shell_game", "memory=gru", "task.settings.swaps=[2,2]", "streams.width=64"]
    (tree,) = compose_clone(arguments).trees.values()
    assert tree["task"]["settings"]["swaps"] == [2, 2] and tree["streams"]["width"] == 64
    said = "streams.width.* allowed: keys that each of gru, none has; others belong in a variant"
    with pytest.raises(EngramError, match=said):
        compose_clone(["memory=[gru,none]", "streams.width=64"])
    for typo in ("sed=3", "streams.widht=64"):
        with pytest.raises(EngramError, match="did you mean") as error:
            compose_clone(["memory=[gru,history]", typo])
        assert "belong in a variant" not in str(error.value)


def test_runs_of_several_tasks_have_names_of_their_own() -> None:
    runs = [Job("gru", 0, {}, 1, "cpu", Path(), False, task) for task in ("put_back", "shell_game")]
    assert [run.name for run in runs] == ["put_back gru seed 0", "shell_game gru seed 0"]
    assert Job("gru", 0, {}, 1, "cpu", Path(), False).name == "gru seed 0"
