"""Figures of radios and virtual radios: real drivers, sustained rates, exact times, faults and fuzzed clients."""

from __future__ import annotations

from . import _hardware_calibration, _hardware_faults, _hardware_link, _hardware_n210, _hardware_pluto
from .entry import Measurement

AREA = "hardware"


def measurements(quick: bool) -> list[Measurement]:
    """All measurements of this area; `quick` takes shorter runs."""
    return [
        *_hardware_pluto.measurements(quick),
        *_hardware_n210.measurements(quick),
        *_hardware_calibration.measurements(quick),
        *_hardware_faults.measurements(quick),
        *_hardware_link.measurements(quick),
    ]
