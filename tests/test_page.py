"""report.html: its numbers and its text, and in a real browser its layout, colours and controls."""

import dataclasses
import html
import itertools
import math
import os
import random
import re
import shutil

import page_fixtures as made
import pytest
from cwt.pipeline.results import Row
from cwt.report.examples import UnitView, from_rows
from cwt.report.labels import LINE, Box, place_labels, spread
from cwt.report.page import write_page
from cwt.report.plot import scatter, ticks, training_curves
from cwt.report.table import COMPARED, headline
from cwt.skipping.criterion import Decision

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (390, 768, 1300, 1600)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, made.report(), made.views(), "FTT-small-batch", made.log())
    return path


def names(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_the_data_of_these_tests_are_as_a_run_writes_them():
    assert all(set(row) == names(Row) for row in made.report()["methods"])
    units = [unit for example in made.views()["examples"] for unit in example["units"]]
    assert all(set(unit) == names(UnitView) for unit in units)
    decisions = [unit["decision"] for unit in units if unit["decision"]]
    assert decisions
    assert all(set(decision) == names(Decision) for decision in decisions)


def test_the_page_is_one_small_file_with_all_the_figures(file):
    text = file.read_text()
    assert file.stat().st_size < 100_000
    for row in made.report()["methods"]:
        low, high = (f"{100 * v:.1f}" for v in row["accuracy_interval"])
        line = f"<td>{100 * row['accuracy']:.1f}</td><td>{low}-{high}</td>"
        assert f"<td>{row['generated_tokens']:.1f}</td>" in text.split(line, 1)[1].split("</tr>")[0]
        assert text.count(html.escape(row["name"])) >= 3  # twice a table, in both figures
    assert text.count('class="example"') == len(made.views()["examples"])
    assert html.escape(headline(made.report())) in text


def test_text_from_data_is_escaped(file):
    text = file.read_text()
    assert made.HOSTILE not in text
    assert str(html.escape(made.HOSTILE)).replace("&quot;", "&#34;") in text
    assert "<b>marks</b>" not in text
    assert text.count("<script") == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            {"FTT-small-batch": (0.96, (0.9, 1), 100, None), "STT": (0.973, (0.9, 1), 40, 0.7)},
            "Skip-thinking training (STT) answers 97.3 % of the test questions right in 40 tokens "
            "an answer: 1.3 points above full-thinking training (FTT-small-batch), which it goes "
            "on from, in 60 % fewer tokens.",
        ),
        (
            {"FTT-small-batch": (0.5, (0.4, 0.6), 40, None), "STT": (0.4, (0.3, 0.5), 50, 0.1)},
            "Skip-thinking training (STT) answers 40.0 % of the test questions right in 50 tokens "
            "an answer: 10.0 points below full-thinking training (FTT-small-batch), which it goes "
            "on from, in 25 % more tokens.",
        ),
        (
            {"FTT-small-batch": (0.5, (0.4, 0.6), 40, None), "STT": (0.5, (0.4, 0.6), 30, 0.1)},
            "Skip-thinking training (STT) answers 50.0 % of the test questions right in 30 tokens "
            "an answer: level with full-thinking training (FTT-small-batch), which it goes on "
            "from, in 25 % fewer tokens.",
        ),
        (
            {"answer-only": (0.3, (0.2, 0.4), 5, None), "CWT": (0.3, (0.2, 0.4), 4, None)},
            "Chunk-wise training (CWT) answers best: 30.0 % of the test questions right, in 4 "
            "tokens an answer.",
        ),
    ],
    ids=["ahead", "behind", "level", "no-pair"],
)
def test_the_headline_says_who_wins_by_how_much_in_how_many_tokens(rows, said):
    assert headline(made.report(rows)) == said


def test_points_stand_where_the_rows_say():
    rows = made.report()["methods"]
    plot = scatter(rows, 1120, 420, said=lambda row: row["name"])
    frame, at = plot.frame, {point.said: point for point in plot.points}
    x0, x1 = frame.x_ticks[0], frame.x_ticks[-1]
    y0, y1 = frame.y_ticks[0], frame.y_ticks[-1]
    assert (x0.text, x1.text, y0.text, y1.text) == ("0", "140", "0", "100")
    for row in rows:
        point = at[row["name"]]
        assert point.x == pytest.approx(
            x0.at + (x1.at - x0.at) * row["generated_tokens"] / 140, abs=0.1
        )
        low, high = row["accuracy_interval"]
        for y, share in ((point.y, row["accuracy"]), (point.low, low), (point.high, high)):
            assert y == pytest.approx(y0.at + (y1.at - y0.at) * share, abs=0.1)


def test_a_figure_grows_until_all_names_have_room():
    rows = [made.row(f"CWT-sbc-exact-{i}", 0.9, (0.85, 0.95), 100.0, None) for i in range(10)]
    plot = scatter(rows, 360, 200)
    assert plot.frame.height > 200
    assert sorted(p.label.text for p in plot.points) == sorted(row["name"] for row in rows)
    assert len({(p.label.x, p.label.y) for p in plot.points}) == 10


def test_any_number_of_names_at_one_point_find_room():
    """As where no student answers yet: the figure grows, and so does how far a name may be."""
    names = [f"{i}: a row whose name is wide" for i in range(24)]  # no two fit side by side
    plot = scatter([made.row(name, 0.0, (0.0, 0.2), 8.0, None) for name in names], 360, 200)
    assert sorted(point.label.text for point in plot.points) == sorted(names)
    heights = sorted(point.label.y for point in plot.points)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 15


def test_curves_are_means_over_stretches_of_steps():
    log = made.log(steps=7, chunks=2)
    loss, share, smooth = training_curves(log)
    assert loss.data["names"] == ["chunk 0", "answer"]
    assert loss.data["x"] == [line["loss_tokens"] for line in log]
    for i, line in enumerate(log):
        tokens, nll, norm = (line[f"chunk_{key}"] for key in ("tokens", "nll", "grad_norm"))
        for m in range(2):
            value = pytest.approx(nll[m] / tokens[m], rel=5e-3) if tokens[m] else None
            assert loss.data["values"][m][i] == value
            assert share.data["values"][m][i] == pytest.approx(100 * norm[m] / sum(norm), rel=5e-3)
            measured = line["step"] == 5 and tokens[m]
            assert smooth.data["values"][m][i] == (pytest.approx(0.4) if measured else None)
    (long, *_) = training_curves(made.log(steps=180, chunks=1))
    first = made.log(steps=3, chunks=1)
    together = [sum(line[f"chunk_{key}"][0] for line in first) for key in ("nll", "tokens")]
    assert len(long.data["x"]) == 60
    assert long.data["values"][0][0] == pytest.approx(together[0] / together[1], rel=5e-3)


@pytest.mark.parametrize("change", ["no log", "one step", "nothing measured", "not a number"])
def test_a_page_of_little_data(tmp_path, change):
    log = made.log(steps=4, chunks=12)[: {"no log": 0, "one step": 1}.get(change, 4)]
    for line in log:
        if change == "nothing measured":
            line |= {"chunk_tokens": [0] * 12, "chunk_grad_norm": [0.0] * 12}
        if change == "not a number":
            line["chunk_nll"] = [math.nan] * 12
    report = made.report({"FTT": (0.0, (0.0, 0.0), 0.0, None)})
    del report["labels"]
    views = {"losses_of": "FTT", "rounds": [], "examples": []}
    write_page(tmp_path / "r.html", report, views, "FTT", log)
    text = (tmp_path / "r.html").read_text()
    assert text.count('<svg class="curves') == (0 if change == "no log" else 3)
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b|\bNaN\b", text)


@pytest.mark.parametrize("seed", range(20))
def test_names_keep_clear_of_names_and_points(seed):
    rng = random.Random(seed)
    count = rng.randint(1, 12)
    room = Box(0, 0, 700, 400)
    points = [(rng.gauss(350, 60), rng.gauss(200, 30)) for _ in range(count)]
    points = [(min(max(x, 5), 695), min(max(y, 5), 395)) for x, y in points]
    widths = [rng.uniform(20, 150) for _ in points]
    placed = place_labels(points, widths, room, 5.0)
    assert placed is not None
    for i, (place, width) in enumerate(zip(placed, widths, strict=True)):
        box = place.box
        assert (box.right - box.left, box.bottom - box.top) == pytest.approx((width, LINE))
        assert box.left >= 0
        assert box.top >= 0
        assert box.right <= 700
        assert box.bottom <= 400
        for x, y in points:
            assert math.hypot(max(box.left - x, 0, x - box.right),
                              max(box.top - y, 0, y - box.bottom)) >= 5.0  # fmt: skip
        for other in (p.box for p in placed[:i]):
            across = min(box.right, other.right) - max(box.left, other.left)
            down = min(box.bottom, other.bottom) - max(box.top, other.top)
            assert across <= 0 or down <= 0


def test_without_room_no_name_is_placed():
    assert place_labels([(50, 10)], [200], Box(0, 0, 100, 20), 5.0) is None


def test_heights_are_spread_in_order():
    assert spread([10, 50, 90], 10, 0, 100) == [10, 50, 90]
    assert spread([50, 49, 51], 10, 0, 100) == [59, 49, 69]
    assert spread([99, 98, 97], 10, 0, 100) == [100, 90, 80]
    with pytest.raises(ValueError, match="4 labels 40 apart, got 0 to 100"):
        spread([1, 2, 3, 4], 40, 0, 100)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (87.2, 99.1, [85, 87.5, 90, 92.5, 95, 97.5, 100]),
        (0, 131, [0, 50, 100, 150]),
        (3, 3, [3, 4]),  # no range at all
        (0, 0, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_hold_the_range(low, high, found):
    assert ticks(low, high) == found


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        refuse = pytest.fail if os.environ.get("CWT_REQUIRE_BROWSER") else pytest.skip
        refuse("no chromium on PATH (Debian: apt install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, file):
    """Opens the page at a width in a colour scheme; at the end nothing may have gone wrong."""
    contexts, problems, requests = [], [], []

    def open_page(width=1300, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert set(requests) == {file.as_uri()}
    assert problems == []


OVERLAPS = """() => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const seen = what => [...document.querySelectorAll(what)].filter(e => e.checkVisibility());
  const parts = seen(`h1, h2, h3, header > span, nav, p, dt, dd, figure, figcaption, svg, svg text,
    circle, output, table, summary, .controls > *, .unit`);
  const boxes = parts.map(e => e.getBoundingClientRect());
  const found = [];
  parts.forEach((a, i) => parts.forEach((b, j) => {
    if (j <= i || a.contains(b) || b.contains(a)) return;
    if (a.matches("circle") && b.matches("circle")) return;  // points are as near as the rows are
    if (a.closest("table") && b.closest("table")) return;
    const x = Math.min(boxes[i].right, boxes[j].right) - Math.max(boxes[i].left, boxes[j].left);
    const y = Math.min(boxes[i].bottom, boxes[j].bottom) - Math.max(boxes[i].top, boxes[j].top);
    const name = e => `${e.tagName} ${e.textContent.trim().slice(0, 40)}`;
    if (x > 0.5 && y > 0.5) found.push(`${name(a)} / ${name(b)}: ${x} x ${y}`);
  }));
  return { parts: parts.length, names: seen("svg .name").length, found };
}"""


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_lies_on_anything_else(opened, width):
    tab = opened(width)
    found = tab.evaluate(OVERLAPS)
    assert found["parts"] > 150
    assert found["names"] == len(made.ROWS) + 3 * 6  # one scatter, three curves of six chunks
    assert found["found"] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1300, 1600])
def test_the_table_fits_a_desktop_without_a_scroll_bar(opened, width):
    tab = opened(width)
    box = tab.locator(".wide-box").first
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert box.locator("thead th").all_text_contents() == [column.title for column in COMPARED]
    edge = box.evaluate("e => e.getBoundingClientRect().right")
    last = box.locator("tbody tr").first.locator("td").last
    assert last.evaluate("e => e.getBoundingClientRect().right") <= edge + 0.5


def test_names_stay_within_their_figures(opened):
    for width in WIDTHS:
        outside = opened(width).evaluate(
            """() => [...document.querySelectorAll("svg text")].filter(e => {
              if (!e.checkVisibility()) return false;
              const a = e.getBoundingClientRect(), b = e.ownerSVGElement.getBoundingClientRect();
              return a.left < b.left - 1 || a.right > b.right + 1
                || a.top < b.top - 1 || a.bottom > b.bottom + 1;
            }).map(e => e.textContent)"""
        )
        assert outside == []


def test_no_leader_runs_through_a_name(opened):
    for width in WIDTHS:
        found = opened(width).evaluate(
            """() => [...document.querySelectorAll("svg.scatter .leader")].map(line => {
              if (!line.checkVisibility()) return null;
              const names = [...line.ownerSVGElement.querySelectorAll(".name")];
              const boxes = names.map(name => name.getBoundingClientRect());
              const length = line.getTotalLength(), hit = new Set();
              for (let i = 0; i <= 50; i++) {
                const along = line.getPointAtLength(length * i / 50);
                const { x, y } = along.matrixTransform(line.getScreenCTM());
                boxes.forEach((box, n) => {
                  const inside = x > box.left && x < box.right && y > box.top && y < box.bottom;
                  if (inside) hit.add(names[n].textContent);
                });
              }
              return [...hit];
            }).filter(hit => hit)"""
        )
        assert len(found) >= 4
        assert [hit for hit in found if hit] == []


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const behind = e => {
    if (e === null) return [255, 255, 255];
    const next = e.matches("[popover]") ? null : e.parentElement;
    return over(rgba(getComputedStyle(e).backgroundColor), behind(next));
  };
  const linear = v => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const ratio = (colour, under) => {
    const pair = [luminance(over(rgba(colour), under)), luminance(under)];
    return (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
  };
  const name = e => `${e.tagName} ${e.textContent.trim().slice(0, 40)}`;
  const writes = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  for (const details of document.querySelectorAll("details")) details.open = true;
  const all = [...document.body.querySelectorAll("*")].filter(e => e.checkVisibility());
  const texts = all.filter(e => writes(e) && !e.matches("option, script")).map(e => {
    const style = getComputedStyle(e);
    return [name(e), ratio(e.ownerSVGElement ? style.fill : style.color, behind(e))];
  });
  for (const e of document.querySelectorAll("input, select"))
    texts.push([e.id, ratio(getComputedStyle(e).color, behind(e))]);
  const placeholder = getComputedStyle(words, "::placeholder").color;
  texts.push(["placeholder", ratio(placeholder, behind(words))]);
  const drawn = all.filter(e => e.matches("circle, .line")).map(e => {
    const style = getComputedStyle(e), filled = e.matches("circle, .stacked .line");
    const colour = filled ? style.fill : style.stroke;
    return [name(e.parentElement), ratio(colour, behind(document.body))];
  });
  return { page: luminance(behind(document.body)), texts, drawn };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_scheme_and_can_be_read(opened, scheme):
    tab = opened(1300, scheme)
    tab.evaluate("document.querySelectorAll('[popover]')[2].showPopover()")
    found = tab.evaluate(CONTRASTS)
    assert found["page"] > 0.8 if scheme == "light" else found["page"] < 0.05
    assert len(found["texts"]) > 200
    assert [text for text in found["texts"] if text[1] < 4.5] == []
    assert len(found["drawn"]) == len(made.ROWS) + 3 * 6
    assert [part for part in found["drawn"] if part[1] < 3] == []


def test_search_and_filter_show_what_they_say(opened):
    tab = opened(390)
    views = from_rows(made.views()["examples"])

    def shown(count):
        told = tab.text_content("#shown") == f"{count} of {len(views)} examples"
        return told and tab.locator(".example:visible").count() == count

    assert shown(8)
    tab.fill("#words", "zoe")
    assert shown(1)
    tab.fill("#words", "ONERROR")
    assert shown(1)
    tab.fill("#words", "")
    skipped = [view for view in views if not all(unit.kept for unit in view.units)]
    stayed = [v for v in views if any(unit.kept and unit.decision for unit in v.units)]
    restated = [v for v in skipped if any(u.role == "restate" and not u.kept for u in v.units)]
    for choice, fit in (
        ("with something left out", skipped),
        ("with a sentence that had to stay", stayed),
        ("with restate left out", restated),
        ('with odd "role"] left out', []),
    ):
        tab.select_option("#only", label=choice)
        assert shown(len(fit))
    assert len(skipped) == 4
    tab.select_option("#only", label="with something left out")
    tab.fill("#words", "tom")
    assert shown(1)


def test_an_example_opens_by_keyboard_and_gives_the_evidence(opened):
    tab = opened(390)
    view = from_rows(made.views()["examples"])[2]
    example = tab.locator(".example").nth(2)
    example.locator("summary").focus()
    tab.keyboard.press("Enter")
    for number, unit in enumerate(view.units):
        button = example.locator(".unit").nth(number)
        button.focus()
        tab.keyboard.press("Enter")
        shown = tab.locator(f"#e2-{number}")
        assert shown.is_visible()
        text = " ".join(shown.text_content().split())
        assert (" ".join(unit.reason().split()) or "Nothing was decided") in text
        assert f"{unit.nll / unit.tokens:.3f} nats a token" in text
        told = unit.decision["flipped"] if unit.decision else []
        assert shown.locator("tbody tr").count() == min(12, len(told))
        if told:
            cells = shown.locator("tbody tr").first.locator("td").all_text_contents()
            assert cells == [" t0", "4", "0.9989", "0.0002"]
        struck = button.evaluate("e => getComputedStyle(e).textDecorationLine")
        assert struck == ("none" if unit.kept else "line-through")
        tab.keyboard.press("Escape")
        assert not shown.is_visible()


def test_points_and_curves_tell_their_values(opened):
    tab = opened(1300)
    tab.locator(".scatter.wide .point", has_text="oracle-skips").hover()
    assert tab.text_content("#told") == (
        "oracle-skips: 97.7 % right (95 % interval 95.3 to 98.9), 43.5 tokens an answer."
    )
    tab.locator(".scatter.wide .point", has_text="answer-only").focus()
    assert tab.text_content("#told").startswith("answer-only: 40.3 % right")
    drawn = tab.locator("svg.curves").first
    box = drawn.bounding_box()
    loss, share, _ = training_curves(made.log())
    scale = box["width"] / loss.frame.width
    drawn.hover(position={"x": loss.data["px"][30] * scale, "y": 80})
    told = tab.locator(".figures .readout").all_text_contents()
    for figure, text in zip((loss, share), told, strict=False):
        values = [f"{name} {v[30]:g}" for name, v in
                  zip(figure.data["names"], figure.data["values"], strict=True)]  # fmt: skip
        assert (
            text.replace("\N{NO-BREAK SPACE}", " ")
            == f"At {loss.data['x'][30]:,} loss tokens: {', '.join(values)}."
        )
    drawn.focus()
    tab.keyboard.press("ArrowRight")
    after = tab.locator(".figures .readout").first.text_content()
    assert after.startswith(f"At {loss.data['x'][31]:,} loss tokens")


def test_the_policy_stops_scripts_and_the_network(browser, file):
    tab = browser.new_page()
    tab.goto(file.as_uri())
    blocked = tab.evaluate(
        """async () => {
          const found = [];
          const note = event => found.push(event.effectiveDirective);
          addEventListener("securitypolicyviolation", note);
          const add = (tag, values) =>
            document.body.append(Object.assign(document.createElement(tag), values));
          add("script", { textContent: "document.title = 'run'" });
          add("img", { src: "https://x.test/a.png" });
          await fetch("https://x.test/").catch(() => {});
          await new Promise(done => setTimeout(done, 200));
          return found;
        }"""
    )
    assert sorted(blocked) == ["connect-src", "img-src", "script-src-elem"]
    assert tab.title() == "arithmetic, student tiny, seed 0"
    tab.close()
