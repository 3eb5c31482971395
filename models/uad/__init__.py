"""User activity detection: signal model, detectors, evaluation."""
