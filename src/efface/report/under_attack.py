"""What attacks bring back, over the tasks of a sweep: by what they give to the model, by attack, all together; steps to relearn."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import inf
from statistics import median

from efface.attacks import REGISTRY
from efface.benchmarks.row import NONE
from efface.core.errors import UsageError
from efface.metrics.rates import Rate
from efface.report.estimates import Estimate, shown, task_mean
from efface.report.page import Th, parts, small, table
from efface.report.plots import scatter
from efface.report.scores import Row, is_rate

CONTROL, RELEARN, INPUTS = "-control", "relearn", ("words", "settings", "rows", "latents")
Picture = tuple[str, str, str, int]  # task, concept, attacked prompt, seed
MEANING = (
    "Share of the pictures that show it again, by the best attempt within the budget, at seeds the search did not see; lower is better. "
    "Only pictures count whose concept the unedited model draws at the same prompt and seed. Small: 95 % interval, as wide as the tasks "
    "differ. Start noise that no one would draw does not count. A control is no attack on the edit: the same search for pictures upside "
    "down, which no model knew; where it succeeds as well, the attack taught the concept anew. Union: by any attack that leaves the "
    "weights alone, but for those whose control succeeds on the unedited model. –: no attack of the kind applies."
)


@dataclass(frozen=True)
class Attacked:
    """The rows of attacks by method."""

    rows: Mapping[str, Sequence[Row]]
    drawn: frozenset[Picture]  # that the unedited model draws without an attack
    bases: frozenset[str]

    @property
    def names(self) -> list[str]:
        """The attacks in the order in which they were tried, the prompt alone first."""
        return list(dict.fromkeys(row["attack"] for rows in self.rows.values() for row in rows))

    def rate(self, method: str, attacks: Collection[str]) -> Estimate | None:
        """The share of pictures that any of these attacks brought back, a mean over tasks; None where none was judged."""
        judged = brought_back(self.rows.get(method, ()), attacks)
        tasks: dict[str, list[bool]] = {}
        for key, hit in judged.items():
            if key in self.drawn:
                tasks.setdefault(key[0], []).append(hit)
        return task_mean([Rate(sum(hits), len(hits)) for hits in tasks.values()]) if tasks else None

    def of_kind(self, gives: Collection[str]) -> list[str]:
        """The attacks, without controls, that give one of these to the model."""
        return [name for name in self.names if what(name) in gives and not is_control(name)]

    @property
    def taught(self) -> list[str]:
        """Attacks that teach what the model never knew: their control succeeds on the unedited model in half of its pictures or more."""
        found = []
        for name in self.names:
            rates = [self.rate(m, [f"{name}{CONTROL}"]) for m in self.bases]
            if any(rate and rate.value >= 0.5 for rate in rates):
                found.append(name)
        return found

    @property
    def united(self) -> list[str]:
        """The attacks of the union: those of the inputs that teach nothing, and the prompt alone."""
        return [NONE, *(name for name in self.of_kind(INPUTS) if name not in self.taught)]

    def union(self, method: str) -> tuple[str, str]:
        """A cell: the share that no attack of the inputs brought back."""
        found = self.rate(method, self.united)
        if found is None:
            return "–", "not attacked"
        value, interval = shown(_gone(found), "")
        words = self.rate(method, [NONE, *self.of_kind(["words"])])
        return value, f"{interval}; by words {shown(_gone(words), '')[0]}" if words else interval

    def steps(self, method: str) -> tuple[str, str]:
        """A cell: the steps after which half of the pictures show it again; below it, those of the control."""
        if method in self.bases:
            return "–", "knows it"
        found, control = (self._steps(method, name) for name in (RELEARN, f"{RELEARN}{CONTROL}"))
        return found or "–", f"control {control}" if control else "not tried"

    def _steps(self, method: str, name: str) -> str:
        own = [row for row in self.rows.get(method, ()) if row["attack"] == name and _picture(row) in self.drawn]
        if not own:
            return ""
        taken = median(float(row.get("about", {}).get("steps", inf)) if row["value"] == 1 else inf for row in own)
        most = max(int(row.get("about", {}).get("steps", 0)) for row in own)
        return f"more than {most}" if taken == inf else f"{taken:.0f}"


def attacked(rows: Iterable[Row], bases: Collection[str]) -> Attacked | None:
    """The attacks among a sweep's rows; None if there are none."""
    own: dict[str, list[Row]] = {}
    for row in rows:
        if row["attack"] and is_rate(row["score"]):
            own.setdefault(row["method"], []).append(row)
    plain = [row for m in bases for row in own.get(m, ()) if row["attack"] == NONE]
    lost = {_picture(row) for row in plain if row["value"] != 1}
    return Attacked(own, frozenset(map(_picture, plain)) - lost, frozenset(bases)) if own else None


def _gone(back: Estimate) -> Estimate:
    """The share that was not brought back."""
    return Estimate(1 - back.value, 1 - back.high, 1 - back.low)


def brought_back(rows: Iterable[Row], attacks: Collection[str]) -> dict[Picture, bool]:
    """Whether any of these attacks brought a picture back, for each that was judged."""
    own = [row for row in rows if row["attack"] in attacks and row["value"] is not None]
    fixed = {name for name in attacks if len({row["seed"] for row in own if row["attack"] == name}) == 1}
    judged: dict[Picture, bool] = {}
    for row in own:
        judged[_picture(row)] = judged.get(_picture(row), False) or row["value"] == 1
    for row in own:  # a picture that comes from start noise alone is the same at every seed
        if row["attack"] in fixed and row["value"] == 1:
            judged |= {key: True for key in judged if key[:3] == _picture(row)[:3]}
    return judged


def is_control(name: str) -> bool:
    """Whether an attack is the control of another."""
    return name.partition(":")[0].endswith(CONTROL)


def what(name: str) -> str:
    """What an attack gives to the model, "" for none and for one that is not installed."""
    try:
        return REGISTRY.declarations(REGISTRY.settings(name)[0]).gives
    except UsageError:
        return ""


def _picture(row: Row) -> Picture:
    return row["task"], row["concept"], row.get("asked", row["prompt"]), row["seed"]


def trade_off(
    found: Attacked, methods: Sequence[str], name: Mapping[str, str], kept: Mapping[str, Estimate | None]
) -> str:
    """A figure: what no attack of the inputs brought back against what was kept, with a note; "" without both."""
    rates = {}
    for m in methods:
        back, stays = found.rate(m, found.united), kept[m]
        if back and stays:
            rates[name[m]] = stays, _gone(back)
    bases = [name[m] for m in found.bases]
    return scatter(rates, bases, "neighbours and unrelated concepts kept, %", "erased under attack, %") if rates else ""


def _tables(found: Attacked) -> dict[str, list[tuple[str, list[str]]]]:
    """Tables by title: their columns, each with its attacks."""
    kinds = [(kind, own) for kind in (*INPUTS, "weights") if (own := found.of_kind([kind]))]
    first = [("no attack", [NONE]), *kinds, ("union", found.united)]
    each = [(name, [name]) for name in found.names if name != NONE]
    return {
        "By what the attacks give to the model": first,
        **{f"By attack, {i}": list(part) for i, part in enumerate(parts(each), 1)},
    }


def _left_out(found: Attacked) -> str:
    """Which attacks the union leaves out."""
    return f"Left out of the union: {', '.join(found.taught)}." if found.taught else ""


def markdown(found: Attacked, methods: Sequence[str], name: Mapping[str, str]) -> str:
    """The tables as Markdown."""
    made = []
    for title, columns in _tables(found).items():
        steps = ["steps to relearn"] * (title.startswith("By what"))
        heads = ["method", *(head for head, _ in columns), *steps]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for m in (m for m in methods if m in found.rows):
            cells = [shown(found.rate(m, own), "") for _, own in columns] + [found.steps(m)] * len(steps)
            lines.append(f"| {name[m]} | {' | '.join(f'{a}<br><sub>{b}</sub>' if b else a for a, b in cells)} |")
        made.append(f"## {title}\n\n" + "\n".join(lines))
    return "\n\n".join([*made, f"{MEANING} {_left_out(found)}".strip()]).replace("\u00a0", " ")


def section(found: Attacked, methods: Sequence[str], name: Mapping[str, str]) -> str:
    """The tables as HTML."""
    made = ""
    for title, columns in _tables(found).items():
        rows = []
        for m in (m for m in methods if m in found.rows):
            cells = [shown(found.rate(m, own), "") for _, own in columns]
            rows.append((escape(name[m]), [f"{escape(a)}{small(escape(b))}" for a, b in cells]))
        made += f"<h3>{escape(title)}</h3>{table(title, ['Method', *(Th(head) for head, _ in columns)], rows)}"
    return f'<h2 id="attacks">Attacks</h2>{made}<p>{escape(f"{MEANING} {_left_out(found)}")}</p>'
