"""The order of a comparison: tuning, test runs at equal gradients, at equal time, then other rates and epochs.

Every stage's runs are known once the stage before has ended; what is recorded is not run again. The result reads
records alone, so that a report of a comparison that is half done is a report of the half that is there. Tests:
tests/python/test_compare.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch_ssam import _checks
from torch_ssam._common.progress import resolve_progress
from torch_ssam._common.workers import Workers, cores

from ._analog import check_installed
from ._data import Data
from ._deployment import roundings
from ._method import Method
from ._records import ROUNDS, Job, Store, execute
from ._settings import SETTINGS, Setting
from ._statistics import Estimate, estimate, paired
from ._training import Run, load

TUNING_SEED = 1000
#: What a record calls the score that an arm's options are chosen by, where it is not the clean validation score.
CHOSEN_BY = {"target": "target score"}
STAGES = ("tuning", "test", "robustness")
#: Epochs that differ by less count as equal time: a step's time is not known better on a shared machine.
TIME_TOLERANCE = 0.1


@dataclass
class Comparison:
    """What a setting's records say; see `compare`.

    The arms of a method: "gradients" has the epochs of SGD's number of gradients, "time" those of SGD's
    processor time, by the cost of a step. They are the same runs where the epochs differ by less than a tenth.
    "target", where the setting is about deployment, has equal gradients too, and the options with the best validation
    score under disturbances (`_deployment.TARGET`) in place of the best clean one.
    """

    setting: Setting
    store: Store
    data: Data = field(init=False)

    def __post_init__(self) -> None:
        self.data = load(self.setting, 0)

    @property
    def name(self) -> str:
        """The setting's name."""
        return self.setting.name

    @property
    def methods(self) -> list[Method]:
        """The methods compared."""
        return self.setting.chosen_methods()

    # -- which runs there are --------------------------------------------------------------------------------

    def tuning_runs(self, method: Method) -> list[Run]:
        """One run for each point of the method's grid, at the equal budget of gradients."""
        epochs = method.epochs(self.setting.epochs)
        return [
            Run("tune", self.setting, method, options, TUNING_SEED, epochs)
            for options in self.setting.grid(method)
        ]

    def grid(self, method: Method) -> list[tuple[dict[str, float], dict[str, Any] | None]]:
        """The points of the grid with their results, None where a run is missing."""
        return [(run.options, self.store.result(run)) for run in self.tuning_runs(method)]

    def chosen(self, method: Method, arm: str = "gradients") -> dict[str, float] | None:
        """The options of an arm, with the best validation score, the first of equals; None while tuning is not done."""
        points, by = self.grid(method), CHOSEN_BY.get(arm, "validation score")
        if any(result is None for _, result in points):
            return None
        return max(points, key=lambda point: _score(point[1], by))[0]

    def validation_score(self, method: Method, arm: str = "gradients") -> float:
        """The best score of the grid, of those that the arm's options are chosen by."""
        by = CHOSEN_BY.get(arm, "validation score")
        return max(_score(result, by) for _, result in self.grid(method))

    def time_ratio(self, method: Method) -> float | None:
        """The time of the method's step over that of SGD's, measured in turns: the median over rounds; None before all."""
        rounds = self.store.timings(self.setting)
        if len(rounds) < ROUNDS:
            return None
        return statistics.median(seconds[method.name] / seconds["sgd"] for seconds in rounds)

    def epochs(self, method: Method, arm: str = "gradients") -> int | None:
        """Epochs of an arm; None where the time is not measured, or the method has a larger budget anyway."""
        equal = method.epochs(self.setting.epochs)
        if arm != "time":
            return equal
        ratio = self.time_ratio(method)
        if ratio is None or method.budget > 1:
            return None
        timed = max(1, round(self.setting.epochs / ratio))
        return equal if abs(timed - equal) <= TIME_TOLERANCE * equal else timed

    def test_run(self, method: Method, seed: int, arm: str = "gradients") -> Run | None:
        """A run on the test split with the options chosen; None while they are not known."""
        options, epochs = self.chosen(method, arm), self.epochs(method, arm)
        if options is None or epochs is None:
            return None
        return Run("test", self.setting, method, options, seed, epochs)

    def robust_run(self, method: Method, seed: int, what: str, factor: float) -> Run | None:
        """The run with the chosen learning rate ("lr") or the epochs ("epochs") times the factor."""
        options = self.chosen(method)
        if options is None:
            return None
        epochs = method.epochs(self.setting.epochs)
        if what == "lr":
            options = {**options, "lr": options["lr"] * factor}
        else:
            epochs = max(1, round(epochs * factor))
        return Run("robust", self.setting, method, options, seed, epochs)

    def check_ready(self, stage: str) -> None:
        """Raises if the stage's options are not known yet.

        Raises:
            ValueError: the tuning that it builds on is not recorded.
        """
        missing = [method.name for method in self.methods if self.chosen(method) is None]
        if stage != "tuning" and missing:
            raise ValueError(
                f"{self.name}: stage {stage!r} needs the options that tuning chooses, and the grid of "
                f"{', '.join(missing)} is not all in {self.store.folder}. Run stage 'tuning' first."
            )

    def jobs(self, stage: str) -> list[Job]:
        """The stage's jobs that are not recorded yet; a seed is complete for all methods before the next begins."""
        setting, runs, timings = self.setting, list[Run | None](), list[Job]()
        if stage == "tuning":
            timed = range(ROUNDS) if "time" in setting.arms else ()
            timings = [Job(setting, self.store.folder, None, number) for number in timed]
            runs += [run for method in self.methods for run in self.tuning_runs(method)]
        elif stage == "test":
            for seed in range(setting.seeds):
                runs += [self.test_run(m, seed, arm) for arm in setting.arms for m in self.methods]
        else:
            runs += [
                self.robust_run(method, seed, what, factor)
                for what, factor in setting.variations
                for seed in range(setting.robustness_seeds)
                for method in self.methods
            ]
        jobs = [Job(setting, self.store.folder, run) for run in runs if run is not None]
        unique = {
            (job.run.method.name, str(job.run.options), job.run.seed, job.run.epochs): job
            for job in jobs
            if job.run
        }
        spread = list(unique.values())
        for i, timing in enumerate(timings):  # at different times, since what else the machine does changes
            spread.insert(round(i * len(unique) / ROUNDS) + i, timing)
        return [job for job in spread if not job.done()]

    # -- what they found -------------------------------------------------------------------------------------

    def results(self, method: Method, arm: str = "gradients") -> dict[int, dict[str, Any]]:
        """The test results there are, by seed."""
        found = {}
        for seed in range(self.setting.seeds):
            run = self.test_run(method, seed, arm)
            result = None if run is None else self.store.result(run)
            if result is not None:
                found[seed] = result
        return found

    def values(self, method: Method, measure: str, arm: str = "gradients") -> dict[int, float]:
        """One measure by seed; "quantised 4" is the score with 4 bits, "bits 4 mse anew" one of `_deployment.key`.

        Seeds without a number are left out.
        """
        found = {}
        for seed, result in self.results(method, arm).items():
            name, _, rest = measure.partition(" ")
            if name in ("bits", "noise"):
                value = result.get("deployment", {}).get(measure)
            else:
                value = result["quantised"].get(rest) if name == "quantised" else result.get(measure)
            if value is not None:
                found[seed] = float(value)
        return found

    def estimate(self, method: Method, measure: str = "score", arm: str = "gradients") -> Estimate:
        """Mean and 95% interval over the seeds."""
        return estimate(list(self.values(method, measure, arm).values()))

    def best_rounding(self, method: Method, bits: int, arm: str) -> str:
        """The measure of the rounding, of all that were tried, under which the method's mean over the seeds is best.

        The same one for all seeds. It is chosen on the test split: five ways, of which two or three are close to the best.
        """
        tried = roundings(bits)
        found = {name: one.mean for name in tried if (one := self.estimate(method, name, arm)).n}
        return max(found, key=lambda name: found[name]) if found else tried[0]

    def difference(
        self, method: Method, reference: Method, measure: str = "score", arm: str = "gradients"
    ) -> Estimate:
        """Mean and 95% interval of the difference, seed by seed; of "bits 2" each under its best rounding."""
        return paired(
            self.values(method, self.resolved(method, measure, arm), arm),
            self.values(reference, self.resolved(reference, measure, arm), arm),
        )

    def resolved(self, method: Method, measure: str, arm: str) -> str:
        """The measure itself, or of "bits 2" that of the best rounding."""
        kind, _, level = measure.partition(" ")
        return self.best_rounding(method, int(level), arm) if kind == "bits" and level.isdigit() else measure

    def robustness(self, method: Method, what: str, factor: float) -> Estimate:
        """Scores on the test split with the learning rate or the epochs times the factor."""
        if factor == 1:
            scores = self.values(method, "score")
            return estimate([scores[s] for s in range(self.setting.robustness_seeds) if s in scores])
        runs = [self.robust_run(method, seed, what, factor) for seed in range(self.setting.robustness_seeds)]
        results = [self.store.result(run) for run in runs if run is not None]
        return estimate([_score(result, "score") for result in results if result is not None])

    def method(self, name: str) -> Method:
        """The method of that name.

        Raises:
            KeyError: it is not among the setting's.
        """
        return {method.name: method for method in self.methods}[name]

    def best_ssam(self) -> Method | None:
        """The form of S-SAM with the best validation score: chosen without a look at the test split."""
        forms = [m for m in self.methods if m.is_ssam and m.budget == 1 and self.chosen(m) is not None]
        return max(forms, key=self.validation_score) if forms else None

    def rows(self) -> list[dict[str, Any]]:
        """Every run there is as one flat row, for the CSV."""
        rows = []
        for method in self.methods:
            runs: list[tuple[str, Run | None]] = [("tuning", run) for run in self.tuning_runs(method)]
            for arm in self.setting.arms:
                part = "chosen at the target" if arm == "target" else f"equal {arm}"
                runs += [(part, self.test_run(method, s, arm)) for s in range(self.setting.seeds)]
            runs += [
                (f"{what} x {factor:g}", self.robust_run(method, seed, what, factor))
                for what, factor in self.setting.variations
                for seed in range(self.setting.robustness_seeds)
            ]
            for part, run in runs:
                result = None if run is None else self.store.result(run)
                if run is None or result is None:
                    continue
                flat = {k: v for k, v in result.items() if not isinstance(v, dict | list)}
                flat.update({f"score at {b} bits": v for b, v in result.get("quantised", {}).items()})
                flat.update({f"score, {name}": v for name, v in result.get("deployment", {}).items()})
                rows.append(
                    {
                        "setting": self.name,
                        "data": self.data.name,
                        "part": part,
                        "method": method.name,
                        "seed": run.seed,
                        "epochs": run.epochs,
                        **{
                            name: run.options.get(name)
                            for name in ("lr", "weight_decay", "noise_std", "rho", "weight_clip", "target")
                        },
                        **flat,
                    }
                )
        return rows


def _score(result: dict[str, Any] | None, name: str) -> float:
    """A diverged regression has no finite score: worse than any."""
    value = None if result is None else result.get(name)
    return float("-inf") if value is None else float(value)


Progress = bool | Callable[[int, int], object] | None


def compare(
    settings: str | Setting | Sequence[str | Setting],
    *,
    out: str | Path = "out/compare",
    workers: int | None = None,
    stages: Sequence[str] = STAGES,
    progress: Progress = None,
) -> list[Comparison]:
    """Compares SGD, SAM, S-SAM and AdamW: tunes each over a grid of one size, then tests with fresh seeds.

    Every finished run is recorded in `out`; called again, it goes on where it was stopped. The options of each
    method are the ones with the best score on the validation split in a run with a seed of its own; the test
    split is looked at with the options chosen only.

    Args:
        settings: names from SETTINGS, or `Setting` objects; one or several.
        out: folder; each setting has one of its name in it, with its records.
        workers: processes of one thread each; None for one a core, 1 for none but this one. More than one
            needs an importable main module (`if __name__ == "__main__":` in scripts).
        stages: which of "tuning", "test" and "robustness" to run; the others are read where they are.
        progress: True for a tqdm bar, or a function of (runs done, runs known of so far).

    Returns:
        A `Comparison` a setting; `write_report(comparisons, out)` makes report.html and results.csv of them.

    Raises:
        ValueError, TypeError: names that are not known, functions that do not give what they should.
        ImportError: a method with runs to make needs a package that is not installed (ala-noise: aihwkit-lightning).

    Example:
        >>> import tempfile
        >>> tiny = Setting(
        ...     "tiny", data="breast-cancer", model="linear", methods=("sgd", "ssam"), epochs=2, batch=64,
        ...     rates=(0.1,), adam_rates=(0.001,), knob_values=1, seeds=2, robustness_seeds=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found, = compare(tiny, out=folder, workers=1)
        ...     accuracy = found.estimate(found.method("ssam"))
        >>> accuracy.n, accuracy.mean > 80
        (2, True)
    """
    listed = [settings] if isinstance(settings, str | Setting) else settings
    if not isinstance(listed, Sequence):
        raise TypeError(
            f"settings is a {type(settings).__name__}; expected a name or a Setting, or a list of them."
        )
    chosen = [resolve(one) for one in listed]
    names = [setting.name for setting in chosen]
    if not chosen or len(set(names)) < len(names):
        raise ValueError(f"settings are {names}; expected at least one, each name once.")
    for stage in stages:
        _checks.one_of("stage", stage, STAGES)
    count = cores() if workers is None else _checks.count("workers", workers, high=1024)
    comparisons = [Comparison(setting, Store(Path(out) / setting.name)) for setting in chosen]
    report, close = resolve_progress(progress, 0, "run")
    done = 0
    try:
        with Workers(count) as pool:
            for stage in STAGES:
                if stage not in stages:
                    continue
                for comparison in comparisons:
                    comparison.check_ready(stage)
                jobs = [job for comparison in comparisons for job in comparison.jobs(stage)]
                if any(job.run is not None and job.run.method.optimizer == "sgd-analog" for job in jobs):
                    check_installed()  # now, not after hours of runs
                total = done + len(jobs)
                if report is not None:
                    report(done, total)
                for _ in pool.results(execute, jobs):
                    done += 1
                    if report is not None:
                        report(done, total)
    finally:
        close()
    return comparisons


def resolve(setting: str | Setting) -> Setting:
    """The setting of that name, or the one given."""
    if isinstance(setting, Setting):
        return setting
    if not isinstance(setting, str):
        raise TypeError(f"setting is a {type(setting).__name__}; expected a name or a Setting.")
    return SETTINGS[_checks.one_of("setting", setting, tuple(SETTINGS))]
