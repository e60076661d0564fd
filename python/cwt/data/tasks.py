"""Generated reasoning problems with a programmatic teacher that writes like a real one.

Four families of the field: arithmetic word problems, tracking shuffled objects, last letters, coin
flips. A fifth, the stock of a shop, has wording that the embedded student was not pretrained on.
Around the steps the teacher restates, announces and sums up. Every sentence carries its role, so
that a claim such as "the judge removes filler and keeps core steps" can be checked. A step is core
where the answer follows from it, and spare where nothing that comes later does: a swap that reaches
neither the person asked about nor anyone that a core step tells of, a coin not flipped, the check
of a sum.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cwt.data.example import Example
from cwt.errors import UserError

NAMES = ("Tom", "Ann", "Bob", "Eve", "Sam", "Joe", "Mia", "Leo", "Zoe", "Max")
ITEMS = ("apples", "pens", "coins", "books", "cards", "stamps")
COLOURS = ("red", "blue", "green", "pink", "black", "white")
WORDS = (
    "apple river stone cloud paper music garden window silver button candle forest dragon pencil "
    "rocket bottle basket camera summer winter orange lemon bread chair table lamp clock shirt "
    "frog goat duck horse wolf bear lion tiger eagle snail ocean beach hill valley bridge tower "
    "castle market school kitchen ladder hammer needle thread ribbon mirror pillow blanket spoon "
    "plate kettle teapot sugar pepper butter cheese honey walnut cherry melon grape peach plum"
).split()

CORE, SPARE, RESTATE, FILLER, ANSWER = "core", "spare", "restate", "filler", "answer"


@dataclass(frozen=True)
class Problem:
    """One question with its answer and the teacher's rationale, sentence by sentence."""

    task: str
    question: str
    sentences: tuple[str, ...]
    roles: tuple[str, ...]
    answer: str


class _Writer:
    """Collects sentences with their roles and knows the wording between the core steps."""

    def __init__(self, rng: random.Random, filler: float) -> None:
        self.rng, self.filler = rng, filler
        self.sentences: list[tuple[str, str]] = []

    def add(self, role: str, *variants: str) -> None:
        self.sentences.append((self.rng.choice(variants), role))

    def maybe(self, role: str, *variants: str, share: float = 1.0) -> None:
        if self.rng.random() < self.filler * share:
            self.add(role, *variants)

    def spare(self, index: int) -> None:
        """Says of a core step that nothing follows from it."""
        self.sentences[index] = (self.sentences[index][0], SPARE)

    def words(self) -> tuple[str, str, str]:
        pick = self.rng.choice
        verb = pick(("look at", "think about", "read", "consider", "go over", "study"))
        adjective = pick(("careful", "simple", "clear", "short", "useful", "basic"))
        return verb, adjective, pick(("story", "problem", "question", "puzzle", "task"))

    def intro(self) -> None:
        v, a, n = self.words()
        self.add(
            FILLER,
            f"Let us {v} this {a} {n} step by step.",
            f"First we will {v} the {n} in a {a} way.",
            f"To solve this {n} we {v} every {a} part of it.",
        )

    def transition(self) -> None:
        v, a, n = self.words()
        self.maybe(
            FILLER,
            f"Now we {v} the next {a} part of the {n}.",
            f"Next it is {a} to {v} what happens then.",
            f"Moving on, we {v} the {a} step that follows.",
        )

    def restate(self, event: str) -> None:
        n = self.words()[2]
        self.maybe(RESTATE, f"The {n} says that {event}.", f"We are told that {event}.")

    def summary(self) -> None:
        v, a, n = self.words()
        self.maybe(
            FILLER,
            f"We have now done every {a} step of the {n}.",
            f"So all the {a} parts of this {n} are done.",
            f"In summary, we did {v} the {n} in a {a} way.",
        )

    def problem(self, task: str, question: str, answer: str) -> Problem:
        self.summary()
        self.add(ANSWER, f"The answer is {answer}")
        texts, roles = zip(*self.sentences, strict=True)
        return Problem(task, question, texts, roles, answer)


def arithmetic(rng: random.Random, steps: int = 3, filler: float = 0.7) -> Problem:
    """Returns a word problem: a start value and `steps` additions or subtractions of 1..9."""
    out = _Writer(rng, filler)
    hero, *others = rng.sample(NAMES, steps + 1)
    item, value = rng.choice(ITEMS), rng.randint(5, 30)
    question = [f"{hero} has {value} {item}."]
    out.intro()
    out.add(RESTATE, f"At the start {hero} has {value} {item}.", f"{hero} begins with {value}.")
    for other in others:
        amount, gain = rng.randint(1, 9), rng.random() < 0.5
        if value - amount < 1:
            gain = True
        elif value + amount > 49:
            gain = False
        event = f"{other} gives {amount} more" if gain else f"{other} takes {amount} away"
        question.append(event + ".")
        out.transition()
        out.restate(event)
        after = value + amount if gain else value - amount
        out.add(CORE, f"With {other}, {value} {'+' if gain else '-'} {amount} = {after}.")
        value = after
        out.maybe(RESTATE, f"So {hero} has {value} {item} after this.", share=0.5)
    question.append(f"How many {item} does {hero} have?")
    return out.problem("arithmetic", " ".join(question), str(value))


def objects(
    rng: random.Random, steps: int = 3, filler: float = 0.7, people: int = 3, conclude: bool = True
) -> Problem:
    """Returns a tracking problem: `people` hold one ball each and swap `steps` times.

    With `conclude` the last core step says who has what in the end, in the words of the question.
    """
    out = _Writer(rng, filler)
    names, colours = rng.sample(NAMES, people), rng.sample(COLOURS, people)
    holds = dict(zip(names, colours, strict=True))

    question = [f"{name} has the {holds[name]} ball." for name in names]
    out.intro()
    start = ", ".join(f"{name} {holds[name]}" for name in names)
    out.add(RESTATE, f"At the start we have {start}.", f"We begin with {start}.")
    swaps: list[tuple[int, set[str]]] = []  # sentence, who
    for _ in range(steps):
        a, b = rng.sample(names, 2)
        event = f"{a} and {b} swap"
        question.append(event + ".")
        out.transition()
        out.restate(event)
        before = f"{b} {holds[b]} and {a} {holds[a]}"
        holds[a], holds[b] = holds[b], holds[a]
        after = f"{a} {holds[a]} and {b} {holds[b]}"
        swaps.append((len(out.sentences), {a, b}))
        out.add(CORE, f"With {a} and {b}, {before} become {after}.")
        c = rng.choice(names)
        out.maybe(RESTATE, f"So {c} has the {holds[c]} ball after this.", share=0.5)
    asked = rng.choice(names)
    question.append(f"Which ball does {asked} have?")
    told = {asked}  # later on
    for index, who in reversed(swaps):
        if who & told:
            told |= who
        else:
            out.spare(index)
    if conclude:
        out.add(CORE, f"In the end {asked} has the {holds[asked]} ball.")
    return out.problem("objects", " ".join(question), holds[asked])


def letters(rng: random.Random, steps: int = 3, filler: float = 0.2) -> Problem:
    """Returns a last-letters problem over `steps` words: the family with little to skip."""
    out = _Writer(rng, filler)
    words = rng.sample(WORDS, steps)
    question = f"Take the last letters of the words {', '.join(words)}."
    out.intro()
    for word in words:
        out.transition()
        out.restate(f"one word is {word}")
        out.add(CORE, f"The last letter of {word} is {word[-1]}.")
    return out.problem("letters", question, " ".join(word[-1] for word in words))


def coin(rng: random.Random, steps: int = 4, filler: float = 0.7) -> Problem:
    """Returns a coin-flip problem with `steps` people who flip the coin or do not."""
    out = _Writer(rng, filler)
    heads = rng.random() < 0.5
    side = {True: "heads", False: "tails"}
    question = [f"A coin is {side[heads]} up."]
    out.intro()
    out.add(RESTATE, f"At the start the coin is {side[heads]} up.", f"It begins {side[heads]} up.")
    for name in rng.sample(NAMES, steps):
        flips = rng.random() < 0.5
        event = f"{name} flips the coin" if flips else f"{name} does not flip the coin"
        question.append(event + ".")
        out.transition()
        out.restate(event)
        verb = "turns it from" if flips else "leaves it at"
        before, heads = side[heads], heads != flips
        to = f" to {side[heads]}" if flips else ""
        out.add(CORE if flips else SPARE, f"With {name}, {name} {verb} {before}{to}.")
    question.append("Is the coin heads up?")
    return out.problem("coin", " ".join(question), "yes" if heads else "no")


def stock(rng: random.Random, steps: int = 0, filler: float = 0.7) -> Problem:
    """Returns a stock problem: a shop's goods over `steps` deliveries and sales of 3..12.

    Without `steps` there are 2 to 4 of them. The teacher digresses, and checks some of its sums.
    """
    out = _Writer(rng, filler)
    steps = steps or rng.randint(2, 4)
    goods, value = rng.choice(ITEMS), rng.randint(15, 45)
    question = [f"A shop has {value} {goods}."]
    out.intro()
    out.add(RESTATE, f"At the start it has {value} {goods}.", f"It begins with {value}.")
    for _ in range(steps):
        amount, comes = rng.randint(3, 12), rng.random() < 0.5
        if value - amount < 1:
            comes = True
        elif value + amount > 60:
            comes = False
        event = f"it gets {amount} more" if comes else f"it sells {amount}"
        question.append(f"{event[0].upper()}{event[1:]}.")
        out.maybe(
            FILLER,
            f"A person may come back to look at the {goods}.",
            f"What the {goods} cost does not matter.",
            "The shop is a busy place.",
            share=0.6,
        )
        out.restate(event)
        after = value + amount if comes else value - amount
        out.add(CORE, f"Now the stock is {value} {'+' if comes else '-'} {amount} = {after}.")
        back = f"{after} {'-' if comes else '+'} {amount} = {value}"
        out.maybe(SPARE, f"Check: {back}.", f"To be sure, {back}.", share=0.6)
        value = after
    question.append(f"How many {goods} does it have?")
    return out.problem("stock", " ".join(question), str(value))


TASKS: dict[str, Callable[..., Problem]] = {
    "arithmetic": arithmetic,
    "objects": objects,
    "letters": letters,
    "coin": coin,
    "stock": stock,
}


def generate_examples(
    task: str, sizes: Sequence[int], seed: int, steps: int = 0
) -> list[list[Example]]:
    """Returns one list of examples per size; no question stands in two of them.

    Args:
        task: a key of TASKS.
        sizes: number of examples of each list.
        seed: of the generator.
        steps: reasoning steps of a problem, 0 for the task's own number.

    Raises:
        UserError: unknown task, or the task has fewer different questions.
    """
    options = {"steps": steps} if steps else {}
    try:
        problems = unique_problems(task, sum(sizes), seed, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
    examples = iter([as_example(p, f"{task}-{seed}-{i}") for i, p in enumerate(problems)])
    return [[next(examples) for _ in range(size)] for size in sizes]


def as_example(problem: Problem, identifier: str) -> Example:
    """Returns a generated problem as an example: one unit a sentence."""
    first, *rest = problem.sentences
    units = (first, *(" " + sentence for sentence in rest))
    return Example(identifier, problem.question, units, problem.answer, problem.roles)


_PATIENCE = 2000  # draws without one new question before the space counts as exhausted


def unique_problems(task: str, n: int, seed: int, **options: float) -> list[Problem]:
    """Returns n problems of a task with n different questions.

    Args:
        task: a key of TASKS.
        n: number of problems.
        seed: of the generator; the same seed gives the same problems, and a larger n adds to them.
        **options: `steps`, `filler` and whatever the generator of the task takes.

    Raises:
        ValueError: unknown task, or the task has fewer than n different questions.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
    problems: list[Problem] = []
    for problem in _distinct(TASKS[task], random.Random(f"{task}-{seed}"), options):
        if len(problems) == n:
            return problems
        problems.append(problem)
    if len(problems) == n:
        return problems
    raise ValueError(
        f"{task} with {options or 'default options'} has about {len(problems)} different "
        f"questions, {n} were asked for."
    )


def _distinct(
    generate: Callable[..., Problem], rng: random.Random, options: dict[str, float]
) -> Iterator[Problem]:
    seen: set[str] = set()
    misses = 0
    while misses < _PATIENCE:
        problem = generate(rng, **options)
        if problem.question in seen:
            misses += 1
            continue
        misses = 0
        seen.add(problem.question)
        yield problem
