"""What the shipped GNU Radio Companion flowgraphs call in their variables, snippets and message collectors."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.message_collector import Receiver
from ..blocks.picture_transmitter import Serve
from ..blocks.runtime import Failsafe
from ..blocks.waveforms.air import Air
from ..blocks.waveforms.downlink import Downlink
from ..errors import ScenarioError
from . import csi_feedback, random_access, semantic_downlink
from .picture_schedule import DrawnPictures, every_user, known_csi
from .radios import make_radio, requested_settings
from .random_access import first_failure
from .runfolder import RunFolder, provenance
from .scenario import Scenario, load_scenario, scenario_dict

_POLL_S = 0.1


def make_air(scenario: Scenario) -> Air:
    """The air of a scenario's loopback radio, for a channel emulator."""
    radio = make_radio(scenario)
    radio.configure(requested_settings(scenario))
    return radio.air  # type: ignore[attr-defined]


def make_downlink(scenario: Scenario) -> Downlink:
    """The air to the users of a scenario of CSI feedback or the picture downlink, for a downlink emulator."""
    radio = make_radio(scenario)
    radio.configure(requested_settings(scenario))
    return radio.downlink().downlink


def check_antennas(scenario: Scenario, n_antennas: int, n_users: int | None = None) -> None:
    """Compare a scenario with the numbers of antennas, and of users of CSI feedback, that a flowgraph is drawn for.

    Raises:
        ScenarioError: they differ.
    """
    if scenario.radio.n_antennas != n_antennas:
        raise ScenarioError(
            f"scenario {scenario.name} has radio.n_antennas={scenario.radio.n_antennas}, this flowgraph is drawn for "
            f"{n_antennas}: choose another scenario, or connect the ports of all antennas in the flowgraph"
        )
    if n_users is None:
        return
    given = "no section [csi]" if scenario.csi is None else f"csi.n_users={scenario.csi.n_users}"
    if scenario.csi is None or scenario.csi.n_users != n_users:
        raise ScenarioError(
            f"scenario {scenario.name} has {given}, this flowgraph is drawn for {n_users} users that feed CSI back: "
            "choose another scenario, or draw a receiver for every user in the flowgraph"
        )


def let_wait(transmitter: Any, scenario: Scenario) -> None:
    """Let a sounding transmitter run ahead of the channel emulator, which waits for the users' answers.

    Only the stream of the first antenna goes there: the others keep the transmitter from running ahead of the users.
    """
    transmitter.set_min_output_buffer(0, csi_feedback.waiting_samples(scenario))


def tail_samples(scenario: Scenario, air: Air | None = None) -> int:
    """Silence after the last frame that lets channel and receiver finish it, in samples.

    Args:
        scenario: numerology.
        air: the channel on the way, whose delay is added; None for a replay.
    """
    return random_access.tail_samples(scenario, None if air is None else air.truth)


def picture_tail_samples(scenario: Scenario) -> int:
    """Silence after the last frame that lets the air and the users of the picture downlink finish it, in samples."""
    radio = make_radio(scenario)
    radio.configure(requested_settings(scenario))
    return semantic_downlink.picture_tail_samples(scenario, radio)


def serve_drawn_pictures(scenario: Scenario) -> Serve:
    """What a picture transmitter asks: all users in turn, with drawn pictures, and CSI as the scenario says."""
    from .csi_feedback_run import make_codec

    wanted = scenario.pictures
    if wanted is None:
        raise ScenarioError(
            f"scenario {scenario.name} has no section [pictures]; choose semantic-lab, or add the section"
        )
    codec = make_codec(scenario) if wanted.csi == "fed back" else None
    return every_user(scenario, DrawnPictures(wanted.side, scenario.seed), known_csi(scenario, codec))


def scenario_of_run(folder: str | Path, otherwise: str = "lab") -> Scenario:
    """The scenario that a run was made with; a shipped one as long as there is no such run.

    The second case keeps a flowgraph valid in the editor before its recording exists.
    """
    run = RunFolder(Path(folder))
    return run.scenario() if run.run_json.is_file() else load_scenario(otherwise)


def begin_run(folder: str | Path, scenario: Scenario) -> None:
    """Make the folder of a run, and note in its run.json how it is made, so that its recording can be replayed.

    An earlier run in the folder is replaced.

    Raises:
        ScenarioError: the folder holds something that is no run.
        StorageError: it cannot be written.
    """
    run = RunFolder(Path(folder))
    run.create(overwrite=True)
    decides: dict[str, Any] = {"detector": scenario.detector.name}
    if scenario.pictures is not None:
        from .semantic_downlink_run import make_picture_codec, picture_model_facts

        decides = {"model": picture_model_facts(scenario, make_picture_codec(scenario))}
    elif scenario.csi is not None:
        from .csi_feedback_run import make_codec, model_facts

        decides = {"model": model_facts(make_codec(scenario))}
    run.write_json(
        run.run_json,
        {
            "format": 1,
            "kind": f"{scenario.kind} flowgraph",
            **provenance(),
            "scenario": scenario_dict(scenario),
            **decides,
        },
    )


def print_decision(fields: dict[str, Any], snapshots: np.ndarray) -> None:
    """Print one decision of the activity detector as a line."""
    users = " ".join(str(user) for user in fields["users"]) or "none"
    print(  # noqa: T201
        f"frame {fields['frame']:5d}  L = {fields['length']:2d}  beacon {fields['snr_db']:5.1f} dB  "
        f"CFO {fields['cfo_hz']:8.1f} Hz  {1e3 * fields['detect_s']:5.2f} ms  active: {users}",
        flush=True,
    )


def print_csi(fields: dict[str, Any], _: np.ndarray) -> None:
    """Print one slot of CSI feedback as a line: the SNR behind the combining of every user that was decoded."""
    told = "  ".join(f"user {user} {fields['word_snr_db'][user]:4.1f} dB" for user in fields["users"]) or "none"
    print(  # noqa: T201
        f"frame {fields['frame']:5d}  beacon {fields['snr_db']:5.1f} dB  CFO {fields['cfo_hz']:8.1f} Hz  "
        f"{1e3 * fields['decode_s']:5.2f} ms  decoded: {told}",
        flush=True,
    )


def keep_pictures(folder: str | Path) -> Receiver:
    """What a message collector does with a user's pictures: they are written into the run's folder, and told of."""
    from PIL import Image

    run = RunFolder(Path(folder))

    def keep(fields: dict[str, Any], pixels: np.ndarray) -> None:
        from .semantic_downlink_run import picture_path

        path = picture_path(run, fields["frame"], fields["user"])
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.reshape(fields["rows"], fields["columns"], 3)).save(path)
        # In one piece: every user's pictures come in a thread of their own.
        sys.stdout.write(
            f"frame {fields['frame']:5d}  user {fields['user']:2d}  SINR {fields['sinr_db']:5.1f} dB  "
            f"{1e3 * fields['decode_s']:5.2f} ms  {path}\n"
        )
        sys.stdout.flush()

    return keep


def guard(top_block: Any, when_done: Callable[[], object] | None = None) -> threading.Thread:
    """Stop a running flowgraph as soon as one of its semair blocks meets an error, and tell the error.

    Call it when the flowgraph has started. Without it an error in a block ends that block in silence.

    Args:
        top_block: the started flowgraph, whose attributes are its blocks.
        when_done: called, in another thread, when the flowgraph has come to its end by itself or by an error.

    Returns:
        The watching thread. It ends with the flowgraph.
    """
    ended = threading.Event()

    def wait() -> None:
        top_block.wait()
        ended.set()

    def watch() -> None:
        while not ended.wait(_POLL_S) and first_failure(_blocks(top_block)) is None:
            pass
        error = first_failure(_blocks(top_block))
        if error is not None:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
            top_block.stop()
            ended.wait()
        if when_done is not None:
            when_done()

    threading.Thread(target=wait, name="flowgraph", daemon=True).start()
    watcher = threading.Thread(target=watch, name="flowgraph guard", daemon=True)
    watcher.start()
    return watcher


def warm_up(top_block: Any) -> None:
    """Load networks and compile what is compiled at first use, one block after another; call it before the start.

    Blocks that do so in threads of their own wait for each other at best, and crash in libraries at worst.
    """
    for block in _blocks(top_block):
        block.warm_up()


def raise_failure(top_block: Any) -> None:
    """Raise the first error that a block of a flowgraph met, if one did; call it when the flowgraph has stopped."""
    error = first_failure(_blocks(top_block))
    if error is not None:
        raise error


def _blocks(top_block: Any) -> list[Failsafe]:
    return [block for block in vars(top_block).values() if isinstance(block, Failsafe)]
