"""Separate source and channel coding of CSI with LDPC of gr-fec and QAM, beside codes of analog symbols."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec

from ..blocks.channel_coding import CodedModulation
from ..models.csi import evaluate
from ..models.csi.channels import PRESETS
from ..models.csi.coded import DESIGN_SNR_DB, FIXED, SEPARATE, SeparateCoding, SeparateContender
from ..models.csi.evaluate import KLT, Contender, LinearContender, load_contender


@lru_cache(maxsize=2)
def linear_contender(numerology: str) -> LinearContender:
    """The linear code of a numerology, made once."""
    return LinearContender(PRESETS[numerology])


@lru_cache(maxsize=2)
def separate_coding(numerology: str) -> SeparateCoding:
    """Separate coding for a numerology, with the network that is ours where it is shipped; made once."""
    config, linear = PRESETS[numerology], linear_contender(numerology)
    if numerology not in evaluate.shipped():
        return SeparateCoding(config, CodedModulation, linear)
    card, network = load_contender(numerology)
    return SeparateCoding(config, CodedModulation, linear, network, tuple(card.scenario.get("lengths", ())))


def contenders(numerology: str, names: Sequence[str] | None = None) -> list[Contender]:
    """Contenders of a numerology, separate coding among them.

    Args:
        numerology: one of `models.csi.channels.PRESETS`.
        names: shipped weights, folders, "klt", "separate", "separate-fixed"; None: all of them that fit, separate
            ones where GNU Radio is there.

    Raises:
        ScenarioError: numerology or name is unknown, or weights are for other taps or antennas.
    """
    ours, fitting = (KLT, SEPARATE, FIXED), evaluate.fitting(numerology)
    if names is None:
        # Networks and linear code can be compared without GNU Radio.
        names = [*fitting, *(ours if find_spec("gnuradio") else (KLT,))]
    found = {one.name: one for one in evaluate.contenders(numerology, [name for name in names if name not in ours])}
    if KLT in names:
        found[KLT] = linear_contender(numerology)
    for name, fixed_at_db in ((SEPARATE, None), (FIXED, DESIGN_SNR_DB)):
        if name in names:
            found[name] = SeparateContender(separate_coding(numerology), fixed_at_db)
    return [found[name] for name in names]
