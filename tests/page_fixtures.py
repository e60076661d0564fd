"""A report, views and a training log as a run writes them, made by hand: no student is trained."""

HOSTILE = '</script><script>document.title = "run"</script><img src="//x.test/a" onerror="run()">'

ROWS = {  # name: accuracy, its interval, tokens written, share skipped
    "answer-only": (0.4033, (0.3494, 0.4597), 5.0, None),
    "FTT": (0.94, (0.9072, 0.9617), 129.87, None),
    "FTT-small-batch": (0.96, (0.9314, 0.977), 127.94, None),
    "FTT-sentence-dropout": (0.03, (0.0159, 0.056), 70.64, None),
    "CWT": (0.9233, (0.8876, 0.9484), 131.15, None),
    "CWT-sentence-dropout": (0.0267, (0.0136, 0.0519), 71.56, None),
    "continued": (0.9533, (0.9232, 0.972), 128.27, None),
    "STT": (0.9733, (0.9483, 0.9864), 42.82, 0.6975),
    "literal-skips": (0.06, (0.0383, 0.0928), 24.88, 0.9021),
    "random-skips": (0.0933, (0.0654, 0.1316), 42.7, 0.6975),
    "oracle-skips": (0.9767, (0.9526, 0.9886), 43.52, 0.6977),
    "a row with <b>marks</b> and a name that is longer than a phone is wide": (
        *(0.9733, (0.9483, 0.9864), 42.82, None),
    ),
}


def row(name, accuracy, interval, tokens, skipped):
    """One row of the table, the fields of cwt.pipeline.results.Row."""
    costs = {
        "optimizer_steps": 1839,
        "loss_tokens": 400_078,
        "processed_tokens": 2_098_251,
        "train_seconds": 23.2,
    }
    return {
        "name": name,
        "seed": 0,
        "accuracy": accuracy,
        "accuracy_interval": list(interval),
        "generated_tokens": tokens,
        "tokens_per_second": 24_610.7,
        "seconds_per_answer": 0.0052,
        "latency_seconds": None if name == "answer-only" else 0.1554,
        "well_formed": 1.0,
        "truncated": 0.0033,
        "skipped_share": skipped,
        "removal_rates": {"core": 0.0, "filler": 0.999} if skipped else None,
        "skip_seconds": 15.0 if skipped else 0,
        "choice": "STT skips: STT-round-2." if name == "STT" else None,
        "student": f"students/{name}",
        **costs,
        **{f"total_{key}": value for key, value in costs.items()},
    }


def diagnosed(name):
    """What `cwt diagnose` found of a student."""
    figures = {"units": 40, "per_token": 1.52, "smoothing": 0.4, "smoothing_control": 0.3}
    sharp = {"top_eigenvalue": 41.0, "rise_under_noise": 0.021}
    return {
        "name": name,
        "by_role": {"core": figures, "filler": figures},
        "train": sharp,
        "test": sharp,
    }


def report(rows=ROWS):
    """What report.json holds, as far as the page reads it."""
    return {
        "config": {
            "student": "tiny",
            "seed": 0,
            "data": {"file": "", "task": "arithmetic"},
            "chunk": {"objective": "mean"},
            "train": {"parent": "FTT-small-batch"},
        },
        "data": {"dropped": {HOSTILE: 2}, "train": 600, "validation": 100, "test": 300},
        "chunking": {"ac": {"chunks": 6.0, "cost": 7.442}, "dp": {"chunks": 6.0, "cost": 5.872}},
        "methods": [row(name, *figures) for name, figures in rows.items()],
        "labels": {name: f"what {name} is, in one line as long as they are" for name in rows},
        "diagnostics": [diagnosed("FTT-small-batch"), diagnosed("CWT")],
    }


def decision(example, unit, text, skipped, **evidence):
    """One line of a decisions file, the fields of cwt.skipping.criterion.Decision."""
    found = {"flipped": [], "answer_rise": 0.01, "write_nll": None, "pass_nll": None}
    found |= {"score": None, "searched": True}
    return {"id": example, "unit": unit, "text": text, "skipped": skipped, **found, **evidence}


def flips(count):
    """Some tokens that change without a sentence."""
    return [
        {"token": f" t{i}", "unit": 4, "p_with": 0.9989, "p_without": 0.00018} for i in range(count)
    ]


def example(number, name):
    """One example: the sentence 1 was skipped, 2 had to stay for its tokens, 3 for its opening."""
    key = f"made-{number}"
    story = f"{name} has {number} books."
    texts = [
        "We look at every step.",
        story,
        f"With {name}, {number} + 1 = {number + 1}.",
        "So on.",
    ]
    texts.append(f"The answer is {number + 1}")
    roles = ["filler", "restate", "core", 'odd "role"]', "answer"]
    decisions = [
        None,
        decision(key, 1, texts[1], True),
        decision(key, 2, texts[2], False, flipped=flips(14)),
        decision(key, 3, texts[3], False, write_nll=0.5, pass_nll=2.25),
        None,
    ]
    if number % 2:  # nothing was left out of the odd ones
        decisions[1] = decision(key, 1, texts[1], False, answer_rise=3.25)
    units = [
        {
            "text": text,
            "role": role,
            "chunk": chunk,
            "tokens": 8,
            "nll": 8.0 * chunk,
            "kept": not (found and found["skipped"]),
            "decision": found,
        }
        for text, role, chunk, found in zip(texts, roles, (0, 0, 1, 1, 2), decisions, strict=True)
    ]
    return {"id": key, "question": f"{story} One more?", "answer": str(number + 1), "units": units}


def views():
    """What views.json holds: eight examples; the last one tries to get a script to run."""
    names = ["Zoe", "Max", "Tom", "Bob", "Eve", "Sam", "Ann"]
    examples = [example(i, name) for i, name in enumerate(names)]
    examples.append(example(7, HOSTILE))
    return {"losses_of": "FTT-small-batch", "rounds": ["STT-round-1"], "examples": examples}


def log(steps=180, chunks=6):
    """A training log: losses fall, the mean gradient is measured every fifth step."""
    lines = []
    for step in range(1, steps + 1):
        tokens = [20 + m if (step + m) % 4 else 0 for m in range(chunks)]
        lines.append(
            {
                "step": step,
                "loss": 1.0,
                "loss_tokens": 2200 * step,
                "processed_tokens": 2800 * step,
                "chunk_tokens": tokens,
                "chunk_nll": [t * (0.4 + 0.02 * m + 3.0 / step) for m, t in enumerate(tokens)],
                "chunk_grad_norm": [0.5 * t for t in tokens],
                **({} if step % 5 else {"chunk_mean_grad_norm": [0.2] * chunks}),
            }
        )
    return lines
