"""Coverage-guided fuzzing of the readers of files, with Atheris: python tests/fuzz/fuzz.py --seconds 600

Every reader gets an equal share of the time in a process of its own. A finding ends its process and is kept under
`--findings` for `python tests/fuzz/fuzz.py --target NAME FILE`. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> int:
    """Fuzz all readers in turn, or try files on one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="of all readers together")
    parser.add_argument("--target", action="append", help="only these readers")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for what goes wrong")
    parser.add_argument("--corpus", type=Path, help="folder where interesting files are kept from run to run")
    parser.add_argument("files", nargs="*", type=Path, help="try these once, instead of fuzzing")
    chosen = parser.parse_args()
    import readers

    names = chosen.target or list(readers.TARGETS)
    if chosen.files:
        return _try(names, chosen.files)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        corpus = chosen.corpus or Path(scratch) / "corpus"
        results = [_fuzz(name, chosen.seconds // len(names), corpus / name, chosen.findings) for name in names]
    for name, line in zip(names, results, strict=True):
        sys.stdout.write(f"{name:<12}{line}\n")
    return int(any("FINDING" in line for line in results))


def _try(names: list[str], files: list[Path]) -> int:
    import readers

    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        box = readers.Sandbox(Path(scratch))
        for name in names:
            for file in files:
                box.run(readers.TARGETS[name], file.read_bytes())
    return 0


def _fuzz(name: str, seconds: int, corpus: Path, findings: Path) -> str:
    """One reader in a process of its own: a line on executions, coverage and findings."""
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fuzz; fuzz.serve({name!r}, sys.argv)"
    )
    # Seconds per execution, and megabytes of the process, libraries included.
    limits = [
        "-timeout=100",
        "-rss_limit_mb=3000",
        f"-max_total_time={seconds}",
        "-max_len=20000",
        "-print_final_stats=1",
    ]
    command = [sys.executable, "-c", code, str(corpus), *limits, f"-artifact_prefix={findings}/{name}-"]
    # The fuzzer writes to one, Python's tracebacks go to the other.
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    (findings / f"{name}.log").write_text(done.stdout)
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stdout))
    covered = re.findall(r"cov: (\d+) ft: (\d+)", done.stdout) or [("0", "0")]
    line = (
        f"{stats.get('number_of_executed_units', '?'):>8} executions, {covered[0][0]} -> {covered[-1][0]} edges,"
        f" {covered[-1][1]} features, {stats.get('peak_rss_mb', '?')} MB at most"
    )
    return line if done.returncode == 0 else f"{line}, FINDING: see {findings / name}.log"


def serve(name: str, arguments: list[str]) -> None:
    """The process of one reader; its first argument is the corpus."""
    import atheris

    with atheris.instrument_imports(include=["semair.captures", "tarfile", "zipfile"]):
        import semair.captures.archive
        import semair.captures.importing
        import semair.captures.verify  # noqa: F401
    import readers

    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as scratch:
        place = Path(scratch) / "seeds"
        place.mkdir()
        for k, seed in enumerate(readers.seeds(name, place)):
            (Path(arguments[1]) / f"seed-{k}").write_bytes(seed)
        words = Path(scratch) / "words"
        words.write_text("".join(f'"{word}"\n' for word in readers.WORDS))
        box = readers.Sandbox(Path(scratch) / "box")
        target = readers.TARGETS[name]
        atheris.Setup([*arguments, f"-dict={words}"], lambda content: box.run(target, content))
        atheris.Fuzz()


def _memory() -> str | None:
    """A file system in memory, where there is one: the disk would be the slowest part."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
