"""Plants fixed one-line faults in a copy of the tree, one at a time; each must be caught by the tests named beside it.

Run by `make mutants`; words after it (`make mutants MUTANTS="nms mask"`) choose faults by their description, `--list`
shows them. Exit status 1: a fault survived, or a line to be changed is not there any more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SECONDS = 300  # a fault that makes its tests hang is caught as well
LEFT_OUT = (".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")


@dataclass(frozen=True)
class Mutant:
    """One fault: in `file` the only occurrence of `old` becomes `new`, and every test in `caught_by` must fail."""

    fault: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]


MUTANTS = (
    Mutant(
        "a death of the process that workers are forked from counted once for each of them",
        "avtool/batch/local.py",
        "not ready and not self._nursery.is_blamed",
        "not ready",
        ("tests/batch/test_kill.py::test_the_origin_of_many_workers_is_killed_before_they_are_ready",),
    ),
    Mutant(
        "temporaries of processes that have ended and were not asked how are left",
        "avtool/files.py",
        "return not _is_zombie(pid)",
        "return True",
        ("tests/test_files.py::test_a_process_that_nobody_has_asked_how_it_ended_writes_no_more",),
    ),
    Mutant(
        "more files decoded at once than there are processors",
        "avtool/media/ahead.py",
        "max(1, min(processors, AT_ONCE))",
        "AT_ONCE",
        ("tests/media/test_ahead.py::test_one_decoder_does_one_file_after_another",),
    ),
    Mutant(
        "a file that was given up keeps the next one from its decoder",
        "avtool/media/ahead.py",
        "            free(child)\n",
        "            free(child) if not self._given_up else None\n",
        ("tests/media/test_ahead.py::test_a_file_that_is_given_up_lets_the_next_one_begin",),
    ),
    Mutant(
        "files in hand blamed for the death of the process that workers are forked from",
        "avtool/batch/local.py",
        "node_lost=not blamed)",
        "node_lost=False)",
        ("tests/batch/test_kill.py::test_the_origin_of_the_workers_is_killed",),
    ),
    Mutant(
        "times shifted by a segment",
        "avtool/timegrid.py",
        "return row * self.stride + self.segment / 2",
        "return row * self.stride + self.segment * 3 / 2",
        ("tests/test_timegrid.py::test_rows_of_the_half_second_grid",),
    ),
    Mutant(
        "the end of a long file is not analysed",
        "avtool/timegrid.py",
        "if starts[-1] + size < rows:",
        "if starts[-1] + size < rows - 1:",
        ("tests/test_timegrid.py::test_windows",),
    ),
    Mutant(
        "a segment is counted in two windows",
        "avtool/timegrid.py",
        "yield Window(start, stop, cuts[i], cuts[i + 1])",
        "yield Window(start, stop, cuts[i], min(cuts[i + 1] + 1, stop))",
        ("tests/test_timegrid.py::test_windows",),
    ),
    Mutant(
        "rename of the temporary file left out: results are written in place",
        "avtool/files.py",
        "with _temporary(path.parent) as file:\n            yield file\n            file.flush()\n"
        "            _sync(file.fileno())\n            file.close()\n            os.replace(file.name, path)",
        'with open(path, "wb") as file:\n            yield file',
        (
            "tests/test_files.py::test_file_is_invisible_until_the_block_ends",
            "tests/test_files.py::test_any_exception_leaves_the_old_file_and_nothing_else",
        ),
    ),
    Mutant(
        "a result is renamed before it is on the disk",
        "avtool/files.py",
        "            _sync(file.fileno())\n            file.close()",
        "            file.close()",
        ("tests/test_files.py::test_order_is_write_sync_rename_sync_folder",),
    ),
    Mutant(
        "temporary files stay behind",
        "avtool/files.py",
        "    finally:\n        with suppress(OSError):\n            os.unlink(name)",
        "    finally:\n        with suppress(OSError):\n            os.stat(name)",
        ("tests/test_files.py::test_any_exception_leaves_the_old_file_and_nothing_else",),
    ),
    Mutant(
        "an interrupt leaves the temporary file",
        "avtool/files.py",
        "for temporary in list(_live):",
        "for temporary in list(_swept):",
        ("tests/test_files.py::test_interrupt_removes_what_is_being_written",),
    ),
    Mutant(
        "two inputs write one file",
        "avtool/files.py",
        "if other != path:",
        "if other.name == path.name != other.name:",
        ("tests/test_files.py::test_collisions_name_both_inputs",),
    ),
    Mutant(
        "checkpoints may run code",
        "avtool/tensorfiles.py",
        "weights_only=True",
        "weights_only=False",
        ("tests/test_weights.py::test_bad_checkpoints", "tests/test_weights.py::test_unpickling_is_without_code"),
    ),
    Mutant(
        "weights with a wrong hash load",
        "avtool/weights.py",
        "if known is not None and digest != known:",
        "if known is not None and len(digest) != len(known):",
        ("tests/test_weights.py::test_bad_files_in_place_of_shipped_weights",),
    ),
    Mutant(
        "a download is put in place unchecked",
        "avtool/download.py",
        "if why := self._check(content):",
        "if (why := self._check(content)) and not content.size:",
        ("tests/test_download.py::test_servers_that_cannot_be_dealt_with",),
    ),
    Mutant(
        "the answer to a resumed request is appended wherever it begins",
        "avtool/download.py",
        "if first != begin:",
        "if first > begin:",
        ("tests/test_download.py::test_what_is_sent_whole_replaces_what_was_here",),
    ),
    Mutant(
        "two processes write to one unfinished download",
        "avtool/files.py",
        "fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        ("tests/test_download.py::test_two_at_once_take_turns",),
    ),
    Mutant(
        "AVE's sound does not drift",
        "avtool/extraction.py",
        "AVE_SOUND = Fraction(24, 25)",
        "AVE_SOUND = Fraction(25, 25)",
        ("tests/test_extraction.py::test_ave_sound_drifts",),
    ),
    Mutant(
        "something may follow the tensors of a file",
        "avtool/tensorfiles.py",
        "if position != data_bytes:",
        "if position > data_bytes:",
        ("tests/test_weights.py::test_malformed_headers",),
    ),
    Mutant(
        "the experimental tier is shown by default",
        "avtool/vocabulary.py",
        "if tier == DEFAULT)",
        "if tier in TIERS)",
        ("tests/test_vocabulary.py::test_select_tiers",),
    ),
    Mutant(
        "whitelist removed: a playlist may name other files",
        "avtool/media/probe.py",
        '        "format_whitelist": FORMATS,\n',
        "",
        (
            "tests/cli/test_media_cases.py::test_every_construction_gets_its_verdict[concat_list_mp4]",
            "tests/cli/test_media_cases.py::test_every_construction_gets_its_verdict[playlist_sibling_m3u8]",
        ),
    ),
    Mutant(
        "the start offset of a file is not subtracted",
        "avtool/media/probe.py",
        "return Fraction(self.container.start_time or 0, av.time_base)",
        "return Fraction(0)",
        ("tests/cli/test_media_cases.py::test_every_construction_gets_its_verdict[start_3600_mkv]",),
    ),
    Mutant(
        "overlap of sound not dropped",
        "avtool/media/samples.py",
        "late = max(0, self.next - index)",
        "late = 0",
        ("tests/cli/test_media_cases.py::test_every_construction_gets_its_verdict[ts_joined_recordings]",),
    ),
    Mutant(
        "holes in the sound are closed: what follows comes early",
        "avtool/media/samples.py",
        "        yield from self.silence(index)\n",
        "",
        (
            "tests/cli/test_media_cases.py::test_every_construction_gets_its_verdict[late_sound_mp4]",
            "tests/cli/test_media_cases.py::test_every_construction_gets_its_verdict[sound_hole]",
        ),
    ),
    Mutant(
        "cover art is taken for a video",
        "avtool/media/probe.py",
        " and not s.disposition & still]",
        "]",
        ("tests/cli/test_media_cases.py::test_every_construction_gets_its_verdict[cover_art_mp3]",),
    ),
    Mutant(
        "pictures are not turned upright",
        "avtool/media/frames.py",
        "np.rot90(rgb, -rotation(frame) // 90)",
        "np.rot90(rgb, 0)",
        ("tests/media/test_decoding.py::test_pictures_are_upright",),
    ),
    Mutant(
        "windows count equally up to their cuts",
        "avtool/detect/stitch.py",
        "own = taper(window, rows)[:, None]",
        "own = np.ones((len(curve), 1), np.float32)",
        ("tests/detect/test_stitch.py::test_shifting_the_windows_keeps_the_events",),
    ),
    Mutant(
        "Soft-NMS skipped: overlapping proposals keep their scores",
        "avtool/detect/softnms.py",
        "        scores *= _weights(overlap, rule)",
        "        scores *= np.float32(1)",
        ("tests/detect/test_softnms.py::test_equals_the_textbook_loop",),
    ),
    Mutant(
        "Soft-NMS across classes",
        "avtool/detect/softnms.py",
        "return [part[order[a:b]] for a, b in pairwise([0, *bounds, len(order)])] if len(part) else []",
        "return [part] if len(part) else []",
        ("tests/detect/test_softnms.py::test_equals_the_textbook_loop",),
    ),
    Mutant(
        "overlap of segments that only touch is counted",
        "avtool/detect/softnms.py",
        "np.maximum(overlap, 0, out=overlap)",
        "np.abs(overlap, out=overlap)",
        ("tests/detect/test_softnms.py::test_equals_the_textbook_loop",),
    ),
    Mutant(
        "a mask off: window attention sees padded rows",
        "avtool/models/loco.py",
        "seen = valid[..., None, :] & (ahead >= 0) & (ahead <= window)",
        "seen = torch.ones_like(valid)[..., None, :] & (ahead >= 0) & (ahead <= window)",
        (
            "tests/models/test_loco.py::test_window_attention_equals_masked_dense_attention",
            "tests/models/test_loco.py::test_right_padding_changes_nothing",
        ),
    ),
    Mutant(
        "modalities swapped: each stream attends to itself",
        "avtool/models/loco.py",
        "v_next, mask_next = visual_block(v, a if cross else v, mask)",
        "v_next, mask_next = visual_block(v, v if cross else a, mask)",
        ("tests/models/test_crossing.py::test_each_stream_attends_to_the_other",),
    ),
    Mutant(
        "windows do not move: the adaptation learns nothing",
        "avtool/models/loco.py",
        "positions = centre + (1 + scale) * local + offset * (w / 2)",
        "positions = centre + local",
        (
            "tests/models/test_loco.py::test_target_windows_are_placed_scaled_and_clamped",
            "tests/models/test_loco.py::test_gradients_reach_the_adaptation_from_the_start",
        ),
    ),
    Mutant(
        "left and right offsets swapped in training",
        "avtool/training/losses.py",
        "sides = torch.stack((time[:, None] - events.segments[:, 0], events.segments[:, 1] - time[:, None]), 2)",
        "sides = torch.stack((events.segments[:, 1] - time[:, None], time[:, None] - events.segments[:, 0]), 2)",
        ("tests/training/test_losses.py::test_assignment_equals_the_point_by_point_rule",),
    ),
    Mutant(
        "the threshold is ignored",
        "avtool/detect/events.py",
        "if round(float(score), DECIMALS) >= _threshold(vocabulary, int(label), min_score)",
        "if round(float(score), DECIMALS) >= 0",
        ("tests/detect/test_events.py::test_each_class_has_its_own_threshold_unless_one_is_given",),
    ),
    Mutant(
        "what is lost of a file is not noticed",
        "avtool/session.py",
        "if allowed or lost <= LOST_SECONDS or lost <= LOST_SHARE * span:",
        "if allowed or lost <= LOST_SECONDS or lost <= span:",
        ("tests/cli/test_localize.py::test_partly_decodable_files",),
    ),
    Mutant(
        "times of a span count from its start, not from the file's",
        "avtool/pipeline.py",
        "starts = np.clip(proposals.starts + float(offset), low, high)",
        "starts = np.clip(proposals.starts, low, high)",
        ("tests/cli/test_localize.py::test_a_span_of_the_file",),
    ),
    Mutant(
        "results are replaced unasked",
        "avtool/cli/inputs.py",
        "if existing and not output.overwrite:",
        "if existing and output.overwrite:",
        ("tests/cli/test_localize.py::test_existing_results_are_not_replaced_unasked",),
    ),
    Mutant(
        "the sound window of a segment is one segment late",
        "avtool/features/extract.py",
        "first = self._centre() - self._before",
        "first = self._centre() - self._before - round(self._grid.stride * self._rate)",
        ("tests/cli/test_localize.py::test_what_the_json_says",),
    ),
    Mutant(
        "events are calibrated and curves are not",
        "avtool/pipeline.py",
        "    _calibrate(stitched, info.vocabulary)",
        "    _ = stitched, info.vocabulary",
        ("tests/test_pipeline.py::test_curves_are_on_the_scale_of_events",),
    ),
    Mutant(
        "times are rounded to seconds in the JSON",
        "avtool/timeline.py",
        "round(float(seconds), 3)",
        "round(float(seconds))",
        ("tests/test_timeline.py::test_numbers_are_rounded_at_write_time_only",),
    ),
    Mutant(
        "overlapping events overwrite each other in the SRT",
        "avtool/formats/subtitles.py",
        "active.update(opening.get(start, ()))",
        "active = set(opening.get(start, ())) or active",
        ("tests/formats/test_subtitles.py::test_overlapping_events_share_cues_the_strongest_first",),
    ),
    Mutant(
        "the environment beats a flag",
        "avtool/settings.py",
        "        if name in _CONVERTERS and value is not None and value != () and value != []:",
        "        if name in _CONVERTERS and name not in merged and value is not None and value != () and value != []:",
        ("tests/test_settings.py::test_flag_beats_environment_beats_file",),
    ),
)


def faults_in_the_table(mutants: tuple[Mutant, ...] = MUTANTS, repo: Path = REPO) -> list[str]:
    """What is wrong with the table itself: a line to be changed, or a test, that is not there (any more)."""
    wrong = []
    for mutant in mutants:
        file = repo / mutant.file
        count = file.read_text(encoding="utf-8").count(mutant.old) if file.is_file() else 0
        if count != 1:
            wrong.append(f"{mutant.fault}: its line occurs {count} times in {mutant.file}")
        for test in mutant.caught_by:
            path, _, name = test.partition("::")
            source = (repo / path).read_text(encoding="utf-8") if (repo / path).is_file() else ""
            if f"def {name.split('[')[0]}(" not in source:
                wrong.append(f"{mutant.fault}: there is no test {test}")
    return wrong


def main(words: list[str]) -> int:
    """Plants the chosen faults and says which were caught; returns the exit status."""
    chosen = [m for m in MUTANTS if not words or any(word.lower() in m.fault.lower() for word in words)]
    if "--list" in words:
        print("\n".join(f"{m.file}: {m.fault}" for m in MUTANTS))
        return 0
    if wrong := faults_in_the_table(tuple(chosen)):
        print("\n".join(wrong))
        return 1
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(REPO, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        tests = sorted({test for mutant in chosen for test in mutant.caught_by})
        if failed := failures(tree, tests):
            print("these tests fail without any fault:", *sorted(failed), sep="\n  ")
            return 1
        survivors = [mutant for mutant in chosen if not is_caught(tree, mutant)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults caught")
    return 1 if survivors else 0


def is_caught(tree: Path, mutant: Mutant) -> bool:
    """Plants one fault, runs its tests, takes it back, and reports."""
    file = tree / mutant.file
    sound = file.read_text(encoding="utf-8")
    file.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    failed = failures(tree, list(mutant.caught_by))
    file.write_text(sound, encoding="utf-8")
    missed = [test for test in mutant.caught_by if not any(name.startswith(test) for name in failed)]
    print(
        f"{'SURVIVED' if missed else 'caught  '}  {mutant.fault}",
        *(f"not by {test}" for test in missed),
        sep="\n          ",
    )
    return not missed


def failures(tree: Path, tests: list[str]) -> set[str]:
    """Names of the tests that fail in a tree; all of them if they do not end."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",  # a changed file of the same size within a second would not be compiled again
        "AVTOOL_SHARED": os.environ.get("AVTOOL_SHARED") or str(REPO.parent / "shared"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return set(tests)
    failed = {match[1] for match in re.finditer(r"^(?:FAILED|ERROR) (\S+?::\S+)", done.stdout, re.MULTILINE)}
    if done.returncode not in (0, 1) or (done.returncode == 1) != bool(failed):
        raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
