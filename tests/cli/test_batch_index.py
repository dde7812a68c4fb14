"""The index page that a batch leaves behind."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run


def test_batch_writes_it(avtool: Run, clip: Path, tmp_path: Path) -> None:
    from avtool.batch.jobs import Outcome
    from avtool.batch.report import write_index

    folder = tmp_path / "out" / "sub"
    assert avtool("localize", clip, "-o", folder, "-f", "json,html").code == 0
    write_index(tmp_path / "out", [Outcome("z.mp4", "failed", what="broken"), Outcome("a.mp4", "failed", what="gone")])
    text = (tmp_path / "out" / "index.html").read_text()
    assert 'href="./sub/clip.events.html"' in text and "2 events of 2 classes" in text
    assert text.index("a.mp4") < text.index("z.mp4")
