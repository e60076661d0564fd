"""Every public argument of chunk_loss and linear_chunk_loss under the compiler, under autocast, and
split over processes. docs/arguments.md is the table of what covers which argument elsewhere."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from chunk_loss_cases import close, make

from cwt_ext import chunk_loss, linear_chunk_loss

ROOT = Path(__file__).resolve().parents[1]
ROWS, VOCAB, WIDTH = 24, 61, 16
ACTIVE = torch.tensor([0.5, 0.0, 2.0])
WEIGHTS = torch.linspace(0, 2, ROWS)

OPTIONS = {
    "active": {"active": ACTIVE},
    "token_weight": {"token_weight": WEIGHTS},
    "reduction": {"reduction": "chunk_mean"},
    "reduction=sum": {"reduction": "sum"},
    "reduction=none": {"reduction": "none"},
    "normalizer": {"normalizer": 7.0},
    "normalizer, a tensor": {"normalizer": torch.tensor(7.0)},
    "ignore_index": {"ignore_index": 3},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-2},
    "softcap": {"softcap": 4.0},
    "num_chunks": {"num_chunks": 5},
    "stats": {"stats": "all", "active": ACTIVE},
    "stats=False": {"stats": False},
    "validate": {"validate": False},
}
OF_LOGITS = {"mean_grad_norm": {"mean_grad_norm": True}, "inplace": {"inplace": True}}
OF_LOGITS["grad_buffer"] = {"grad_buffer": torch.empty(ROWS, VOCAB)}
OF_HIDDEN = {
    "bias": {"bias": torch.linspace(-1, 1, VOCAB)},
    "hidden_stats": {"hidden_stats": True},
    "block_rows": {"block_rows": 5},
    "block_bytes": {"block_bytes": 4 * VOCAB * 7},
    "max_rows": {"max_rows": ROWS},
}
CASES = [(chunk_loss, name, o) for name, o in (OPTIONS | OF_LOGITS).items()]
CASES += [(linear_chunk_loss, name, o) for name, o in (OPTIONS | OF_HIDDEN).items()]
IDS = [f"{function.__name__}-{name}" for function, name, _ in CASES]
every_argument = pytest.mark.parametrize(("function", "name", "options"), CASES, ids=IDS)


def inputs(kind=torch.float32):
    """Hidden states and head; labels with ignored ones, ids with rows of no chunk."""
    g = torch.Generator().manual_seed(0)
    _, labels, ids = make(ROWS, VOCAB)
    hidden = torch.randn(ROWS, WIDTH, generator=g).to(kind).requires_grad_()
    head = (torch.randn(VOCAB, WIDTH, generator=g) * 0.5).to(kind).requires_grad_()
    return hidden, head, labels, ids


def loss_of(function, hidden, head, labels, ids, options):
    options = dict(options)
    if "active" not in options:
        options.setdefault("num_chunks", 3)
    if "ignore_index" in options:
        labels = torch.where(labels == -100, options["ignore_index"], labels)
    if function is linear_chunk_loss:
        return linear_chunk_loss(hidden, head, labels, ids, **options)
    logits = hidden @ head.T
    if "grad_buffer" in options:
        options["grad_buffer"] = torch.empty_like(logits, requires_grad=False)
    return chunk_loss(logits, labels, ids, **options)


def flat(out):
    """Returns the tensors of a result, in a list."""
    parts = [out.loss, *(out.stats or ()), *(out.rows or ()), *(getattr(out, "hidden", None) or ())]
    return [x for x in parts if x is not None]


def test_every_argument_is_tested():
    for function in (chunk_loss, linear_chunk_loss):
        given = {name for f, _, options in CASES if f is function for name in options}
        positional = {"logits", "hidden", "weight", "labels", "chunk_ids"}
        assert set(inspect.signature(function).parameters) == given | (
            positional & set(inspect.signature(function).parameters)
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@every_argument
def test_compiled_equals_eager(function, name, options):
    hidden, head, labels, ids = inputs()

    def run(hidden, head):
        return loss_of(function, hidden, head, labels, ids, options)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(hidden, head)
    eager = run(hidden, head)
    for a, b in zip(flat(compiled), flat(eager), strict=True):
        close(a, b, 1e-6, 1e-7)
    got = torch.autograd.grad(compiled.loss.sum(), (hidden, head))
    for a, b in zip(got, torch.autograd.grad(eager.loss.sum(), (hidden, head)), strict=True):
        close(a, b, 1e-5, 1e-6)


@every_argument
def test_autocast_equals_the_call_in_bfloat16(function, name, options):
    hidden, head, labels, ids = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss_of(function, hidden, head, labels, ids, options)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, head)]
    bias = {"bias": options["bias"].bfloat16()} if "bias" in options else {}
    want = loss_of(function, *low, labels, ids, options | bias)
    for a, b in zip(flat(got), flat(want), strict=True):
        close(a, b, 1e-6, 1e-7)
    grads = torch.autograd.grad(got.loss.sum(), (hidden, head))
    for a, b in zip(grads, torch.autograd.grad(want.loss.sum(), low), strict=True):
        assert a.dtype == torch.float32
        close(a, b, 2.0**-7, 2.0**-7 * b.abs().max().item())


@every_argument
def test_two_halves_add_up_to_the_whole(function, name, options):
    """As two processes would: each a half of the rows, and one normalizer for both."""
    if options.get("reduction") == "chunk_mean":
        pytest.skip("a chunk's own mean needs all its rows: cwt_ext.integrations reduces its sums")
    hidden, head, labels, ids = inputs()
    options = {"reduction": "sum", "normalizer": 9.0} | options
    whole = loss_of(function, hidden, head, labels, ids, options)
    want = torch.autograd.grad(whole.loss.sum(), (hidden, head))
    total, grads = 0.0, [torch.zeros_like(hidden), torch.zeros_like(head)]
    for half in (slice(0, ROWS // 2), slice(ROWS // 2, ROWS)):
        own = dict(options)
        if "token_weight" in own:
            own["token_weight"] = own["token_weight"][half]
        part = loss_of(function, hidden[half], head, labels[half], ids[half], own).loss.sum()
        for sum_, grad in zip(grads, torch.autograd.grad(part, (hidden, head)), strict=True):
            sum_ += grad
        total = total + part.detach()
    close(total, whole.loss.sum(), 1e-5)
    for a, b in zip(grads, want, strict=True):
        close(a, b, 1e-4, 1e-6)


def test_the_table_names_tests_that_exist():
    page = (ROOT / "docs/arguments.md").read_text()
    named = re.findall(r"`(test_\w+)::(test_\w+)`", page)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), (file, test)
    for function in (chunk_loss, linear_chunk_loss):
        for name in inspect.signature(function).parameters:
            assert f"| `{name}`" in page, name
