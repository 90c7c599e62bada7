"""The tasks: what a row is, how it becomes features, and what a prediction is worth."""


def get_task(name: str):
    """Return a task, "span", "classes" or "score": a module or an object with the task's parts."""
    from qa_lib.tasks import sentence, span

    return {"span": span, "classes": sentence.CLASSES, "score": sentence.SCORES}[name]
