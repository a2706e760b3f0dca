"""The stand-in accelerator counts what it should, refuses what a GPU would, and leaves no trace."""

from __future__ import annotations

import copy
import inspect
import io
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from resflow_bench.speed import standin as module
from resflow_bench.speed.standin import Counts, standin, unsupported

pytestmark = pytest.mark.skipif(bool(unsupported()), reason=unsupported() or "-")


def counted(call) -> Counts:
    with standin() as counts:
        call()
    return counts


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device="sim")


@pytest.mark.parametrize(
    ("call", "launches"),
    [
        (lambda x: x + x, ["add"]),
        (lambda x: x.view(4).t()[1:].unsqueeze(0).expand(3, -1).detach(), []),
        (torch.empty_like, []),
        (lambda x: x.mul_(2).sub_(1), ["mul_", "sub_"]),
        (lambda x: torch._foreach_add([x, x, x], 1.0), ["_foreach_add"]),
        (lambda x: torch.full((3,), 2.0, device="sim"), ["full"]),
        (lambda x: torch.ones(3) + 1, []),  # the host's own
    ],
)
def test_a_launch_is_an_operation_that_is_no_view(call, launches) -> None:
    with standin():
        x = ones(2, 2)
        with standin() as counts:
            call(x)
    assert sorted(counts.launches.elements()) == launches
    assert counts.n_launches == len(launches)
    assert counts.n_waits == 0


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: float(x[0, 0]), "item"),
        (lambda x: bool((x > 0).all()), "item"),
        (lambda x: x.cpu(), "to"),
        (lambda x: x.tolist(), "to"),
        (lambda x: x.numpy(force=True), "to"),
        (lambda x: torch.ones(2).to("sim"), "to"),
        (lambda x: torch.tensor([1.0], device="sim"), "to"),
        (lambda x: x.new_tensor([1.0]), "to"),
        (lambda x: x.copy_(torch.ones(2, 2)), "copy_"),
        (lambda x: torch.ones(2, 2).copy_(x), "copy_"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x[torch.tensor([0])], "index"),  # which must first be copied to the device
        (lambda x: torch.linalg.inv(torch.eye(2, device="sim")), "_linalg_check_errors"),
        (torch.linalg.svdvals, "_linalg_svd"),
        (lambda x: x.to("sim", torch.float64), None),
        (lambda x: torch.ones(2, 2).to("sim", non_blocking=True), None),
        (lambda x: x.copy_(torch.ones(2, 2), non_blocking=True), None),
        (lambda x: x[torch.tensor(1)], None),  # a view at a number of the host
        (lambda x: x.masked_fill(x > 0, 2.0), None),
        (lambda x: x.__setitem__(x > 0, 2.0), None),
        (lambda x: torch.linalg.inv_ex(torch.eye(2, device="sim")), None),
        (lambda x: torch.where(x > 0, x, torch.tensor(0.0)), None),
    ],
)
def test_the_host_waits_where_it_needs_a_value(call, operation) -> None:
    with standin():
        x = ones(2, 2)
        with standin() as counts:
            call(x)
    operations = [line.partition("(")[2].rstrip(")") for line in counts.waits.elements()]
    assert operations == ([] if operation is None else [operation])


def planted(x: torch.Tensor) -> float:
    return x.sum().item()  # the planted wait


def test_a_planted_wait_is_found_with_its_line() -> None:
    lines, first = inspect.getsourcelines(planted)
    line = first + next(i for i, text in enumerate(lines) if "planted wait" in text)
    counts = counted(lambda: [planted(ones(2)), planted(ones(3)), ones(2).cpu()])
    (found, n), (_, once) = counts.waiting_lines
    assert found == f"test_standin.py:{line} (item)"
    assert (n, once, counts.n_waits) == (2, 1, 3)


def test_a_wait_in_a_backward_pass_is_found_too() -> None:
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.sum().item() + torch.tensor(0.0, device="sim")

    with standin() as counts:
        x = ones(2).requires_grad_()
        Reading.apply(x).sum().backward()
        assert x.grad is not None
        assert x.grad.cpu().tolist() == [2.0, 2.0]
    assert [line.partition(":")[0] for line in counts.waits] == ["test_standin.py"] * len(
        counts.waits
    )
    assert counts.n_waits == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x + torch.ones(2, 2),
        lambda x: torch.cat([x, torch.ones(2, 2)]),
        lambda x: torch.ones(2, 2).add_(x),
        lambda x: torch.ones(2, 2)[torch.zeros(1, dtype=torch.long, device="sim")],
        nn.Linear(2, 2),
    ],
)
def test_devices_do_not_mix(call) -> None:
    with (
        standin(),
        pytest.raises(RuntimeError, match=r"sim:0 and on cpu, in .*test_standin.py"),
    ):
        call(ones(2, 2))


def test_a_generator_draws_on_its_own_device_alone() -> None:
    with standin():
        sim, cpu = torch.Generator("sim").manual_seed(3), torch.Generator().manual_seed(3)
        assert isinstance(sim, torch.Generator)
        assert isinstance(cpu, torch.Generator)
        assert (sim.device.type, cpu.device.type) == ("sim", "cpu")
        drawn = torch.randn(5, generator=sim, device="sim")
        assert drawn.tolist() == torch.randn(5, generator=cpu).tolist()
        with pytest.raises(RuntimeError, match="generator on cpu for a tensor on sim"):
            torch.randn(5, generator=cpu, device="sim")
        with pytest.raises(RuntimeError, match="generator on sim for a tensor on cpu"):
            torch.randn(5, generator=sim)


def test_numpy_cannot_read_it() -> None:
    with standin(), pytest.raises(TypeError, match=r"\.cpu\(\)"):
        ones(2).numpy()


def test_devices_can_be_defaults() -> None:
    with standin():
        with torch.device("sim"):
            assert nn.Linear(2, 2).weight.device.type == "sim"
            assert torch.tensor([1.0]).device.type == "sim"
        torch.set_default_device("sim")
        try:
            assert torch.zeros(2).device.type == "sim"
        finally:
            torch.set_default_device(None)
        assert torch.zeros(2).device.type == "cpu"


def test_a_module_moves_there_and_back() -> None:
    linear = nn.Linear(3, 2)
    weight, before = linear.weight, linear.weight.detach().clone()
    with standin():
        linear.to("sim").double().float()
        assert linear.weight is weight  # an optimiser keeps its parameters
        twin = copy.deepcopy(linear)
        assert isinstance(twin.weight, nn.Parameter)
        assert twin.weight.device.type == "sim"
        twin.weight.data.zero_()
        for optimiser in (torch.optim.Adam(linear.parameters(), fused=True),
                          torch.optim.Adam(linear.parameters())):  # fmt: skip
            linear(ones(4, 3)).sum().backward()
            optimiser.step()
            with standin() as counts:
                optimiser.step()
            assert counts.n_waits == 0
            assert any(name.startswith(("_fused", "_foreach")) for name in counts.launches)
        linear.to("cpu")
    assert type(linear.weight) is nn.Parameter
    assert not torch.equal(linear.weight, before)


def test_tensors_are_saved_and_loaded() -> None:
    file = io.BytesIO()
    with standin():
        torch.save({"x": ones(2)}, file)
        file.seek(0)
        assert torch.load(file)["x"].device.type == "sim"
        file.seek(0)
        assert torch.load(file, map_location="cpu")["x"].device.type == "cpu"


def test_outside_of_a_context_it_is_of_no_use() -> None:
    with standin():
        x = ones(2)
    with pytest.raises(RuntimeError, match="inside `standin"):
        x + 1
    assert "1." in repr(x)


def test_nothing_is_left_behind() -> None:
    generator = torch.Generator
    with pytest.raises(ZeroDivisionError), standin():
        assert 1 / 0
    assert torch.Generator is generator
    assert not torch._C._only_lift_cpu_tensors()
    assert not torch.accelerator.is_available() or torch.cuda.is_available()
    assert torch.ones(2).sum().item() == 2.0


def test_a_taken_or_old_torch_says_why(monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
        assert "2.10" in unsupported()
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "npu")
    assert "`npu` has taken" in unsupported()
    with pytest.raises(RuntimeError, match="npu"), standin():
        pass


def test_a_real_accelerator_keeps_its_place() -> None:
    """In a process of its own, since here the stand-in may be registered."""
    lines = [
        "import torch",
        "from resflow_bench.speed.standin import unsupported",
        "torch.accelerator.is_available = lambda: True",
        "torch.accelerator.current_accelerator = lambda: torch.device('cuda')",
        "assert 'CUDA_VISIBLE_DEVICES=' in unsupported(), unsupported()",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_importing_it_registers_nothing() -> None:
    line = f"import torch, {module.__name__}; assert not hasattr(torch, 'sim')"
    subprocess.run([sys.executable, "-c", line], check=True)


def test_it_may_be_registered_after_a_backward_pass() -> None:
    lines = [
        "import torch",
        f"from {module.__name__} import standin",
        "torch.ones(2, requires_grad=True).sum().backward()",
        "with standin():",
        "    with torch.inference_mode(False):",  # which enables torch's threads again
        "        torch.ones(2, device='sim', requires_grad=True).sum().backward()",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_states_of_random_numbers_can_be_kept_and_restored_after_it() -> None:
    """As `torch.random.fork_rng` does, for every device that torch knows."""
    with standin():
        torch.ones(2, device="sim").sum()
    for outside in (True, False):
        with nullcontext() if outside else standin():
            before = torch.get_rng_state()
            with torch.random.fork_rng():
                torch.manual_seed(5)
                torch.rand(3)
            assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_waits_are_counted_in_every_mode(mode) -> None:
    """In inference mode torch leaves it to the device what an operation is made of."""
    calls = (
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        torch.argwhere,
        torch.linalg.svdvals,
        torch.linalg.inv,
        lambda x: torch.allclose(x, x),
        lambda x: torch.linalg.cholesky_ex(x, check_errors=True),
        lambda x: f"{x.sum():.3f}",
        str,
        lambda x: x[x > 0],
    )
    for number, call in enumerate(calls):
        with standin(), mode():
            x = torch.eye(2).to("sim", non_blocking=True)
            with standin() as counts:
                call(x)
        assert counts.n_waits >= 1, number


def test_contexts_may_end_in_any_order() -> None:
    """As those of several threads do; the last puts torch back."""
    before = torch.Generator, torch.autograd._engine_run_backward
    first, second = standin(), standin()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.Generator is not before[0]
    second.__exit__(None, None, None)
    assert (torch.Generator, torch.autograd._engine_run_backward) == before
