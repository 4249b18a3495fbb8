"""Tables of the pendulums: means over the seeds, and which field is below the plain one."""

from __future__ import annotations

__all__ = ["summary", "table", "verdict"]


def summary(rows: list[dict]) -> list[dict]:
    """Return the mean of every column over the seeds, with the least and the greatest."""
    found = []
    for key in dict.fromkeys((row["links"], row["field"]) for row in rows):
        group = [row for row in rows if (row["links"], row["field"]) == key]
        line = {"links": key[0], "field": key[1]}
        for name in (name for name in group[0] if name not in ("links", "field", "seed")):
            values = [row[name] for row in group]
            mean = sum(values) / len(values)
            line[name] = f"{mean:.3g} ({min(values):.3g}-{max(values):.3g})"
        found.append(line)
    return found


def table(rows: list[dict]) -> list[str]:
    """Return rows as a Markdown table."""
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    names = list(rows[0])
    return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)]


def verdict(rows: list[dict]) -> list[str]:
    """Return in how many cases each other field is below the plain one, window by window."""
    lines = []
    windows = [name for name in rows[0] if name.startswith("mean ")]
    for label in dict.fromkeys(row["field"] for row in rows if row["field"] != "plain"):
        own = [row for row in rows if row["field"] == label]
        plain = {(r["links"], r["seed"]): r for r in rows if r["field"] == "plain"}
        below = {w: sum(r[w] < plain[r["links"], r["seed"]][w] for r in own) for w in windows}
        wins = (f"{count} in {w.removeprefix('mean ')}" for w, count in below.items())
        lines.append(
            f"- {label}: its mean rollout error is below the plain field's in {', '.join(wins)}, "
            f"of {len(own)} cases each (pendulum and seed)."
        )
    return lines
