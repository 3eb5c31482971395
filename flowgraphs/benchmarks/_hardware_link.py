"""Figures of a whole link over real drivers: two virtual N210 hear users on virtual Plutos, beside the loopback radio.

`python -m semair.flowgraphs.benchmarks._hardware_link bench JSON` is the devices until its standard input ends;
`... run JSON` is the link, and writes one line of JSON. Each has a process of its own.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RadioError
from ...models.statistics import mean_ci95
from ..run import run_random_access
from ..runfolder import RunFolder, unpack_users
from ..scenario import parse_scenario
from .entry import Entry, Measurement, OnShare

_BASES, _USERS = ("127.0.2.70", "127.0.2.71"), ("127.0.2.72", "127.0.2.73", "127.0.2.74", "127.0.2.75")
_PPM = (2.0, -2.0, 2.0, -2.0)
_SNR_DB = -6.0
# Of a user at its antenna, and of the path to the base station.
_LEVEL_DBFS, _PATH_DB = -30.0, -10.0
_STEPS_DB = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0)
_SPEED = 0.2
_FRAME_S = 8192 / 625e3


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of links; none in a quick look, for each takes more than a minute."""
    if quick:
        return []
    names = ("link/snr-loss-to-loopback", "link/frames-accounted", "link/bursts-sent")
    return [Measurement(names, partial(four_channels, 800, 2000), 200.0)]


def four_channels(n_frames: int, n_reference: int, tell: OnShare) -> Iterator[Entry]:
    """The link at one SNR, and the loopback radio at that and others, between which its error probability lies.

    Args:
        n_frames: over the drivers.
        n_reference: on the loopback radio, at each SNR.
        tell: told the share done.
    """
    with tempfile.TemporaryDirectory(prefix="semair-link-") as place:
        errors = []
        for k, step in enumerate(_STEPS_DB):
            errors.append(float(_loopback(Path(place) / "loopback", _SNR_DB + step, n_reference).mean()))
            tell(0.4 * (k + 1) / len(_STEPS_DB))
        folder = Path(place) / "link"
        with _apart("bench", _bench()):
            found = _result("run", {"scenario": _link(), "folder": str(folder), "frames": n_frames})
        tell(0.95)
        run = RunFolder(folder)
        metrics, scenario = found["metrics"], run.scenario()
        per_slot = _errors_per_slot(run)
        sent = np.load(folder / "terminals.npy")
        truth = run.rows(run.truth)
    measured = mean_ci95(per_slot, 1 / len(_USERS))
    low, high = max(float(measured.low), 1e-6), float(measured.high)
    # By how much the loopback radio's SNR would have to be lower for the same errors.
    loss = [_loss_db(errors, value) for value in (float(measured.value), low, high)]
    settings = {
        "base": "2 virtual N210 (4 channels, MIMO cable), UHD",
        "users": "4 virtual Plutos, libiio, one user each",
        "ppm": list(_PPM),
        "frames": n_frames,
        "snr_db": _SNR_DB,
        "rate_hz": 625e3,
        "clock_speed": _SPEED,
        "error_probability": float(measured.value),
        "error_probability_ci95": [low, high],
        "loopback_frames": n_reference,
        "loopback_error_probability": dict(zip((f"{step:+g} dB" for step in _STEPS_DB), errors, strict=True)),
    }
    yield Entry("link/snr-loss-to-loopback", loss[0], (loss[1], loss[2]), "dB", "at most 1, at the same SNR", settings)
    frames, dropped = metrics["frames"], metrics["counts"]["slots_dropped"]
    accounted = (frames["matched"] + frames["missed"] + dropped) / (n_frames + scenario.quiet_frames)
    yield Entry(
        "link/frames-accounted",
        accounted if frames["sent"] == n_frames + scenario.quiet_frames else 0.0,
        None,
        "1",
        1.0,
        {
            **{name: frames[name] for name in ("sent", "decided", "missed", "false")},
            "dropped": dropped,
            "quiet": scenario.quiet_frames,
            "lost_samples": metrics["counts"]["lost_samples"],
        },
    )
    due = int(unpack_users(truth["active"], len(_USERS)).sum())
    # They plan ahead, beyond the last frame of the base station, too; one user each.
    known = sent[np.isin(sent["frame"], truth["frame"])]
    n_sent = len(np.unique(known[["frame", "terminal"]]))
    yield Entry(
        "link/bursts-sent",
        n_sent / due,
        None,
        "1",
        1.0,
        {
            "due": due,
            "sent": n_sent,
            "terminals": [
                {name: count for name, count in report.items() if isinstance(count, int)}
                for report in metrics["terminals"]
            ],
        },
    )
    tell(1.0)


def _loss_db(errors: list[float], value: float) -> float:
    """SNR at which the loopback radio errs as often, below the one at hand; errors fall as the SNR rises."""
    logs = np.log(np.maximum(errors, 1e-6))
    return -float(np.interp(-math.log(max(value, 1e-6)), -logs, _STEPS_DB))


def _scenario(snr_db: float) -> dict[str, Any]:
    return {
        "name": "link",
        "level": "perfect",
        "frame": {"sample_rate_hz": 625e3, "frame_samples": 8192, "group_width": 2},
        "users": {"n_users": len(_USERS), "activity": 0.5, "preamble_lengths": [8, 12]},
        "link": {"access_snr_db": snr_db},
        "sync": {"max_cfo_ppm": 3},
        "channel": {"kind": "rayleigh", "delay_spread_s": 1.5e-6},
    }


def _loopback(folder: Path, snr_db: float, n_frames: int) -> np.ndarray:
    """Share of wrong user decisions in each slot on the loopback radio; float, (slots,)."""
    scenario = parse_scenario({**_scenario(snr_db), "radio": {"n_antennas": 4, "frequency_hz": 1e9}}, "link")
    result = run_random_access(scenario, folder, n_frames=n_frames, record=False, overwrite=True)
    return _errors_per_slot(result.folder)


def _errors_per_slot(folder: RunFolder) -> np.ndarray:
    scenario, truth, decisions = folder.scenario(), folder.rows(folder.truth), folder.rows(folder.decisions)
    truth = truth[truth["frame"] >= scenario.quiet_frames]
    _, at, known = np.intersect1d(decisions["frame"], truth["frame"], return_indices=True)
    n_users = scenario.users.n_users
    wrong = unpack_users(decisions["active"][at], n_users) != unpack_users(truth["active"][known], n_users)
    return wrong.mean(axis=1)


def _link() -> dict[str, Any]:
    first, second = _BASES
    return {
        **_scenario(_SNR_DB),
        "radio": {
            "kind": "uhd",
            "address": f"type=usrp2,addr0={first},addr1={second},rx_subdev=A:0 A:0",
            "clock_source": "mimo",
            "time_source": "mimo",
            "n_antennas": 4,
            "frequency_hz": 1e9,
            "rx_gain_db": 0,
            "tx_gain_db": 31.5,
        },
        "terminals": [
            {
                "kind": "iio",
                "address": f"ip:{address}",
                "rx_gain_db": 0,
                "tx_gain_db": 0,
                "level_dbfs": _LEVEL_DBFS,
                "lead_s": 0.3,
            }
            for address in _USERS
        ],
    }


def _bench() -> dict[str, Any]:
    """Devices and an air whose noise makes the SNR that the loopback radio has by the scenario's word."""
    scenario = parse_scenario(_link(), "link")
    fmt = scenario.frame
    # A user's cell has this much more power than its mean over the whole band; the transform is unitary.
    cell_db = _LEVEL_DBFS + _PATH_DB + 10 * math.log10(fmt.n_fft / (fmt.n_groups * fmt.group_width))
    first, second = _BASES
    return {
        "seed": 5,
        "noise_dbfs": cell_db + 10 * math.log10(scenario.noise_power),
        "path_gain_db": _PATH_DB,
        "own_gain_db": 0.0,
        # Not a whole number of frames, so that no slot meets a change every time.
        "redraw_s": 1.37 * _FRAME_S,
        "speed": _SPEED,
        # A machine that is busy with other things computes the air later.
        "history_s": 3.0,
        "channel": scenario.channel.model_dump(mode="json"),
        "n210": [{"address": first}, {"address": second, "mimo_master": first}],
        "pluto": [{"address": address, "ppm": ppm} for address, ppm in zip(_USERS, _PPM, strict=True)],
        # The beacon reaches the terminals without fading, so that what is measured is the uplink.
        "paths": [{"sender": first, "receiver": address, "gain_db": 0.0} for address in _USERS]
        + [{"sender": first, "receiver": second, "gain_db": 0.0}],
    }


def _command(step: str, given: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", __name__, step, json.dumps(given)]


@contextmanager
def _apart(step: str, given: dict[str, Any]) -> Iterator[None]:
    """A step in a process of its own, once it has said a word, until the end."""
    process = subprocess.Popen(
        _command(step, given), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None and process.stdin is not None
        if not process.stdout.readline():
            raise RadioError(
                f"the virtual devices of the link do not start; are {', '.join((*_BASES, *_USERS))} taken?"
            )
        yield
    finally:
        process.stdin.close() if process.stdin else None
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _result(step: str, given: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(_command(step, given), capture_output=True, text=True, check=False, timeout=900)
    if done.returncode or "RESULT " not in done.stdout:
        raise RadioError(f"the link over virtual devices failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.split("RESULT ")[1])
    return found


def _main() -> None:
    given = json.loads(sys.argv[2])
    if sys.argv[1] == "bench":
        from ...hardware.virtual.bench import Bench, OpenBench

        with OpenBench(Bench.model_validate(given)):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            sys.stdin.read()
    else:
        result = run_random_access(
            parse_scenario(given["scenario"], "link"), Path(given["folder"]), n_frames=given["frames"], record=False
        )
        sys.stdout.write(f"RESULT {json.dumps({'metrics': result.metrics})}\n")


if __name__ == "__main__":
    _main()
