import pytest
import torch
from app_fixtures import examples, tiny
from cwt.evaluate import evaluate, generate, wilson_interval


def greedy(model, encoder, prompt, n):
    """One prompt, no padding, no cache."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == encoder.eos:
            break
    return ids[len(prompt) :]


def test_batched_generation_equals_one_by_one_without_a_cache():
    model, encoder = tiny()
    model.eval()
    prompts = [encoder.prompt(e.question) for e in [*examples(3), *examples(3, "letters")]]
    assert len({len(p) for p in prompts}) > 1
    together = generate(model, encoder, prompts, 30)
    assert together == [greedy(model, encoder, p, 30) for p in prompts]


def test_scores_count_what_was_written():
    model, encoder = tiny()
    some = examples(7, "letters")
    score, rows = evaluate(model, encoder, some, max_new_tokens=12, batch_size=3)
    assert [r.id for r in rows] == [e.id for e in some]
    assert score.questions == 7
    assert score.generated_tokens == pytest.approx(sum(r.tokens for r in rows) / 7)
    assert score.accuracy == sum(r.answer == r.wanted for r in rows) / 7
    assert score.truncated == sum(r.tokens == 12 and r.truncated for r in rows) / 7 > 0
    assert not any(r.well_formed and r.truncated for r in rows)
    low, high = score.accuracy_interval
    assert low <= score.accuracy <= high


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (300, 300, 0.9873571, 1.0)],
)
def test_wilson_interval_against_published_values(right, n, low, high):
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=1e-6)
