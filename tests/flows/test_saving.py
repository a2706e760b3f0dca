"""A flow is written to one file and read again: every part, every number, no code."""

from __future__ import annotations

import copy
import math
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resflow_bench import flows, layers
from resflow_bench.architectures import ARCHITECTURES, linear_flow
from resflow_bench.flows import (
    ActNorm,
    DiagonalNormal,
    NormalMixture,
    ResidualBlock,
    ResidualFlow,
    saving,
)
from resflow_bench.layers import (
    Branch,
    Induced,
    LearnableOrder,
    Linear,
    LipSwish,
    Uncertified,
    mlp_branch,
)
from resflow_bench.logdet import Determinant


def induced_flow() -> ResidualFlow:
    """Two layers that share a learnable order, and one with orders 1 and infinity."""
    order = LearnableOrder(3.0)
    g = Branch(
        Linear(3, 5, 0.9, Induced(order, 2.0)),
        LipSwish(),
        Linear(5, 3, 0.9, Induced(2.0, order), bias=False),
        lipschitz=0.9,
    )
    h = Branch(Linear(3, 3, 0.5, Induced(math.inf, math.inf)), lipschitz=0.5)
    return ResidualFlow([ResidualBlock(g), ActNorm(3), ResidualBlock(h)], 3)


def shared_flow() -> ResidualFlow:
    """One block met twice."""
    block = ResidualBlock(mlp_branch(3, (4,), 0.8))
    return ResidualFlow([block, ActNorm(3), block], 3)


MADE = {
    **{name: make((1, 8, 8), 0.9) for name, make in ARCHITECTURES.items()},
    "linear": linear_flow("gaussian", 4, 0.7),
    "induced": induced_flow(),
    "shared": shared_flow(),
    "double": ResidualFlow.mlp(3, (8,), 2, 0.9).double(),
    "learnt base": ResidualFlow.mlp(3, (8,), 1, 0.9, base=DiagonalNormal(3)),
    "mixture": ResidualFlow.mlp(3, (8,), 1, 0.9, base=NormalMixture(3, 2)).double(),
    **{
        name: ResidualFlow.mlp(2, (6,), 1, 0.9, getattr(layers, name))
        for name in ("ELU", "Tanh", "Sine", "Softplus", "ReLU")
    },
}


@pytest.mark.parametrize("name", MADE)
def test_a_flow_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    flow = copy.deepcopy(MADE[name])
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    flow.update()
    flow.save(tmp_path / "flow.pt", {"dataset": "digits"})
    again = ResidualFlow.load(tmp_path / "flow.pt")
    dtype = next(iter(flow.state_dict().values())).dtype
    x = torch.rand(3, *flow.event, generator=torch.Generator().manual_seed(0)).to(dtype)
    exactly = Determinant()
    expected = flow.with_estimator(exactly).log_prob(x)
    assert torch.equal(again.with_estimator(exactly).log_prob(x), expected)
    state, old = again.state_dict(), flow.state_dict()
    assert state.keys() == old.keys()
    assert all(torch.equal(state[k], old[k]) and state[k].dtype == old[k].dtype for k in state)
    names = [n for n, _ in flow.named_parameters()]
    assert [n for n, _ in again.named_parameters()] == names, "shared parts are shared again"
    assert all(p.requires_grad for p in again.parameters())
    assert saving.read(tmp_path / "flow.pt").about == {"dataset": "digits"}
    again.update()  # it is trained on like any other
    assert torch.isfinite(again.log_prob(x, torch.Generator().manual_seed(1))).all()


def test_every_part_of_the_package_can_be_saved() -> None:
    public = [getattr(room, name) for room in (flows, layers) for name in room.__all__]
    modules = [p for p in public if isinstance(p, type) and issubclass(p, nn.Module)]
    missing = {m.__name__ for m in modules} - set(saving.PARTS)
    assert missing == {"ResidualFlow", "GivenBranch"}, "the flow itself, and a view"


def test_a_conditional_flow(tmp_path: Path) -> None:
    flow = ResidualFlow.mlp(2, (8,), 2, 0.9, context=3).with_estimator(Determinant())
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    flow.update()
    flow.save(tmp_path / "flow.pt")
    again = ResidualFlow.load(tmp_path / "flow.pt", Determinant())
    x, c = torch.randn(5, 2), torch.randn(5, 3)
    assert torch.equal(again.log_prob(x, context=c), flow.log_prob(x, context=c))


class Doubling(nn.Module):
    """z = a x."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), x.new_full((len(x),), x[0].numel() * math.log(self.factor))

    def inverse(self, z: Tensor) -> Tensor:
        return z / self.factor

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        return error / self.factor


def test_a_part_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, file = ResidualFlow([Doubling(3.0)], 2), tmp_path / "flow.pt"
    with pytest.raises(ValueError, match="Doubling is no part of this package"):
        flow.save(file)
    assert not file.exists()
    with monkeypatch.context() as here:
        here.setitem(saving.PARTS, "Doubling", Doubling)
        flow.save(file)
        assert ResidualFlow.load(file)(torch.ones(1, 2)).tolist() == [[3.0, 3.0]]
    with pytest.raises(ValueError, match="a part Doubling"):
        ResidualFlow.load(file)


def test_what_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "flow.pt"
    with pytest.raises(ValueError, match="no code, and Linear is no part"):
        ResidualFlow([ResidualBlock(Uncertified(nn.Linear(2, 2)))], 2).save(file)
    tied = ResidualFlow.mlp(2, (4,), 2, 0.9)
    first, second = (block.branch.stages[0] for block in tied.blocks)
    second.weight = first.weight
    with pytest.raises(ValueError, match="share a parameter"):
        tied.save(file)
    assert not file.exists()


class Harmful:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no whole file"),
        (b"not a file of torch", "no whole file"),
        (pickle.dumps(Harmful()), "no whole file"),
        ({"flow": torch.ones(2)}, "holds no flow of the format"),
        (Harmful(), "no whole file"),
    ],
)
def test_other_files_are_refused_and_not_run(content: object, why: str, tmp_path: Path) -> None:
    file = tmp_path / "flow.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=why):
        ResidualFlow.load(file)
    with pytest.raises(ValueError, match="No such file"):
        ResidualFlow.load(tmp_path / "none.pt")


def broken_files() -> dict[str, dict[str, object]]:
    """Files that torch reads, and that no flow was saved to."""
    flow = ResidualFlow.mlp(2, (4,), 1, 0.9)
    whole = saving.described(flow, {})
    good = {
        **{"format": saving.FORMAT, "architecture": whole.architecture},
        **{"state": whole.state, "about": {}},
    }
    branch = {"part": "Branch", "arguments": {"stages": "abc", "lipschitz": "0.9"}}
    block = {"part": "ResidualBlock", "arguments": {"branch": branch}}
    shapes = {
        **{name: {**good, name: None} for name in ("architecture", "state", "about")},
        "words": {**good, "state": {"a": "b"}},
        "numbers": {**good, "state": {1: torch.ones(2)}},
        "strings": {**good, "architecture": {"layers": [block], "event": [2]}},
        "same": {**good, "architecture": {"layers": [{"same": 99}], "event": [2]}},
        "no part": {**good, "architecture": {"layers": [{"arguments": {}}], "event": [2]}},
        "unknown": {**good, "architecture": {**whole.architecture, "colour": 3}},
        "list": {**good, "architecture": {"layers": [{"part": ["x"]}], "event": [2]}},
    }
    return {**shapes, "missing": {k: v for k, v in good.items() if k != "state"}}


@pytest.mark.parametrize("name", broken_files())
def test_a_file_written_by_hand_is_one_error(name: str, tmp_path: Path) -> None:
    file = tmp_path / "flow.pt"
    torch.save(broken_files()[name], file)
    with pytest.raises(ValueError, match=r"no whole file of a flow|do not fit"):
        ResidualFlow.load(file)


def test_notes_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    for notes in ({"a": MADE["double"]}, "moons"):
        with pytest.raises(ValueError, match="a dictionary of plain values"):
            MADE["double"].save(tmp_path / "flow.pt", notes)
    assert not list(tmp_path.iterdir())


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "flow.pt"
    MADE["mlp"].save(file)
    whole = file.read_bytes()
    for share in (0.1, 0.5, 0.99):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="no whole file"):
            ResidualFlow.load(file)


def test_damage_in_any_place_is_one_sentence_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Bytes of numbers are held to the checksum beside them; only padding may differ."""
    file = tmp_path_factory.mktemp("damaged") / "flow.pt"
    flow = ResidualFlow.mlp(3, (4,), 2, 0.9)
    flow.save(file)
    whole = file.read_bytes()
    junk = st.binary(max_size=4) | st.sampled_from([b"(((((", b"\x80\x02", b"\xff" * 8])
    place = st.tuples(st.integers(0, len(whole)), st.integers(0, 4), junk)

    @settings(
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")), derandomize=True, deadline=10_000
    )
    @given(st.lists(place, min_size=1, max_size=3))
    def check(changes: list[tuple[int, int, bytes]]) -> None:
        content = whole
        for start, n, new in changes:
            content = content[:start] + new + content[start + n :]
        file.write_bytes(content)
        try:
            found = ResidualFlow.load(file).state_dict()
        except ValueError as error:
            assert f"`{file}`" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            torch.testing.assert_close(found, flow.state_dict(), rtol=0, atol=0)

    check()


@pytest.mark.parametrize("value", [None, -1, 1.5, "x", {"same": 9}, {"part": 3}, math.nan])
def test_an_architecture_that_is_none_is_one_sentence(value: object, tmp_path: Path) -> None:
    file = tmp_path / "flow.pt"
    ResidualFlow.mlp(3, (4,), 2, 0.9).save(file)
    content = torch.load(file, weights_only=True)
    for name in ("layers", "event"):
        torch.save(content | {"architecture": content["architecture"] | {name: [value]}}, file)
        with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as error:
            ResidualFlow.load(file)
        assert f"`{file}`" in str(error.value)


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.pt"
    packed = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed as archive, archive.open("flow/data/0", "w") as member:
        for _ in range(80):
            member.write(bytes(2**24))
    with pytest.raises(ValueError, match=r"bomb\.pt` is refused: its .* the limit is 1,073"):
        ResidualFlow.load(file)
