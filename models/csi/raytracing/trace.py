"""Trace rays through scenes of Sionna RT and write the paths of neighbouring users: run in an environment of its own.

Progress goes to standard output as one JSON object per line: {"done": drops, "total": drops, "scene": name}, and at
the end {"written": file, "drops": n, "skipped": n}. See requirements.txt for what it needs, `csi/raytraced.py` for
the file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import mitsuba as mi
import numpy as np

mi.set_variant("llvm_ad_mono_polarized")

import sionna.rt as rt  # noqa: E402  (takes the variant that is set)
from safetensors.numpy import save_file  # noqa: E402

FORMAT = "semair csi paths 1"
SCENES = ("munich", "etoile", "simple_street_canyon")
BASE_HEIGHT_M = 10.0
USER_HEIGHT_M = 1.5
# Users are within this range and this sector of broadside of a base station's array.
RANGE_M = (10.0, 120.0)
SECTOR_DEG = 120.0
# Least share of its sector that a base station sees from where it stands.
LEAST_SEEN = 0.15
# Distances of the further users of a drop from its first.
NEIGHBOURS_M = ((0.5, 1.5), (1.5, 3.0), (3.0, 5.0))
# Drops are told apart into splits by squares of this side: in every ten, eight train, one validates, one tests.
TILE_M = 20.0
SPLITS = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 2], np.uint8)
# Receivers of one call: memory grows with them.
BATCH_DROPS = 25


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--drops", type=int, default=600, help="of each scene")
    parser.add_argument("--bases", type=int, default=6, help="base stations of each scene")
    parser.add_argument("--frequency-hz", type=float, default=3.5e9)
    parser.add_argument("--depth", type=int, default=4, help="interactions of a path")
    parser.add_argument("--samples", type=int, default=50_000, help="rays that look for paths")
    parser.add_argument("--paths", type=int, default=24, help="strongest paths that are kept of each user")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.drops < args.bases or min(args.bases, args.depth, args.samples, args.paths) < 1:
        parser.error("needs at least one drop for each base station, and one of everything else")

    parts: list[dict[str, np.ndarray]] = []
    skipped = 0
    for number, name in enumerate(args.scenes):
        part, lost = trace_scene(name, args, np.random.default_rng((args.seed, SCENES.index(name))), number)
        parts.append(part)
        skipped += lost
    arrays = {key: np.ascontiguousarray(np.concatenate([part[key] for part in parts])) for key in parts[0]}
    settings = {key: getattr(args, key) for key in ("drops", "bases", "depth", "samples", "paths", "seed")}
    metadata = {
        "format": FORMAT,
        "scenes": json.dumps(args.scenes),
        "frequency_hz": repr(args.frequency_hz),
        "settings": json.dumps(settings),
        "tracer": f"sionna-rt {rt.__version__}",
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = args.output.with_name(args.output.name + ".part")
    try:
        unfinished.touch()
        readable = unfinished.stat().st_mode
        save_file(arrays, unfinished, metadata)
        # The library writes for the owner's eyes only.
        unfinished.chmod(readable)
        os.replace(unfinished, args.output)
    finally:
        unfinished.unlink(missing_ok=True)
    say(written=str(args.output), drops=len(arrays["scene"]), skipped=skipped)


def trace_scene(
    name: str, args: argparse.Namespace, rng: np.random.Generator, number: int
) -> tuple[dict[str, np.ndarray], int]:
    """Trace the drops of one scene. Returns arrays as in `csi/raytraced.py`, and how many drops saw no ray."""
    scene = rt.load_scene(getattr(rt.scene, name))
    scene.frequency = args.frequency_hz
    scene.tx_array = rt.PlanarArray(num_rows=1, num_cols=1, pattern="iso", polarization="V")
    scene.rx_array = scene.tx_array
    solver = rt.PathSolver()
    kept: list[dict[str, np.ndarray]] = []
    skipped = 0
    per_base = -(-args.drops // args.bases)
    for base in range(args.bases):
        at, broadside = place_base(scene, rng)
        scene.add(rt.Transmitter("base", [*map(float, at), BASE_HEIGHT_M]))
        wanted = min(per_base, args.drops - base * per_base)
        for first in range(0, wanted, BATCH_DROPS):
            users = place_users(scene, at, broadside, min(BATCH_DROPS, wanted - first), rng)
            found = trace_users(scene, solver, users, at, broadside, args)
            seen = (found["gains_re"] ** 2 + found["gains_im"] ** 2).sum(-1).all(-1)
            skipped += int((~seen).sum())
            here = {key: value[seen] for key, value in found.items()}
            here["scene"] = np.full(int(seen.sum()), number, np.uint8)
            here["base"] = np.full(int(seen.sum()), base, np.uint16)
            tiles = np.floor(users[seen, 0] / TILE_M).astype(np.int64)
            # A square's split depends on where it is and on nothing else.
            here["split"] = SPLITS[np.array([hash_tile(number, *tile) for tile in tiles], int) % len(SPLITS)]
            kept.append(here)
            say(done=base * per_base + first + len(users), total=args.drops, scene=name)
        scene.remove("base")
    return {key: np.concatenate([part[key] for part in kept]) for key in kept[0]}, skipped


def hash_tile(number: int, x: int, y: int) -> int:
    """Number of a square that looks random."""
    return int(np.random.SeedSequence((number, int(x) & 0xFFFFFFFF, int(y) & 0xFFFFFFFF)).generate_state(1)[0])


def outdoors(scene: rt.Scene, points: np.ndarray) -> np.ndarray:
    """Tell which points (point, 2) have nothing but ground below the sky; bool (point,)."""
    x, y = points.astype(np.float32).T
    down = mi.Ray3f(mi.Point3f(x, y, np.full(len(x), 500, np.float32)), mi.Vector3f(0, 0, -1))
    hit = scene.mi_scene.ray_intersect(down)
    return np.array(hit.is_valid()) & (np.array(hit.p.z) < 1.0)


def seen_from(scene: rt.Scene, at: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Tell which points (point, 2) at users' height a base station sees; bool (point,)."""
    ends = np.column_stack([points, np.full(len(points), USER_HEIGHT_M)]).astype(np.float32)
    start = np.array([*at, BASE_HEIGHT_M], np.float32)
    ray = mi.Ray3f(mi.Point3f(start.tolist()), mi.Vector3f((ends - start).T.copy()))
    ray.maxt = 1.0
    return ~np.array(scene.mi_scene.ray_test(ray))


def place_base(scene: rt.Scene, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Choose a place in the open near the middle, and the direction of broadside in which it sees most."""
    box = scene.mi_scene.bbox()
    middle = np.array([box.min[0] + box.max[0], box.min[1] + box.max[1]]) / 2
    half = np.minimum(np.array([box.max[0] - box.min[0], box.max[1] - box.min[1]]) / 2 - RANGE_M[1], 250)
    half = np.maximum(half, 30)
    for _ in range(1000):
        at = middle + rng.uniform(-1, 1, 2) * half
        around = at + rng.uniform(-2, 2, (32, 2))
        if not outdoors(scene, around).all():
            continue
        best, most = 0.0, 0.0
        for broadside in rng.uniform(-np.pi, np.pi, 8):
            points = in_sector(at, broadside, 256, rng)
            share = (outdoors(scene, points) & seen_from(scene, at, points)).mean()
            if share > most:
                best, most = float(broadside), float(share)
        # A yard with houses all around is no place for a base station.
        if most > LEAST_SEEN:
            return at, best
    sys.exit("no place for a base station found")


def in_sector(at: np.ndarray, broadside: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Points uniform over the sector in front of a base station; (point, 2)."""
    low, high = RANGE_M
    distance = np.sqrt(rng.uniform(low**2, high**2, n))
    angle = broadside + np.deg2rad(SECTOR_DEG) * (rng.random(n) - 0.5)
    return at + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)


def place_users(scene: rt.Scene, at: np.ndarray, broadside: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Choose places of users, all of a drop in the open and in one square; (drop, user, 2)."""
    chosen: list[np.ndarray] = []
    while len(chosen) < n:
        first = in_sector(at, broadside, 512, rng)
        users = [first]
        for low, high in NEIGHBOURS_M:
            distance, angle = rng.uniform(low, high, len(first)), rng.uniform(-np.pi, np.pi, len(first))
            users.append(first + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1))
        drops = np.stack(users, 1)
        tiles = np.floor(drops / TILE_M)
        fine = (tiles == tiles[:, :1]).all((1, 2))
        fine &= outdoors(scene, drops.reshape(-1, 2)).reshape(drops.shape[:2]).all(1)
        chosen.extend(drops[fine])
    return np.stack(chosen[:n])


def trace_users(
    scene: rt.Scene,
    solver: rt.PathSolver,
    users: np.ndarray,
    at: np.ndarray,
    broadside: float,
    args: argparse.Namespace,
) -> dict[str, np.ndarray]:
    """Find the paths to users (drop, user, 2). Returns their strongest, in the base station's coordinates."""
    drops, per_drop = users.shape[:2]
    for index, place in enumerate(users.reshape(-1, 2)):
        scene.add(rt.Receiver(f"user{index}", [*map(float, place), USER_HEIGHT_M]))
    try:
        paths = solver(
            scene,
            max_depth=args.depth,
            samples_per_src=args.samples,
            refraction=False,
            diffraction=True,
            seed=args.seed,
        )
    finally:
        for index in range(drops * per_drop):
            scene.remove(f"user{index}")
    count = drops * per_drop
    valid = np.array(paths.valid).reshape(count, -1)
    delays = np.where(valid, np.array(paths.tau).reshape(count, -1), 0).astype(np.float64)
    gains = (np.array(paths.a[0]) + 1j * np.array(paths.a[1])).reshape(count, -1).astype(np.complex128)
    # The solver leaves the carrier's turns along the path to the user of its coefficients.
    gains = np.where(valid, gains, 0) * np.exp(-2j * np.pi * args.frequency_hz * delays)
    zenith = np.array(paths.theta_t).reshape(count, -1)
    azimuth = np.array(paths.phi_t).reshape(count, -1)
    cosines = np.where(valid, np.sin(zenith) * np.sin(azimuth - broadside), 0)
    direct = valid & (np.array(paths.interactions).reshape(-1, count, valid.shape[1]) == 0).all(0)

    if valid.shape[1] < args.paths:
        room = ((0, 0), (0, args.paths - valid.shape[1]))
        delays, gains, cosines = np.pad(delays, room), np.pad(gains, room), np.pad(cosines, room)
    order = np.argsort(-np.abs(gains), axis=1)[:, : args.paths]
    delays, gains, cosines = (np.take_along_axis(part, order, 1) for part in (delays, gains, cosines))
    there = gains != 0
    # What is weaker than the strongest by more than this adds nothing that a code could carry.
    there &= np.abs(gains) >= 10 ** (-40 / 20) * np.abs(gains).max(1, keepdims=True)
    first = np.where(there, delays, np.inf).min(1, keepdims=True)
    delays = np.where(there, delays - np.where(np.isfinite(first), first, 0), 0)
    power = np.sqrt((np.abs(np.where(there, gains, 0)) ** 2).sum(1, keepdims=True))
    gains = np.where(there, gains, 0) / np.where(power > 0, power, 1)
    turn = np.array([[np.cos(broadside), np.sin(broadside)], [-np.sin(broadside), np.cos(broadside)]])
    shape = (drops, per_drop, args.paths)
    return {
        "positions_m": ((users - at) @ turn.T).astype(np.float32),
        "line_of_sight": direct.any(1).reshape(drops, per_drop).astype(np.uint8),
        "delays_s": delays.reshape(shape).astype(np.float32),
        "cosines": cosines.reshape(shape).astype(np.float32),
        "gains_re": gains.real.reshape(shape).astype(np.float32),
        "gains_im": gains.imag.reshape(shape).astype(np.float32),
    }


def say(**what: object) -> None:
    """Tell whoever started this how far it is."""
    print(json.dumps(what), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
