"""GNU Radio block: the transmitter of a user terminal, which keeps to the beacon that it hears."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from .messages import pack, unpack
from .runtime import Failsafe, gr, guarded, pmt, time_value
from .waveforms.frame import FrameFormat
from .waveforms.user_terminal import BeaconTracker, TerminalUsers

_IDLE_S = 2e-3
_AGREE_SAMPLES = 1.0
# Soundings on their way through radio and buffers; and how many must agree.
_SOUNDING_PATIENCE_S = 3.0
_AGREEING = 3
_MOST_DOUBTS = 2
# Distances of soundings vary, so that an echo of the wrong one agrees with no other.
_SPACING_S = (0.05, 0.15)


@dataclass(frozen=True)
class _Burst:
    """Samples to be sent from a place of the stream, or of the radio's clock, on."""

    at: int
    samples: np.ndarray


class UserTerminal(Failsafe, gr.sync_block):
    """Sends the bursts of a terminal's users, in the access slots of the frames that it hears.

    Stream out: complex samples, one chain. Two kinds of radios:

    - With a clock (`sounding` None): the stream holds bursts alone, each tagged `tx_sob`, `tx_time` and `tx_eob`.
    - Without: the stream never pauses. How much later than the transmitted stream the received one counts is learnt by
      hearing oneself: soundings are sent until three agree, and one now and then behind the slots of a frame tells
      whether it still holds; where a beacon stood at the wrong place, one is enough.

    Nothing is sent before the beacon was heard some times in a row, nor, without a clock, before the delay is known.
    Both begin anew, and what was planned is dropped, where a beacon stands at the wrong place, too many are missing, or
    a sounding is not heard where it should be.

    Message in `frames`: of a frame synchroniser. Message in `preambles`: of a preamble search for `sounding`. Message
    out `sent`, one per frame in which something is sent: {frame, start, cfo_hz, length, users}, `start` being the
    place of the access slot on the receiver's clock. Message out `events`: {event, frame}.

    Args:
        frame_format: numerology and slots.
        users: whose bursts.
        amplitude: of a user's cell.
        lead_s: how far ahead of the received stream, or with a clock of the last beacon, bursts are handed over.
        turnaround_samples: by which the receiver hears the transmitter later than the radio's clock says.
        sounding: complex64, (n,), a sequence that no one else sends; needed for radios without a clock.
        check_frames: distance of the soundings that look whether the delay still holds.
        settle_frames: beacons heard in a row before anything is sent.
        lost_frames: beacons missing in a row until nothing is sent.

    Attributes:
        counts: beacons `heard`, frames `sent`, frames `skipped` before it could begin; what went wrong: late, dropped
            (planned before something went wrong), beacon_lost, beacon_jumped, realigned, clipped.
        turnaround_samples: as given, or as learnt; None: not known yet.
    """

    def __init__(
        self,
        frame_format: FrameFormat,
        users: TerminalUsers,
        amplitude: float,
        *,
        lead_s: float = 0.25,
        turnaround_samples: float = 0.0,
        sounding: np.ndarray | None = None,
        check_frames: int = 32,
        settle_frames: int = 8,
        lost_frames: int = 8,
    ) -> None:
        gr.sync_block.__init__(self, name="semair user terminal", in_sig=None, out_sig=[np.complex64])
        fmt = frame_format
        self.frame_format = fmt
        self.users = users
        self.amplitude = amplitude
        self.tracker = BeaconTracker(fmt.frame_samples, fmt.cp_samples / 2, settle_frames, lost_frames)
        self.check_frames = check_frames
        self.counts: Counter[str] = Counter()
        self._sounding = sounding
        self.turnaround_samples: float | None = turnaround_samples if sounding is None else None
        self._lead_samples = max(math.ceil(lead_s * fmt.sample_rate_hz), 3 * fmt.frame_samples)
        self._position = 0
        self._next = 0
        self._starting = True
        self._queue: deque[_Burst] = deque()
        self._begun = 0
        self._pending: int | None = None
        self._sounded: deque[int] = deque(maxlen=64)
        self._echoes: deque[float] = deque(maxlen=64)
        self._doubts = 0
        self._former: float | None = None
        self._next_sounding = 0
        self._spacing = np.random.default_rng(1)
        self._checked = 0
        # A sounding behind the slots needs room before the next frame.
        room = fmt.frame_samples - fmt.used_samples - 2 * fmt.guard_samples
        self._can_check = sounding is not None and len(sounding) <= room
        self.message_port_register_in(pmt.intern("frames"))
        self.message_port_register_in(pmt.intern("preambles"))
        self.message_port_register_out(pmt.intern("sent"))
        self.message_port_register_out(pmt.intern("events"))
        self.set_msg_handler(pmt.intern("frames"), self.handle_frame)
        self.set_msg_handler(pmt.intern("preambles"), self.handle_preamble)

    @property
    def is_timed(self) -> bool:
        """Whether the radio has a clock."""
        return self._sounding is None

    @property
    def is_sending(self) -> bool:
        """Whether it knows where frames are."""
        return self.tracker.settled and self.turnaround_samples is not None

    @guarded
    def handle_frame(self, message: Any) -> None:
        """Hear a beacon."""
        fields, _ = unpack(message)
        frame = fields["frame"]
        self.counts["heard"] += 1
        heard = self.tracker.hear(frame, fields["sample_time"] + fields["fraction"], fields["cfo_hz"])
        if heard in ("lost", "jumped"):
            self._begin_anew(f"beacon_{heard}", frame)
            self._next = 0
            if heard == "jumped":
                # Either the base station began anew, or samples were lost here: one sounding tells.
                former = self.turnaround_samples or self._former
                self._forget_turnaround()
                self._former = former
        self._plan()

    @guarded
    def handle_preamble(self, message: Any) -> None:
        """Hear oneself."""
        fields, _ = unpack(message)
        heard = fields["start"] + fields["fraction"]
        if self.turnaround_samples is None:
            # An echo of what was sent before everything began anew says nothing.
            if self._sounded:
                self._echoes.append(heard)
                self._align()
            return
        due = [place for place in self._sounded if abs(heard - place - self.turnaround_samples) <= _AGREE_SAMPLES]
        if not due:
            self._doubt()
        elif due[-1] == self._pending:
            self._pending = None
            self._doubts = 0

    def _align(self) -> None:
        """Take the delay that held before, where an echo agrees with it; else that on which most echoes agree."""
        apart = np.subtract.outer(np.array(self._echoes), np.array(self._sounded)).ravel()
        agree = np.abs(apart[:, None] - apart) <= _AGREE_SAMPLES / 2
        best = int(np.argmax(agree.sum(axis=1)))
        if self._former is not None and np.abs(apart - self._former).min() <= _AGREE_SAMPLES:
            self.turnaround_samples = self._former
        elif agree[best].sum() >= _AGREEING:
            self.turnaround_samples = float(apart[agree[best]].mean())
        else:
            return
        self._former = None
        self._echoes.clear()
        if not self._begun:
            # A sounding that waits would stand in the way of bursts.
            self._queue.clear()
        self._checked = self.tracker.frame
        self._tell("aligned", self.tracker.frame)
        self._plan()

    def _doubt(self) -> None:
        """A sounding was not heard where it should be; more than one of them mean that the delay has changed."""
        self._pending = None
        self._doubts += 1
        if self._doubts >= _MOST_DOUBTS:
            self._begin_anew("realigned", self.tracker.frame)
            self._forget_turnaround()

    def _forget_turnaround(self) -> None:
        if not self.is_timed:
            self.turnaround_samples = self._pending = self._former = None
            self._doubts = 0
            self._echoes.clear()
            self._sounded.clear()
            self._next_sounding = self._position

    def _begin_anew(self, why: str, frame: int) -> None:
        """Drop what is planned; a burst that has begun goes on."""
        self.counts[why] += 1
        self._tell(why, frame)
        self._pending = None
        self._starting = True
        while len(self._queue) > (1 if self._begun else 0):
            self._queue.pop()
            self.counts["dropped"] += 1

    def _tell(self, event: str, frame: int) -> None:
        self.message_port_pub(pmt.intern("events"), pack({"event": event, "frame": frame}))

    def _plan(self) -> None:
        """Queue the bursts of the frames that come next."""
        if not self.tracker.settled or self.turnaround_samples is None:
            return
        fmt = self.frame_format
        self._next = max(self._next, self.tracker.frame + 1)
        while True:
            frame = self._next
            start = self.tracker.place(frame)
            at = round(start + fmt.access_start - self.turnaround_samples)
            begin = self.tracker.place(self.tracker.frame) if self.is_timed else self._position
            if at > begin + self._lead_samples:
                return
            self._next += 1
            late = not self.is_timed and at < self._position
            if not late:
                self._starting = False
                self._send(frame, at)
                self._check(frame, start)
            elif len(self.users.active(frame)):
                # At the beginning the stream is ahead of the first frames that could be planned.
                why = "skipped" if self._starting else "late"
                self.counts[why] += 1
                if not self._starting:
                    self._tell(why, frame)

    def _send(self, frame: int, at: int) -> None:
        samples = self.users.samples(frame, self.tracker.cfo_hz, self.amplitude)
        if samples is None:
            return
        self._queue.append(_Burst(at, samples))
        self.counts["sent"] += 1
        if max(np.abs(samples.real).max(), np.abs(samples.imag).max()) > 1.0:
            self.counts["clipped"] += 1
        fields = {
            "frame": frame,
            "start": at + (self.turnaround_samples or 0.0),
            "cfo_hz": self.tracker.cfo_hz,
            "length": self.users.length(frame),
            "users": [int(user) for user in self.users.active(frame)],
        }
        self.message_port_pub(pmt.intern("sent"), pack(fields))

    def _check(self, frame: int, start: float) -> None:
        """Queue a sounding behind a frame's slots now and then."""
        if not self._can_check or self._pending is not None or frame < self._checked + self.check_frames:
            return
        assert self._sounding is not None and self.turnaround_samples is not None
        fmt = self.frame_format
        self._checked = frame
        self._pending = round(start + fmt.used_samples + fmt.guard_samples - self.turnaround_samples)
        self._sounded.append(self._pending)
        self._queue.append(_Burst(self._pending, self._sounding))

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Put out the next part of the stream."""
        return self._timed(output_items[0]) if self.is_timed else self._unbroken(output_items[0])

    def _timed(self, out: np.ndarray) -> int:
        if not self._queue:
            # A short wait only: messages are heard in between.
            time.sleep(_IDLE_S)
            return 0
        burst = self._queue[0]
        first = self.nitems_written(0)
        n = min(len(out), len(burst.samples) - self._begun)
        out[:n] = burst.samples[self._begun : self._begun + n]
        if self._begun == 0:
            self.add_item_tag(0, first, pmt.intern("tx_sob"), pmt.PMT_T)
            self.add_item_tag(0, first, pmt.intern("tx_time"), time_value(burst.at, self.frame_format.sample_rate_hz))
        self._begun += n
        if self._begun == len(burst.samples):
            self.add_item_tag(0, first + n - 1, pmt.intern("tx_eob"), pmt.PMT_T)
            self._queue.popleft()
            self._begun = 0
        return n

    def _unbroken(self, out: np.ndarray) -> int:
        n = len(out)
        out[:] = 0
        self._sound()
        while self._queue and self._queue[0].at < self._position + n:
            burst = self._queue[0]
            offset = burst.at + self._begun - self._position
            if offset < 0:
                # Planned for before where the stream is.
                self.counts["late"] += 1
                self._queue.popleft()
                continue
            m = min(n - offset, len(burst.samples) - self._begun)
            out[offset : offset + m] += burst.samples[self._begun : self._begun + m]
            self._begun += m
            if self._begun < len(burst.samples):
                break
            self._queue.popleft()
            self._begun = 0
        self._position += n
        return n

    def _sound(self) -> None:
        """Send soundings where the delay is not known; give up waiting for one that nobody heard."""
        assert self._sounding is not None
        rate = self.frame_format.sample_rate_hz
        if self._pending is not None and self._position > self._pending + _SOUNDING_PATIENCE_S * rate:
            self._doubt()
        if self.turnaround_samples is None and self._position >= self._next_sounding and not self._queue:
            self._next_sounding = self._position + round(self._spacing.uniform(*_SPACING_S) * rate)
            self._sounded.append(self._next_sounding)
            self._queue.append(_Burst(self._next_sounding, self._sounding))
