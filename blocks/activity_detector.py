"""GNU Radio block: decides which users are active, with any detector."""

from __future__ import annotations

import time

import numpy as np

from ..models.uad.detectors.base import Detector
from .messages import c32vector, extended, field
from .runtime import SLOT, Failsafe, gr, guarded, input_tags, pmt


class ActivityDetector(Failsafe, gr.sync_block):
    """Runs a detector on every access slot.

    Stream in: one vector per slot, as the access slot receiver writes it. Tags read: `slot`.

    Message out `decisions`: the slot's dictionary with {users (numbers of the active ones), scores (float64, one
    per user), flags (sum of the detector's `Flag`s), detect_s (time the detector took), decided_ns} and the
    snapshots, row after row, as vector.

    The detector is warmed up when the flowgraph starts, so that the first slot does not pay for it.

    Args:
        detector: any detector of the engine interface.
        max_preamble_length: rows of the slot vectors.
        n_snapshots: antennas * groups.
        preamble_lengths: the lengths to warm up for.
    """

    def __init__(
        self,
        detector: Detector,
        max_preamble_length: int,
        n_snapshots: int,
        preamble_lengths: tuple[int, ...] = (),
    ) -> None:
        gr.sync_block.__init__(
            self,
            name="semair activity detector",
            in_sig=[(np.complex64, max_preamble_length * n_snapshots)],
            out_sig=None,
        )
        self.detector = detector
        self.n_snapshots = n_snapshots
        self.preamble_lengths = tuple(preamble_lengths) or (max_preamble_length,)
        self.decided = 0
        self.message_port_register_out(pmt.intern("decisions"))

    def warm_up(self) -> None:
        """Compile what the detector compiles at first use."""
        for length in sorted(set(self.preamble_lengths)):
            self.detector.warm_up(length, self.n_snapshots)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Decide the slots at hand."""
        vectors = input_items[0]
        first = self.nitems_read(0)
        slots = {tag.offset - first: tag.value for tag in input_tags(self, 0, len(vectors)) if pmt.equal(tag.key, SLOT)}
        for k, vector in enumerate(vectors):
            if k not in slots:
                raise ValueError(
                    f"slot vector {first + k} carries no `slot` tag: connect this input to an access slot receiver"
                )
            length = field(slots[k], "length")
            snapshots = vector[: length * self.n_snapshots].reshape(1, length, self.n_snapshots).copy()
            begin = time.perf_counter()
            result = self.detector.detect(snapshots, np.array([field(slots[k], "noise_power")]))
            fields = {
                "users": [int(user) for user in np.flatnonzero(result.active[0])],
                "scores": np.asarray(result.scores[0], np.float64),
                "flags": int(result.flags[0]),
                "detect_s": time.perf_counter() - begin,
                "decided_ns": time.monotonic_ns(),
            }
            message = pmt.cons(extended(slots[k], fields), c32vector(snapshots.reshape(-1)))
            self.message_port_pub(pmt.intern("decisions"), message)
            self.decided += 1
        return len(vectors)
