"""avtool batch: a whole folder, again and again until everything is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avtool.cli import console, options
from avtool.errors import AvtoolError, BatchFailures, InputError, OutputError, UsageError
from avtool.files import OutputPlan, check_writable, output_names, printable
from avtool.settings import DEFAULT_FORMATS, STDOUT, OutputSettings, Settings, extensions, resolve

if TYPE_CHECKING:
    from avtool.batch.journal import Journal
    from avtool.batch.plan import Job
    from avtool.batch.scheduler import Outcome
    from avtool.session import Session
    from avtool.timeline import MediaInfo


def command(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder of videos; folders inside it are searched too.", show_default=False
        ),
    ],
    output: options.BatchOutput = None,
    formats: options.Formats = None,
    model: options.Model = None,
    visual: options.Visual = None,
    audio: options.Audio = None,
    classes: options.Classes = None,
    device: options.Device = None,
    min_score: options.MinScore = None,
    nms: options.Nms = None,
    sigma: options.Sigma = None,
    max_events: options.MaxEvents = None,
    start: options.Start = None,
    end: options.End = None,
    audio_track: options.AudioTrack = None,
    allow_partial: options.AllowPartial = None,
    max_pixels: options.MaxPixels = None,
    max_seconds: options.MaxSeconds = None,
    overwrite: options.Overwrite = None,
    progress: options.Progress = None,
    quiet: options.Quiet = None,
    config: options.Config = None,
) -> int:
    """Localize every video of a folder into a mirrored tree of results.

    Finished results are skipped, so stopping and starting again costs nothing. Bad files are reported and left out
    (exit 7). OUT/.avtool holds a journal, summary.json and failures.csv.
    """
    settings, wanted = resolve(context.params, config)
    console.configure(wanted.progress, wanted.quiet)
    return batch_folder(folder, settings, wanted)


def batch_folder(folder: Path, settings: Settings, output: OutputSettings) -> int:
    """Plans, runs, records and closes; returns the exit code."""
    from avtool.batch.journal import Journal
    from avtool.batch.plan import find_videos

    if output.output in (None, STDOUT) or output.beside:
        raise UsageError("batch needs a folder for its results", hint=f"avtool batch {printable(folder)} -o OUT")
    if not folder.is_dir():
        raise InputError(f"{printable(folder)} is not a folder", hint="for single files: avtool localize FILE...")
    out = Path(str(output.output))
    formats = dict.fromkeys(("json", *(output.formats or DEFAULT_FORMATS)))  # the JSON says what is finished
    videos = list(find_videos(folder))
    plans = list(output_names(videos, out, extensions(formats), root=folder).values())
    check_writable(out)
    if not plans:
        console.current().warn("no videos were found", "no_videos", str(folder))
        return 0
    run = _Run(folder, settings, output, Journal(out))
    return run.all(plans)


class _Run:
    """One run over a folder: what its stages share."""

    def __init__(self, folder: Path, settings: Settings, output: OutputSettings, journal: Journal) -> None:
        self._folder, self._settings, self._output, self._journal = folder, settings, output, journal
        self._total = 0

    def all(self, plans: Sequence[OutputPlan]) -> int:
        self._total = len(plans)
        readable = [(one, media) for one in plans if (media := self._probe(one)) is not None]
        if readable:
            self._localize(readable)
        counts = self._journal.close()
        console.current().note(", ".join(f"{number} {state}" for state, number in counts.items() if number), **counts)
        return BatchFailures.exit_code if self._journal.failures else 0

    def _localize(self, readable: Sequence[tuple[OutputPlan, MediaInfo]]) -> None:
        from avtool.batch.local import InlinePool
        from avtool.batch.scheduler import WorkerSpec, run
        from avtool.session import Session

        with Session(self._settings) as session:
            session.load()
            console.current().announce(str(session.device), session.title)
            jobs = [job for one, media in readable if (job := self._job(one, media, session)) is not None]
            pool = InlinePool(session, lambda job: console.current().progress(job.name))
            pool.start(WorkerSpec(self._settings))
            run(jobs, pool, self._record)

    def _name(self, one: OutputPlan) -> str:
        return one.input.relative_to(self._folder).as_posix()

    def _probe(self, one: OutputPlan) -> MediaInfo | None:
        from avtool.session import probe_input

        try:
            return probe_input(one.input, self._settings)
        except AvtoolError as error:
            self._fail(one, error)
            return None

    def _job(self, one: OutputPlan, media: MediaInfo, session: Session) -> Job | None:
        """What is to be done about one file; None if it is finished or cannot be done."""
        from avtool.batch.plan import Job, is_finished
        from avtool.batch.scheduler import Outcome

        fingerprint = session.fingerprint(media)
        try:
            if is_finished(one, fingerprint, self._output.overwrite):
                self._record(Outcome(self._name(one), "skipped"))
                return None
        except AvtoolError as error:
            self._fail(one, error)
            return None
        return Job(one.input, self._name(one), media.duration, fingerprint, one.files)

    def _fail(self, one: OutputPlan, error: AvtoolError) -> None:
        from avtool.batch.scheduler import Outcome

        self._record(Outcome(self._name(one), "failed", 1, 0, (), error.exit_code, error.what, error.why, error.hint))

    def _record(self, outcome: Outcome) -> None:
        say = console.current()
        self._journal.add(outcome)
        for code, message in outcome.notices:
            say.warn(message, code, outcome.name)
        if outcome.what:
            say.error(_error_of(outcome))
        if outcome.state == "done":
            number = f"{len(self._journal.outcomes)}/{self._total}"
            text = f"{number}  {outcome.name}      {outcome.events} event{'s' * (outcome.events != 1)}"
            say.note(text, file=outcome.name, state="done", events=outcome.events)
        if outcome.exit_code == OutputError.exit_code:
            check_writable(Path(str(self._output.output)))  # a full disk would fail every other file as well


def _error_of(outcome: Outcome) -> AvtoolError:
    error = AvtoolError(outcome.what, outcome.why, outcome.hint)
    error.exit_code = outcome.exit_code
    return error
