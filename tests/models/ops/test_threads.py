"""Work in parallel threads gives the same results as a loop."""

import threading

import pytest
import torch

from loratune.models.ops.attention import packed_attention
from loratune.models.ops.threads import map_in_parallel


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_are_in_the_order_of_the_inputs(threads, count):
    assert map_in_parallel(lambda piece: piece * piece, range(count)) == [
        piece * piece for piece in range(count)
    ]


def test_every_thread_takes_a_piece(threads):
    together = threading.Barrier(threads, timeout=60)  # nobody gets past it before all have come

    def work(_) -> tuple[int, int]:
        together.wait()
        return threading.get_ident(), torch.get_num_threads()

    who, inside = zip(*map_in_parallel(work, range(threads)), strict=True)
    assert len(set(who)) == threads
    assert set(inside) == {1}


def test_exception_is_raised_after_all_threads_have_finished(threads):
    done = []

    def work(piece: int) -> None:
        if piece == 3:
            raise MemoryError("no room")
        done.append(piece)

    with pytest.raises(MemoryError, match="no room"):
        map_in_parallel(work, range(8))
    before = len(done)
    assert map_in_parallel(lambda piece: piece, range(8)) == list(range(8))
    assert len(done) == before


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_autograd_is_off_and_inference_mode_is_kept(threads, mode):
    weight = torch.ones(4, requires_grad=True)
    with mode():
        out = torch.empty(6, 4)

        def work(row: int) -> torch.Tensor:
            out[row] = weight * row
            return weight * 2

        results = map_in_parallel(work, range(6))
        assert torch.equal(out, torch.arange(6.0)[:, None].expand(6, 4))
        assert not any(result.requires_grad for result in [out, *results])
        assert all(result.is_inference() == torch.is_inference_mode_enabled() for result in results)


def test_attention_is_bitwise_equal_for_any_number_of_threads(threads):
    def value_and_gradients() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(460, heads, 16, generator=generator, requires_grad=True) for heads in (6, 2, 2)
        )
        attended = packed_attention([250, 3, 120, 87])(0, q, k, v)
        return [
            attended,
            *torch.autograd.grad(attended, (q, k, v), torch.randn(460, 6, 16, generator=generator)),
        ]

    several = value_and_gradients()
    torch.set_num_threads(1)
    alone = value_and_gradients()
    torch.set_num_threads(threads)
    assert all(map(torch.equal, several, alone))
