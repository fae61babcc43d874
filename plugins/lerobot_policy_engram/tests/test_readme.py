"""The program in the README runs as it is printed, on a smaller task."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_engram import load_policy

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.parametrize("kind", ["act"], indirect=True)
def test_the_programs_of_the_readme_run(
    plain: Any,
    dataset: Any,
    dataset_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    plain.save_pretrained(tmp_path / "outputs/act")
    for part in make_pre_post_processors(plain.config, dataset_stats=dataset().meta.stats):
        part.save_pretrained(tmp_path / "outputs/act")
    (tmp_path / "data").symlink_to(dataset_root)
    monkeypatch.chdir(tmp_path)
    for program in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(program.replace("1000", "2").replace("length=16", "length=3"), {})
    before = load_policy("outputs/act_with_memory").state_dict()
    after = load_policy("outputs/streamed").state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["engram.reading.weight"], after["engram.reading.weight"])
