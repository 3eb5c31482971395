"""The frame of CSI feedback: whatever its lengths, slots follow each other and no cell is used twice."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.blocks.waveforms.csi_frame import CsiFrame, CsiSlots
from semair.blocks.waveforms.feedback import feedback_burst, receive_feedback
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.sounding import sounding_slot


@st.composite
def frames(draw) -> CsiFrame:
    n_fft = draw(st.sampled_from([64, 128, 256]))
    n_used = 2 * draw(st.integers(n_fft // 8, n_fft // 2 - 2))
    comb = draw(st.integers(1, 4))
    n_subcarriers = 2 * draw(st.integers(n_fft // 8, n_used // 2))
    most_taps = max(int(n_subcarriers // comb), 3)
    fmt = FrameFormat(
        n_fft=n_fft,
        cp_samples=draw(st.integers(2, n_fft // (2 * comb))),
        n_used=n_used,
        n_groups=4,
        max_preamble_length=1,
        guard_samples=draw(st.integers(0, 99)),
        frame_samples=400_000,
    )
    slots = CsiSlots(
        n_users=draw(st.integers(1, 4)),
        n_subcarriers=n_subcarriers,
        n_taps=draw(st.integers(3, min(most_taps, n_subcarriers))),
        lead_taps=1.0,
        comb=comb,
        sounding_repeats=draw(st.integers(2, 4)),
        turnaround_samples=draw(st.integers(0, 999)),
        pilot_symbols=draw(st.integers(1, 3)),
        feedback_length=draw(st.integers(1, 300)),
    )
    return CsiFrame(fmt, slots, draw(st.integers(1, 9)))


@given(frames())
def test_slots_follow_each_other(frame):
    ends = [
        frame.frame_format.beacon_samples,
        frame.sounding_start,
        frame.downlink_samples,
        frame.feedback_start,
        *(frame.part_start(user) for user in range(frame.slots.n_users)),
        frame.part_start(frame.slots.n_users),
        frame.noise_start,
        frame.used_samples,
        frame.frame_format.frame_samples,
    ]
    assert ends == sorted(ends)
    assert sounding_slot(frame).shape == (frame.n_antennas, frame.sounding_samples)


@given(frames())
def test_no_cell_is_used_twice(frame):
    cells = [tuple(cell) for cell in frame.code_cells]
    assert len(set(cells)) == len(cells) == frame.slots.feedback_length
    assert all(0 <= symbol < frame.code_symbols and 0 <= cell < frame.frame_format.n_used for symbol, cell in cells)
    assert not {cell for _, cell in cells} & set(frame.pilot_cells.tolist())
    assert len(frame.pilot_cells) > 0


WIDE = FrameFormat(
    n_fft=256, cp_samples=40, n_used=128, n_groups=4, max_preamble_length=1, guard_samples=9, frame_samples=400_000
)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_words_of_any_length_survive_a_wire(n_users, pilot_symbols, length, seed):
    slots = CsiSlots(n_users=n_users, n_subcarriers=128, n_taps=16, pilot_symbols=pilot_symbols, feedback_length=length)
    frame = CsiFrame(WIDE, slots, 2)
    rng = np.random.default_rng(seed)
    words = rng.standard_normal((n_users, length, 2)) @ np.array([1, 1j])
    words /= np.sqrt(np.mean(np.abs(words) ** 2, axis=1, keepdims=True))
    samples = np.zeros((2, frame.used_samples - frame.feedback_start), np.complex64)
    for user, word in enumerate(words):
        begin = user * frame.part_samples
        samples[:, begin : begin + frame.part_samples] = feedback_burst(frame, word)
    samples += 1e-4 * (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape))
    found = receive_feedback(samples, frame)
    assert found.heard.all()
    assert not found.flags.any()
    # What a channel estimate at the edges of the band leaves of single symbols.
    assert np.mean(np.abs(found.words - words) ** 2) < 0.1
