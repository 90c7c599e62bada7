"""What all plans share: fields of runs, the run to go on from, and the experiments asked for."""

from collections.abc import Callable, Iterable
from typing import Any

from qa_lib.data import selection
from qa_lib.settings import encoder_files
from qa_lib.settings.parameters import Study
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec


def shared_fields(params: Study) -> dict:
    """Return the fields that all runs of a study have."""
    # A parameter of a role's name is something else: `start` is the start's dataset.
    fields = params.model_dump(include=set(Spec.model_fields) - set(Spec.ROLES))
    fields["folder"] = params.data
    fields["weights"] = encoder_files.identify_weights(params.encoder)
    fields["recipe"] = 1
    return fields


def fingerprint_domains(params: Study, names: Iterable[str]) -> list[str]:
    """Return the fingerprint of each dataset: its definition and its files."""
    return [selection.fingerprint(name, params.source, params.data) for name in names]


def check_domains(params: Study):
    """Raise UserError where two domains are one dataset, the one an altered copy of the other."""
    for name in params.domains:
        d = selection.find_dataset(name, params.source, params.data)
        if d.part_of in params.domains:
            raise UserError(
                f"domains: {name} is a test set of {d.part_of}, which is a domain itself; name "
                "another dataset in its place"
            )


def check_questions(params: Study, asked: dict[str, list[str]]):
    """Raise UserError where a dataset has no questions that a span of a text answers.

    asked: parameter → the datasets that it names.
    """
    for parameter, names in asked.items():
        for name in names:
            d = selection.find_dataset(name, params.source, params.data)
            if d.task != "span":
                raise UserError(
                    f"{parameter}: {name} is of the task {d.task} where the report needs questions "
                    "that spans answer (task span); name another dataset there"
                )


def plan_start(params: Study, shared: dict, **fields) -> list[Spec]:
    """Return the run on another dataset that all others go on from.

    Nothing where parameter `start` names none.

    Profile quick has one, so that short runs can learn at all. fields: those of this run alone.
    """
    if not params.start:
        return []
    start = {
        "variant": "start",
        "seed": 0,
        "domains": [params.start],
        "fingerprints": fingerprint_domains(params, [params.start]),
        "rows": [params.start_rows],
        "tests": [params.start],
        "learning_rate": params.start_rate,
        "threads": params.start_threads,
    }
    return [Spec(**shared | start | fields)]


def list_runs_of_experiments(
    arm: Any, experiments: dict[str, Callable[[Any], list[Spec]]]
) -> list[Spec]:
    """Return the runs of those experiments that the parameters name, in the order of the dict.

    arm: a report's Arm, which has the parameters; experiments: by name the function that returns
    its runs.
    """
    specs = []
    for name, list_runs in experiments.items():
        if name in arm.params.experiments:
            specs += list_runs(arm)
    return specs


def drop_repeats(specs: list[Spec]) -> list[Spec]:
    """Return the runs in their order, each once under each variant and arm."""
    return list({(spec.variant, spec.arm, spec.hash): spec for spec in specs}.values())
