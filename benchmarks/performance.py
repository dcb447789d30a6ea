"""Write docs/performance.md from the figures beside this file: every table there is one of them.

python benchmarks/performance.py
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
TEXT = HERE / "performance.md.in"


def figures(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text())


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join('' if cell is None else str(cell) for cell in line)} |" for line in lines)


def steps(name: str) -> str:
    found = figures(name)["precision"]
    arms = {precision: {row["arm"]: row for row in each["arms"]} for precision, each in found.items()}
    rows = []
    for arm in next(iter(arms.values())):
        row: list[Any] = [arm]
        for precision in arms:
            one = arms[precision].get(arm)
            row += [one["ratio_median"], one["ratio_target"], one["memory_ratio"]] if one else [None] * 3
        rows.append(row)
    head = [f"{what}, {precision}" for precision in arms for what in ("time", "wanted", "memory")]
    return table(["arm", *head], rows)


def trainings() -> str:
    found = figures("whole_training")["precision"]
    rows = [
        [precision, row["arm"], row["whole"], row["ratio"], row["set_up"], row["steps"], row["evaluation"]]
        for precision, each in found.items()
        for row in each["arms"]
    ]
    return table(["", "arm", "seconds", "x full", "set-up", "steps", "scoring"], rows)


def scale() -> str:
    found = figures("at_scale")["found"]
    names = ("slots", "searches", "trainings", "rounds", "utilisation", "driver_cpu_ms_per_trial")
    rows = [[one[name] for name in names] for one in found]
    return table(["slots", "searches", "trainings a search", "rounds", "slots busy", "ms of policy a trial"], rows)


def quickstart() -> str:
    found = figures("quickstart_profile")
    between = found["wall_s"] - found["before_run_s"] - found["after_last_s"]
    rows = [
        ["the command, in all", found["wall_s"]],
        ["imports and checks, before the run", found["before_run_s"]],
        ["Ray, and trainings on two slots", round(between, 1)],
        [f"{found['trainings']} trainings, added up", found["training_s"]],
        ["of which scoring", found["evaluation_s"]],
        ["after the last training", found["after_last_s"]],
    ]
    return f"{table(['', 'seconds'], rows)}\n\n{found['cpu']}, {found['cores']} cores, {found['date']}."


def conditions(name: str) -> str:
    found = figures(name)
    loads = [each["load_average"][0] for each in found.get("precision", {}).values() if "load_average" in each]
    load = found["load_average"][0] if "load_average" in found else max(loads)
    return f"{found['cpu']}, {found['threads']} of {found['cores']} threads, load {load}, {found['date']}"


def page() -> str:
    """Give the text of the page."""
    start, tables, learned = figures("trial_start"), figures("table_scale"), figures("trajectory_cost")
    arms = {row["arm"]: row["ratio_median"] for row in learned["arms"]}
    return Template(TEXT.read_text()).substitute(
        steps=steps("step_cost"),
        steps_on=conditions("step_cost"),
        steps_base=steps("step_cost_base"),
        steps_base_on=conditions("step_cost_base"),
        trainings=trainings(),
        trainings_on=conditions("whole_training"),
        quickstart=quickstart(),
        quickstart_held=figures("quickstart_profile")["subspace_s_each"],
        quickstart_full=figures("quickstart_profile")["full_s_each"],
        scale=scale(),
        start_first=start["first"]["seconds"],
        start_after=start["after"]["seconds"],
        start_mib=start["after"]["grown_mib"],
        rows=f"{start['rows']:,}",
        driver=figures("tune_overhead")["driver_cpu_ms_per_trial"],
        table_rows=f"{tables['rows']:,}",
        status=tables["status"]["wall_s"],
        grouped=tables["query, grouped"]["wall_s"],
        learned=arms["trajectory"],
        learned_setup=learned["setup_s"],
    )


if __name__ == "__main__":
    PAGE.write_text(page())
