"""What an attribution means, in words: what is lost to what, who is slow, and what to try. Imports no TensorFlow."""

from mnist_dist.benchmarks.analysis.attribution import Attribution, Part, PartName
from mnist_dist.benchmarks.labels import label_part
from mnist_dist.benchmarks.report.pages import render_template
from mnist_dist.config import Config, get_setting
from mnist_dist.errors import counted
from mnist_dist.strategies import STRATEGIES, either, with_processes

WIDE_INTERVAL = 0.1  # An upper bound of the loss from which on "not significant" says little.
NOTABLE_SHARE = 0.01  # Of the throughput; smaller causes are not worth a word.


def explain(attribution: Attribution) -> str:
    """Says in a few sentences what is lost to what, who is slow, and what to try."""
    case, slow, biggest = attribution.case, attribution.slowest, attribution.biggest
    loss, within = attribution.loss, ", within single runs" if attribution.loss.repeats == 1 else ""
    interval = f"95 % interval {100 * loss.low:.0f} to {100 * loss.high:.0f}{within}"
    who = f"{case.strategy} on {case.devices} devices, {attribution.scaling} scaling, loses"
    lost = f"{100 * loss.value:.0f} % ({interval}) of the ideal throughput"
    culprit = ""
    if slow:
        which = " with real input" if slow.with_real_input else ""
        share = f"{slow.windows} of {slow.all_windows} windows{which}"
        culprit = f"; {slow.name} is the slowest in {share}, by {100 * slow.excess:.0f} %"
    if loss.low <= 0 and not attribution.is_significant:
        more = "; more repeats would tell" if loss.high >= WIDE_INTERVAL else ""
        return f"{who} nothing significant: {lost} is within the noise{more}{culprit}."
    if not attribution.is_significant:
        return f"{who} nothing that matters: {lost}{culprit}."
    if attribution.disturbed:
        return f"{who} {lost}. Other programs used the machine meanwhile, so no causes are given: measure again."
    sentences = [f"{who} {lost}: {_parts(attribution)}{culprit}."]
    if biggest is None:
        sentences.append("The largest cause is within the noise; measure more repeats.")
    else:
        sentences.append(
            f"To counter {label_part(biggest.name)}, try {'; or '.join(_advice(attribution, biggest.name))}."
        )
    return " ".join([*sentences, *(f"Causes not separated: {reason}." for reason in attribution.missing)])


def explain_briefly(attribution: Attribution) -> str:
    """Says of a loss its largest cause and what to try first, if its parts are known well enough to name one.

    Where other programs used the machine meanwhile, there is nothing to try but to measure again.
    """
    case, biggest, loss = attribution.case, attribution.biggest, round(100 * attribution.loss.value)
    text = f"{case.strategy} on {case.devices} devices, {attribution.scaling} scaling: {loss} %"
    unexplained = attribution.parts[-1]
    if attribution.disturbed:
        return f"{text}; for its cause, measure again on an idle machine."
    if biggest is None or abs(unexplained.share.value) > attribution.loss.value / 2:
        return f"{text}, with no certain cause and {_points(unexplained)}."
    rest = loss - round(100 * biggest.share.value)
    others = f" and {rest} to all else" if rest < 0 else ""
    return f"{text}, including {_points(biggest)}{others}; try {_advice(attribution, biggest.name)[0]}."


def _parts(attribution: Attribution) -> str:
    """Names what is beyond noise, the largest first and the unexplained last, and sums up what is not.

    For example `22 points to exposed communication, 3 points within noise (input, contention)`.
    """
    told = [part for part in attribution.parts if not part.share.low <= 0 <= part.share.high]
    told = [part for part in told if abs(part.share.value) >= NOTABLE_SHARE]
    told.sort(key=lambda part: (part.name == "unexplained", -part.share.value))
    noise = [part for part in attribution.parts if part not in told and abs(part.share.value) >= NOTABLE_SHARE]
    texts = [*map(_points, told)]
    if noise:
        points = 100 * sum(part.share.value for part in noise)
        parts = ", ".join(label_part(part.name) for part in noise)
        texts.append(f"{counted(round(points), 'point')} within noise ({parts})")
    return ", ".join(texts)


def _points(part: Part) -> str:
    """Returns, for example, `22 points to exposed communication`."""
    points, label = counted(round(100 * part.share.value), "point"), label_part(part.name)
    return f"{points} {label}" if part.name == "unexplained" else f"{points} to {label}"


def _advice(attribution: Attribution, cause: PartName) -> list[str]:
    """Returns what to try against a cause, the best first."""
    given, defaults = attribution.case.settings, Config()
    untried = [name for name in with_processes() if name not in attribution.measured_strategies]
    return render_template(
        "advice.txt.j2",
        it=attribution,
        cause=cause,
        defaults=defaults,
        setting=lambda key: given.get(key, get_setting(defaults, key)),
        is_one_process=STRATEGIES[attribution.case.strategy].one_process,
        with_processes=either(untried) if untried else "",
    ).splitlines()
