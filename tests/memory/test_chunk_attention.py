"""HCAM's attention: against the original, against plain numpy, and by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engram.kernels.errors import InvalidValueError
from engram.memory.sequence import chunk_attention
from engram.memory.sequence.attention import sinusoid
from engram.memory.sequence.chunk_attention import ChunkAttention, gather_chunks, read_chunks

SMALL = Path(__file__).parent / "golden" / "hcam_small.json"
LAYERS = {
    "query": "query",
    "key": "key",
    "within_query": "within_mem_attn/query",
    "within_value": "within_mem_attn/value",
    "linear": "within_mem_attn/linear",
}


def reference_output(case: dict[str, Any]) -> np.ndarray:
    """The published attention in plain numpy, one query and one chunk at a time.

    Unlike the module it keeps the bias of the keys inside a chunk, projects keys and values as
    the equations say, and adds the position code itself. y = x w + b.
    """
    x, contents, keys = case["queries"], case["contents"], case["keys"]

    def layer(name: str, value: np.ndarray) -> np.ndarray:
        return value @ case[f"param/{name}/w"] + case.get(f"param/{name}/b", 0.0)

    chunk, dim = contents.shape[2:]
    if case["position_encoding"]:
        code = np.zeros((chunk, dim))
        for row in range(chunk):
            for i in range(dim // 2):
                angle = (chunk - 1 - row) / 10_000 ** (2 * i / dim)
                code[row, i], code[row, dim // 2 + i] = math.sin(angle), math.cos(angle)
        contents = contents + code
    heads = case["num_heads"]
    size = case["param/query/w"].shape[1]
    output = np.zeros((*x.shape[:2], size))
    for b, q in np.ndindex(*x.shape[:2]):
        scores = layer("key", keys[b]) @ layer("query", x[b, q]) / math.sqrt(size)
        if case["use_mask"]:
            scores = np.where(case["mask"][b, q], scores, -1e6)
        best = np.argsort(-scores, kind="stable")[: case["k"]]
        relevance = np.exp(scores[best] - scores[best].max())
        relevance /= relevance.sum()
        query = layer("within_mem_attn/query", x[b, q]).reshape(heads, -1)
        for i, share in zip(best, relevance, strict=True):
            k = layer("within_mem_attn/key", contents[b, i]).reshape(chunk, heads, -1)
            v = layer("within_mem_attn/value", contents[b, i]).reshape(chunk, heads, -1)
            logits = np.einsum("hd,chd->hc", query, k) / math.sqrt(size // heads)
            weight = np.exp(logits - logits.max(1, keepdims=True))
            weight /= weight.sum(1, keepdims=True)
            read = np.einsum("hc,chd->hd", weight, v).reshape(-1)
            output[b, q] += share * layer("within_mem_attn/linear", read)
    return output


def reference_gradient(case: dict[str, Any], step: float = 1e-5) -> np.ndarray:
    """d sum(sin(output)) / d queries by central differences."""
    gradient = np.zeros_like(case["queries"])
    for index in np.ndindex(*gradient.shape):
        ends = []
        for sign in (1, -1):
            queries = case["queries"].copy()
            queries[index] += sign * step
            ends.append(np.sin(reference_output({**case, "queries": queries})).sum())
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def small_case() -> dict[str, Any]:
    """A case small enough to be committed; every query sees two chunks or more."""
    random = np.random.default_rng(0)
    queries, size, slots, chunk, dim = (2, 2, 3), 4, 4, 3, 6
    shapes = {"query": queries[2], "key": dim}
    shapes |= {f"within_mem_attn/{n}": dim for n in ("key", "value")}
    shapes |= {"within_mem_attn/query": queries[2], "within_mem_attn/linear": size}
    contents = random.normal(size=(2, slots, chunk, dim))
    case: dict[str, Any] = {"queries": random.normal(size=queries), "contents": contents}
    case |= {"keys": contents.mean(2), "mask": np.ones((2, 2, slots), bool)}
    case["mask"][:, 0, 2:] = False
    for name, width in shapes.items():
        case[f"param/{name}/w"] = random.normal(size=(width, size))
        if "/" in name:
            case[f"param/{name}/b"] = random.normal(size=size)
    return case | {"use_mask": True, "k": 2, "num_heads": 2, "position_encoding": True}


def write_small() -> None:
    """Write the committed case anew: `python tests/memory/test_chunk_attention.py`."""
    case = small_case()
    case["output"] = reference_output(case)
    case["grad_queries_of_sum_sin"] = reference_gradient(case)
    rows = []
    for name, value in case.items():
        if isinstance(value, np.ndarray):
            value = value.tolist() if value.dtype == bool else value.round(12).tolist()
        rows.append(f"  {json.dumps(name)}: {json.dumps(value)}")
    SMALL.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def load(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        raw = json.loads(path.read_text())
        return {k: np.array(v) if isinstance(v, list) else v for k, v in raw.items()}
    with np.load(path, allow_pickle=False) as raw:
        return {name: raw[name] if raw[name].ndim else raw[name].item() for name in raw.files}


def module(case: dict[str, Any], dtype: torch.dtype) -> ChunkAttention:
    d_query, d_memory = case["queries"].shape[2], case["contents"].shape[3]
    attention = ChunkAttention(
        d_query,
        d_memory,
        case["param/query/w"].shape[1],
        chunk=case["contents"].shape[2],
        top_k=case["k"],
        heads=case["num_heads"],
    ).to(dtype)
    weights = {"within_key.weight": case["param/within_mem_attn/key/w"].T}
    for ours, theirs in LAYERS.items():
        weights[f"{ours}.weight"] = case[f"param/{theirs}/w"].T
        if f"param/{theirs}/b" in case:
            weights[f"{ours}.bias"] = case[f"param/{theirs}/b"]
    attention.load_state_dict({k: torch.tensor(v, dtype=dtype) for k, v in weights.items()})
    return attention


def attend(case: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of sum(sin(output)) with respect to the queries."""
    attention = module(case, dtype)
    queries, contents, keys = (
        torch.tensor(case[name], dtype=dtype) for name in ("queries", "contents", "keys")
    )
    if case["position_encoding"]:
        dim = contents.shape[3]
        newest_first = torch.arange(contents.shape[2] - 1, -1, -1)
        contents = contents + sinusoid(newest_first, dim).to(dtype)
    visible = torch.tensor(case["mask"]) | (not case["use_mask"])
    y = attention.attend(queries.requires_grad_(), contents, keys, visible)
    y.sin().sum().backward()
    assert queries.grad is not None
    return y.detach(), queries.grad


@pytest.mark.parametrize("name", ["hcam_a", "hcam_b", "hcam_c"])
def test_equals_the_original_attention(golden: Path, name: str) -> None:
    case = load(golden / f"{name}.npz")
    y, gradient = attend(case, torch.float32)
    np.testing.assert_allclose(y, case["output"], atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(gradient, case["grad_queries_of_sum_sin"], atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("name", ["hcam_a", "hcam_b", "hcam_c"])
def test_the_numpy_reference_equals_the_original_too(golden: Path, name: str) -> None:
    case = load(golden / f"{name}.npz")
    np.testing.assert_allclose(reference_output(case), case["output"], atol=2e-5, rtol=2e-5)


def test_equals_the_committed_case() -> None:
    case = load(SMALL)
    y, gradient = attend(case, torch.float64)
    np.testing.assert_allclose(y, case["output"], atol=1e-9)
    np.testing.assert_allclose(gradient, case["grad_queries_of_sum_sin"], atol=1e-7)


def test_the_committed_case_is_what_the_numpy_reference_gives() -> None:
    case, made = load(SMALL), small_case()
    assert set(case) == {*made, "output", "grad_queries_of_sum_sin"}
    np.testing.assert_allclose(case["contents"], made["contents"], atol=1e-11)
    np.testing.assert_allclose(case["output"], reference_output(case), atol=1e-9)


def by_hand() -> ChunkAttention:
    """d_query 1, D 2, d_out 1: the first feature of a step is its key, the second its value."""
    attention = ChunkAttention(1, 2, 1, chunk=2, top_k=2).double()
    weights = {
        "query.weight": [[1.0]],
        "key.weight": [[1.0, 0.0]],
        "within_query.weight": [[1.0]],
        "within_query.bias": [0.0],
        "within_key.weight": [[1.0, 0.0]],
        "within_value.weight": [[0.0, 1.0]],
        "within_value.bias": [0.0],
        "linear.weight": [[2.0]],
        "linear.bias": [1.0],
    }
    attention.load_state_dict({k: torch.tensor(v).double() for k, v in weights.items()})
    return attention


LN3 = math.log(3)
CONTENTS = torch.tensor([[[[0, 2], [LN3, 4]], [[0, 10], [0, 14]]]], dtype=torch.float64)
KEYS = torch.tensor([[[0, 0], [LN3, 0]]], dtype=torch.float64)
X = torch.ones(1, 1, 1, dtype=torch.float64)


def test_two_chunks_worked_out_by_hand() -> None:
    # Scores 1·0 and 1·ln 3: relevance 1/4 and 3/4.
    # Chunk 0: logits 0 and ln 3, weights 1/4 and 3/4: 2/4 + 4·3/4 = 3.5.
    # Chunk 1: logits 0 and 0: (10 + 14) / 2 = 12.
    # y = 2 · (3.5/4 + 12·3/4) + 1 = 2 · 9.875 + 1.
    visible = torch.ones(1, 1, 2, dtype=torch.bool)
    y = by_hand().attend(X, CONTENTS, KEYS, visible)
    assert y.item() == pytest.approx(20.75, abs=1e-12)


def test_one_visible_chunk_has_all_the_relevance() -> None:
    visible = torch.tensor([[[True, False]]])
    y = by_hand().attend(X, CONTENTS, KEYS, visible)
    assert y.item() == pytest.approx(2 * 3.5 + 1, abs=1e-12)


def test_without_a_visible_chunk_the_output_and_its_gradients_are_exactly_zero() -> None:
    attention = by_hand()
    x = X.clone().requires_grad_()
    for queries in (1, 3):  # read at once, and in blocks
        none = torch.zeros(1, queries, 2, dtype=torch.bool)
        y = attention.attend(x.expand(1, queries, 1), CONTENTS, KEYS, none)
        assert not y.any()
        y.sum().backward()
    assert x.grad is not None and not x.grad.any()


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_the_k_best_are_kept_and_the_softmax_runs_over_them_only(k: int) -> None:
    attention = ChunkAttention(4, 4, 4, chunk=2, top_k=k).double()
    x, keys = torch.randn(3, 6, 4).double(), torch.randn(3, 5, 4).double()
    visible = torch.ones(3, 6, 5, dtype=torch.bool)
    index, relevance = attention.choose(x, keys, visible)
    scores = attention.query(x) @ attention.key(keys).mT / 2.0  # √d = 2
    kept = min(k, 5)  # no more chunks than there are
    order = scores.argsort(-1, descending=True)[..., :kept]
    assert torch.equal(index, order)
    torch.testing.assert_close(relevance, scores.gather(-1, order).softmax(-1))


def test_an_age_is_addressable() -> None:
    attention = ChunkAttention(1, 2, 1, chunk=2, top_k=1, ages=3).double()
    with torch.no_grad():
        attention.query.weight.fill_(1.0)
        attention.key.weight.zero_()  # content says nothing
        assert attention.age is not None
        attention.age.copy_(torch.tensor([[0.0], [0.0], [5.0]]))  # two chunks ago
    keys = torch.zeros(1, 3, 2, dtype=torch.float64)
    age = torch.tensor([[[1, 2, 0], [0, 1, 2]]])
    seen = torch.ones(1, 2, 3, dtype=torch.bool)
    index, _ = attention.choose(torch.ones(1, 2, 1).double(), keys, seen, age)
    assert index[0, :, 0].tolist() == [1, 2]


def test_the_position_code_is_newest_first_all_sines_then_all_cosines() -> None:
    code = ChunkAttention(2, 4, 2, chunk=3, top_k=1).position
    # Frequencies 1 and 1e4^(−2/4) = 0.01; the newest step is position 0.
    rows = [
        [math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in (2.0, 1.0, 0.0)
    ]
    torch.testing.assert_close(code, torch.tensor(rows))
    assert code[2].tolist() == [0.0, 0.0, 1.0, 1.0]


def plain_read(q: Tensor, relevance: Tensor, index: Tensor, contents: Tensor) -> Tensor:
    chosen = gather_chunks(contents, index, relevance > 0)
    return read_chunks(q, relevance, chosen)


@pytest.mark.parametrize("block", [1, 64, 2**19])
def test_the_blockwise_read_has_the_gradient_of_plain_autograd(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_attention, "BLOCK", block)
    q = torch.randn(2, 5, 2, 4, dtype=torch.float64, requires_grad=True)
    relevance = torch.rand(2, 5, 2, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 3, (2, 5, 2))
    contents = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    blockwise = chunk_attention._BlockwiseRead.apply
    torch.testing.assert_close(
        blockwise(q, relevance, index, contents), plain_read(q, relevance, index, contents)
    )
    assert torch.autograd.gradcheck(lambda *args: blockwise(*args, index, contents), (q, relevance))


def test_no_more_than_the_chosen_chunks_is_ever_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, queries, slots, k, block = 2, 64, 50, 3, 16
    gathered = []

    plain = chunk_attention._gather_flat

    def counting(contents: Tensor, index: Tensor) -> Tensor:
        gathered.append(index.numel())
        return plain(contents, index)

    monkeypatch.setattr(chunk_attention, "_gather_flat", counting)
    monkeypatch.setattr(chunk_attention, "BLOCK", block * batch * k * 2 * 4)
    attention = ChunkAttention(4, 4, 4, chunk=2, top_k=k)
    contents = torch.randn(batch, slots, 2, 4)
    visible = torch.ones(batch, queries, slots, dtype=torch.bool)
    x = torch.randn(batch, queries, 4)
    attention.attend(x, contents, contents.mean(2), visible).sum().backward()
    # Once forwards, once backwards; never more than a block's chosen chunks at a time.
    assert sum(gathered) == 2 * batch * queries * k
    assert max(gathered) == block * batch * k


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads is 3; allowed: divisors of d_out = 4"),
        ({"heads": 0}, "heads is 0"),
        ({"d_memory": 3}, "d_memory is 3; allowed: even numbers"),
        ({"chunk": 0}, "chunk is 0; allowed: 1 or more"),
        ({"top_k": 0}, "top_k is 0; allowed: 1 or more"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, int], message: str) -> None:
    good = {"d_query": 4, "d_memory": 4, "d_out": 4, "chunk": 2, "top_k": 1, "heads": 2}
    with pytest.raises(InvalidValueError, match=message):
        ChunkAttention(**{**good, **settings})


if __name__ == "__main__":
    write_small()
