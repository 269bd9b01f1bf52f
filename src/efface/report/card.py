"""A model card for the Hub: YAML front matter, results, how to apply the edit, limitations."""

import json
import re
from typing import Any

from efface.report.attacks import strongest
from efface.report.folder import Run
from efface.report.names import GAP, NO_ATTACK, RATES, column_title, percent
from efface.report.scores import Column
from efface.report.summary import details, sentences

LICENCE = "# license: FILL THIS IN, such as apache-2.0; the base model's own licence binds you as well"


def card(run: Run) -> str:
    """card.md. The licence is for the user to choose."""
    return f"---\n{_front(run)}---\n\n{_body(run)}"


def _front(run: Run) -> str:
    """Front matter; JSON strings are YAML strings."""
    info, say = run.info, lambda text: json.dumps(text, ensure_ascii=False)
    hub = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", info["model"])
    lines = [
        LICENCE,
        f"base_model: {say(info['model'])}" if hub else f"# base_model: FILL THIS IN; made on {say(info['model'])}",
        "base_model_relation: adapter",
        "library_name: efface",
        "pipeline_tag: text-to-image",
        "tags: [concept-erasure, efface, stable-diffusion]",
        "model-index:",
    ]
    for i in run.edits:
        lines += [
            f"- name: {say(f'{run.names[i]} without {run.erased}')}",
            "  results:",
            "  - task: {type: text-to-image}",
        ]
        lines += [
            f"    dataset: {{type: {say(info['benchmark'])}, name: {say(info['benchmark'] + ', ' + info['task'])}}}"
        ]
        lines += ["    metrics:", *(f"    - {metric}" for metric in _metrics(run, i))]
    return "\n".join(lines) + "\n"


def _metrics(run: Run, edit: str) -> list[str]:
    found: list[tuple[str, str, float]] = []
    for column in run.scores.rates:
        rate = run.scores.rate(edit, column)
        if rate.n:
            found.append(
                (
                    f"{column.role}-{column.judge}-{column.score}",
                    f"{column_title(column, run.scores)} (n = {rate.n})",
                    rate.value,
                )
            )
    for column in run.scores.numbers:
        mean = run.scores.mean(edit, column)
        if mean.n:
            found.append(
                (
                    re.sub(r"\W+", "-", f"{column.role}-{column.score}").strip("-"),
                    f"{column_title(column, run.scores)} (n = {mean.n})",
                    mean.value,
                )
            )
    say: Any = json.dumps
    return [f"{{type: {say(k)}, name: {say(n, ensure_ascii=False)}, value: {v:.4g}}}" for k, n, v in found]


def _body(run: Run) -> str:
    info = run.info
    files = [e.get("file") or "EDIT.safetensors" for e in info["edits"]] or ["EDIT.safetensors"]
    name = files[0].rpartition("/")[2]
    summary = "\n".join(f"- {_plain(text)}" for text in sentences(run).values())
    counts = "\n".join(f"- **{_plain(run.names[i])}**: {_plain(text)}" for i, text in details(run).items())
    columns = run.scores.main()
    head = f"| model | {' | '.join(_plain(column_title(column, run.scores)) for column in columns)} |\n|---{'|---' * len(columns)}|\n"
    lines = "\n".join(
        f"| {_plain(label)} | {' | '.join(_rate(run, i, column) for column in columns)} |"
        for i, label in run.names.items()
    )
    tried = {found[0] for i in run.edits if (found := strongest(run.scores, i))}
    attacked = f"Attacks tried: {', '.join(sorted(tried))}; another one may do better." if tried else NO_ATTACK
    judges = "; ".join(f"{judge}: {one['name']} ({one['id']})" for judge, one in info["detectors"].items())
    return f"""# {_plain(run.info["title"])}

An edit of {_plain(info["model"])} (fingerprint {info["fingerprint"]}), made with efface {_plain(info["version"])}.

{summary}

## Apply it

```python
import efface

base = efface.load({json.dumps(info["model"])})
edited = efface.load_edit({json.dumps(name)})(base)
picture = edited.images(["a picture"], seeds=[0])[0]
```

`efface bake {name} -o FOLDER` writes a diffusers folder that needs no efface.

## Measured

{head}{lines}

Percent with Wilson 95 % intervals. {RATES}

{counts}

Benchmark {_plain(info["benchmark"])}, task {_plain(info["task"])}, protocol {info["protocol"]}.
Judges: {_plain(judges)}.

## Limits

- {attacked}
- The rates are a detector's, which errs; they hold for these prompts, seeds and this sampler, not for every way to ask.
- What else the edit changed was looked for only in the concepts above.
- "Erased" does not mean safe, and does not mean that the weights hold nothing of it any more.
"""


def _rate(run: Run, edit: str, column: Column) -> str:
    rate = run.scores.rate(edit, column)
    low, high = rate.interval
    return f"{percent(rate.value)} [{100 * low:.0f}, {100 * high:.0f}] of {rate.n}".replace(GAP, " ") if rate.n else "–"


def _plain(text: str) -> str:
    """Text escaped for Markdown and HTML."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))
