"""Plain LaTeX tables: no package is needed."""

from collections.abc import Sequence

from efface.metrics.rates import Rate

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "−": "$-$", "±": r"$\pm$", "–": "--", "\n": " ",
}  # fmt: skip


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def tex_rate(rate: Rate, interval: tuple[float, float] | None = None, bold: bool = False) -> str:
    """A rate in percent with its interval."""
    if not rate.n:
        return "--"
    low, high = interval or rate.interval
    value = f"{100 * rate.value:.1f}"
    shown = rf"\textbf{{{value}}}" if bold else value
    return f"{shown} {{\\scriptsize [{100 * low:.0f}, {100 * high:.0f}]}}"


def tabular(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A tabular whose first column is left-aligned; heads are text, cells are LaTeX. The caption is a comment above it."""
    lines = [f"% {' '.join(caption.split())}", rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\hline"]
    lines += [" & ".join(map(tex, heads)) + r" \\", r"\hline"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"
