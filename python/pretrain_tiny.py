"""Makes the embedded student: a tokenizer and a small Llama pretrained on facts and single steps.

Like a real small language model, `tiny` starts from a base. The base knows number facts, last
letters, the wording of the tasks, how to look a name up in a list, and single steps; it never sees
two chained steps. Run

    python python/pretrain_tiny.py --out python/cwt/students/tiny

to make the files that ship with the package (20 to 25 minutes on one core).
"""

import argparse
import json
import math
import random
import re
import time
from functools import partial
from pathlib import Path

import torch
from cwt.data.tasks import COLOURS, CORE, NAMES, SPARE, TASKS, WORDS, Problem, objects
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
WARM_UP = 500  # steps on look-ups alone, after which they are there to build on
FAMILIES = ("arithmetic", "objects", "letters", "coin")  # stock is left for students to learn
BASE_TASKS = {name: TASKS[name] for name in FAMILIES} | {
    "objects": partial(objects, conclude=False)
}
MAX_VALUE = 49  # the largest number the arithmetic task writes


def number_facts() -> list[tuple[str, str]]:
    """Returns all (question, answer) pairs such as ("14 + 5 =", " 19")."""
    facts = []
    for a in range(1, MAX_VALUE + 1):
        for b in range(1, 10):
            if a + b <= MAX_VALUE:
                facts.append((f" {a} + {b} =", f" {a + b}"))
            if a - b >= 1:
                facts.append((f" {a} - {b} =", f" {a - b}"))
    return facts


def letter_facts() -> list[tuple[str, str]]:
    """Returns all (question, answer) pairs such as ("The last letter of apple is", " e")."""
    return [(f" The last letter of {word} is", f" {word[-1]}") for word in WORDS]


def first_step(problem: Problem) -> int:
    """Returns the index of the first sentence that is a step."""
    return next(i for i, role in enumerate(problem.roles) if role in (CORE, SPARE))


def any_step(rng: random.Random, problem: Problem) -> tuple[str, str]:
    """Returns (question, one step): a step of some event from some state, nothing chained.

    The events of the question are shuffled, so that the step is not always that of the first; and
    half of the time the state it starts from is not the question's but one that is stated, as in
    the middle of a solution.
    """
    end = first_step(problem) + 1
    sentences = list(problem.sentences[:end])
    question = re.findall(r"[^.?]+[.?]", problem.question)
    if problem.task == "letters":
        words = problem.question.split("words ")[1].rstrip(".").split(", ")
        rng.shuffle(words)
        return f"Take the last letters of the words {', '.join(words)}.", " ".join(sentences)
    events = [
        i for i, part in enumerate(question) if re.search(r" (gives|takes|swap|flips?)\b", part)
    ]
    for i, part in zip(events, rng.sample([question[i] for i in events], len(events)), strict=True):
        question[i] = part
    if rng.random() < 0.5:
        changed, stated = _other_state(rng, problem)
        question[: events[0]] = changed
        sentences[1] = stated
    return "".join(question), " ".join(sentences)


def _other_state(rng: random.Random, problem: Problem) -> tuple[list[str], str]:
    """Returns (opening of the question with another state, the true state of the step)."""
    if problem.task == "arithmetic":
        found = re.match(r"(\w+) has (\d+) (\w+)\.", problem.question)
        assert found is not None
        hero, value, item = found.groups()
        opening = f"{hero} has {rng.randint(1, MAX_VALUE)} {item}."
        return [opening], f"So {hero} has {value} {item} after this."
    if problem.task == "objects":
        holds = re.findall(r"(\w+) has the (\w+) ball", problem.question)
        names, colours = [list(t) for t in zip(*holds, strict=True)]
        state = ", ".join(f"{name} {colour}" for name, colour in holds)
        rng.shuffle(colours)
        pairs = zip(names, colours, strict=True)
        text = " ".join(f"{name} has the {colour} ball." for name, colour in pairs)
        return re.findall(r"[^.]+\.", text), f"After some swaps we have {state}."
    side = "heads" if "is heads up." in problem.question else "tails"
    return [f"A coin is {rng.choice(('heads', 'tails'))} up."], f"The coin is now {side} up."


def fact_text(rng: random.Random) -> tuple[str, str]:
    facts = number_facts() if rng.random() < 0.9 else letter_facts()
    return "", "".join(q + a + "." for q, a in rng.choices(facts, k=10))


def step_text(rng: random.Random) -> tuple[str, str]:
    """Returns a solved one-step problem, or one step of a longer one."""
    generate = BASE_TASKS[
        rng.choice(("arithmetic", "arithmetic", "objects", "objects", "letters", "coin"))
    ]
    filler = rng.random()
    if rng.random() < 0.4:
        problem = generate(rng, steps=1, filler=filler)
        return problem.question, " ".join(problem.sentences)
    return any_step(rng, generate(rng, steps=rng.randint(2, 5), filler=filler))


def lookup_text(rng: random.Random) -> tuple[str, str]:
    """Returns who holds which ball, changes of it that follow no rule, and who holds what then."""
    names, colours = rng.sample(NAMES, 3), rng.sample(COLOURS, 3)
    holds = dict(zip(names, colours, strict=True))
    if rng.random() < 0.5:
        known = " ".join(f"{name} has the {colour} ball." for name, colour in holds.items())
    else:
        known = f" We begin with {', '.join(f'{name} {holds[name]}' for name in names)}."
    for _ in range(rng.randint(0, 4)):
        a, b = rng.sample(names, 2)
        x, y, v, w = rng.choices(colours, k=4)
        if rng.random() < 0.5:
            known += f" With {a} and {b}, {b} {v} and {a} {w} become {a} {x} and {b} {y}."
            holds |= {a: x, b: y}
        else:
            known += f" So {a} has the {x} ball after this."
            holds[a] = x
    return known, "".join(f" {name} {holds[name]}." for name in rng.choices(names, k=4))


def lookup_facts(n: int = 200) -> list[tuple[str, str]]:
    """Returns (text up to a name, the colour that was last said of it) of n look-ups."""
    rng, facts = random.Random("check-lookups"), []
    for _ in range(n):
        known, rest = lookup_text(rng)
        name, colour = rest.rstrip(".").split(".")[0].split()
        facts.append((f"{known}\n {name}", f" {colour}"))
    return facts


def any_text(rng: random.Random) -> tuple[str, str]:
    """Returns one text of the base's training: facts a third of the time, else mostly a step."""
    kind = rng.random()
    return fact_text(rng) if kind < 0.35 else lookup_text(rng) if kind < 0.4 else step_text(rng)


def train_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE trained on the texts of all tasks; any text can be encoded."""
    rng = random.Random(seed)
    texts = [name for name in NAMES for _ in range(50)]
    for generate in BASE_TASKS.values():
        for _ in range(2000):
            problem = generate(rng, filler=1.0)
            texts += [problem.question, " " + " ".join(problem.sentences)]
    texts += [text for _ in range(2000) for text in step_text(rng)]
    texts += ["".join(q + a + "." for q, a in number_facts() + letter_facts())] * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlamaForCausalLM:
    """Returns an untrained Llama. Weights start at 1/sqrt(fan in): std 0.02 is too small here.

    Looking up what follows a name takes two layers that only pay together, and from random
    weights they had not formed after 6,000 steps. So attention starts as something that can copy:
    keys equal queries (alike tokens attend to each other), outputs are transposed values (what is
    attended to is added as it is), and one head of the first layer attends to the token before.
    Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            std = 0.05 if "embed" in name else parameter.shape[1] ** -0.5
            torch.nn.init.normal_(parameter, std=std)
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(0.1 * attention.v_proj.weight.T)
            layer.mlp.down_proj.weight.mul_(0.2 / math.sqrt(2 * layers))
        _attend_to_previous(model)
    return model


def _attend_to_previous(model: LlamaForCausalLM) -> None:
    """Makes the first head attend one token back, whatever the tokens are.

    Element 0 of every embedding becomes a constant, from which query and key take three of the
    head's rotary pairs; the key is turned ahead by one position.
    """
    attention, size = model.model.layers[0].self_attn, model.config.head_dim
    model.model.embed_tokens.weight[:, 0] = 0.2
    attention.q_proj.weight[:size] = attention.k_proj.weight[:size] = 0
    for pair, frequency in enumerate(model.model.rotary_emb.inv_freq[:3].tolist()):
        attention.q_proj.weight[pair, 0] = 1.6
        attention.k_proj.weight[pair, 0] = 1.6 * math.cos(frequency)
        attention.k_proj.weight[pair + size // 2, 0] = 1.6 * math.sin(frequency)


def batch(
    tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (input ids, labels), (B, T); the question of a text carries no loss."""
    rows = []
    for question, rest in texts:
        context = tokenizer.encode(question + "\n") if question else []
        target = [*tokenizer.encode(rest), tokenizer.eos_token_id]
        rows.append((context + target, [-100] * len(context) + target))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for i, (row, label) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.tensor(label)
    return ids, labels


@torch.no_grad()
def facts_known(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: list[tuple[str, str]]
) -> float:
    """Returns the share of facts whose answer is the arg-max after their question."""
    right = 0
    for question, answer in facts:
        (wanted,) = tokenizer.encode(answer)
        logits = model(input_ids=torch.tensor([tokenizer.encode(question)])).logits
        right += int(logits[0, -1].argmax()) == wanted
    return right / len(facts)


@torch.no_grad()
def steps_known(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: str, n: int = 200
) -> float:
    """Returns the share of one-step core sentences that the base writes without a wrong token."""
    rng, right = random.Random(f"check-{task}"), 0
    for _ in range(n):
        problem = BASE_TASKS[task](rng, steps=1, filler=1.0)
        core = first_step(problem)
        before = problem.question + "\n" + " ".join(problem.sentences[:core])
        context, target = tokenizer.encode(before), tokenizer.encode(" " + problem.sentences[core])
        logits = model(input_ids=torch.tensor([context + target])).logits[0]
        right += logits[len(context) : -1].argmax(-1).tolist() == target[1:]
    return right / n


def pretrain(
    out: Path, steps: int, width: int, layers: int, lr: float, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Trains the base, writes it to `out`, and returns what it knows."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = train_tokenizer(768, seed)
    model = new_model(tokenizer, width, layers)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 200) * max(0.02, 1 - s / steps)
    )
    start, mean = time.perf_counter(), 0.0
    for step in range(steps):
        draw = lookup_text if step < WARM_UP else any_text
        ids, labels = batch(tokenizer, [draw(rng) for _ in range(32)])
        logits = model(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 500 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step + 1}/{steps} loss {mean:.3f} {seconds:.0f} s", flush=True)
    model.eval()
    known = {
        "number_facts": facts_known(model, tokenizer, number_facts()),
        "letter_facts": facts_known(model, tokenizer, letter_facts()),
        "lookups": facts_known(model, tokenizer, lookup_facts()),
        **{f"step_{task}": steps_known(model, tokenizer, task) for task in FAMILIES},
    }
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {"seconds": round(time.perf_counter() - start), "steps": steps, "seed": seed, **known}
    (out / "base.json").write_text(json.dumps(record, indent=1) + "\n")
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the base to")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = pretrain(
        options.out, options.steps, options.width, options.layers, options.lr, options.seed
    )
    print(json.dumps(known))
    if min(known.values()) <= 0.95:
        raise SystemExit("the base knows too little (more than 95 % of each is wanted): not usable")


if __name__ == "__main__":
    main()
