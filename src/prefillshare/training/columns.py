"""What a progress bar shows, in training and in evaluation."""

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn


def bar_columns() -> tuple[ProgressColumn, ...]:
    """What is done, the bar, how much of it, and the time that is left.

    New ones for each bar: they remember what they showed last, by the number of a task.
    """
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
