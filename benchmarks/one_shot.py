"""One-shot networks judged, raced against classical phasing, and timed.

    python -m benchmarks.one_shot --holdout FILE --networks crysformer-dialanine-2A runs/unet/checkpoint.pt

Networks are bundled ones, by name, or checkpoints of ``ml_phaser train_one_shot``. Goes on where it was stopped; rows
of other weights are made anew. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.one_shot_race import METHODS, Crystal, alone, predicted, race
from benchmarks.one_shot_tables import markdown
from benchmarks.phasing.crystals import library, shared_data
from ml_phaser.atomic import atomic
from ml_phaser.cli.train_one_shot import averaged, passes_of, recipe_of
from ml_phaser.evaluation.one_shot import Blob, Plan, Report, evaluate, first, judge
from ml_phaser.evaluation.one_shot_report import brief
from ml_phaser.evaluation.one_shot_report import markdown as tables
from ml_phaser.networks.crysformer import CrysFormer
from ml_phaser.networks.store import load_one_shot, read_card
from ml_phaser.networks.unet import UNet
from ml_phaser.phasing.prediction import predict
from ml_phaser.report.record import json_safe
from ml_phaser.simulate.fragments import Library, load_library
from ml_phaser.simulate.one_shot import FAMILIES, OneShotRecipe, one_shot_batches
from ml_phaser.training.one_shot_networks import configure
from ml_phaser.training.record import processor, read_record, versions

PASSES = 8
BATCH = 4  # starts of a race at once
DRAW = 16  # crystals drawn at once: the same molecules for every network of a family with one cell
SEED = 50_000  # of the races' crystals


@dataclass(frozen=True, eq=False)
class Contestant:
    """A network under test. name : for the tables; digest : of its weights; samples : it was trained on; trained :
    passes it was trained with."""

    name: str
    network: UNet | CrysFormer
    digest: str
    samples: int | None
    trained: int

    @property
    def recipe(self) -> OneShotRecipe:
        return recipe_of(self.network.config)

    @classmethod
    def of(cls, what: str) -> Contestant:
        """A bundled network, by name, or a checkpoint, by path. Raises UserError."""
        path = Path(what)
        if path.suffix == ".pt":
            network, kind, totals = averaged(path)
            trained = passes_of(read_record(path.parent), network.config.recycled)
            return cls(f"{kind}, {path.parent.name}", network, digest(network), totals.get("samples"), trained)
        network, card = load_one_shot(what), read_card(what)
        run = card.facts.get("training_run", {})
        return cls(what, network, digest(network), run.get("samples"), card.facts["passes"])


def digest(network: torch.nn.Module) -> str:
    """The same for the same weights, however they are stored."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode() + value.float().numpy().tobytes())
    return found.hexdigest()[:12]


class Results:
    """OUT.json and OUT.md, rewritten after each row."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_suffix(".json")
        out.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        for part in ("run", "judged", "race", "latency"):
            self.rows.setdefault(part, {})
        self.rows["run"] = {"processor": processor("cpu"), "versions": versions()}

    def forget(self, network: str, digest: str) -> None:
        """Leave out races of a network with other weights."""
        rows = self.rows["race"].items()
        self.rows["race"] = {k: r for k, r in rows if r.get("network") != network or r["digest"] == digest}

    def add(self, part: str, key: str, row: dict[str, Any]) -> None:
        self.rows[part][key] = json_safe(row)
        with atomic(self.path) as tmp:
            tmp.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        with atomic(self.path.with_suffix(".md")) as tmp:
            tmp.write_text(markdown(self.rows), encoding="utf-8")
        print(f"{part}: {key}", file=sys.stderr, flush=True)


def judge_all(results: Results, contestants: list[Contestant], holdout: Library, crystals: int) -> None:
    """The tables of ``ml_phaser.evaluation.one_shot``, each network on its own data set."""
    for c in contestants:
        known = results.rows["judged"].get(c.name, {})
        if (known.get("digest"), known.get("crystals")) == (c.digest, crystals):
            continue
        plan = Plan(crystals=crystals, passes=PASSES)
        recycled = c.network.config.recycled
        report = evaluate(c.network, holdout, c.recipe, plan, recycled=recycled, trained=c.trained)
        row = {"digest": c.digest, "crystals": crystals, "samples": c.samples, **_report(report)}
        if c.recipe.family == "residues-15" and (shared_data() / "coordinates").is_dir():
            row["published"] = _report(published(c, holdout, min(crystals, 64)))
        results.add("judged", c.name, row)


def published(c: Contestant, holdout: Library, crystals: int) -> Report:
    """The same on fragments of CrysFormer's list of test ids, one of each entry in turn."""
    from ml_phaser.evaluation.published import published_batches

    names = (shared_data() / "coordinates" / "crysformer_test_ids.txt").read_text(encoding="ascii").split()
    chosen = names[7 :: max(1, len(names) // (2 * crystals))]
    plan = Plan(crystals=crystals, passes=PASSES)
    blob = Blob(one_shot_batches(holdout, DRAW, plan.seed + 1, c.recipe), plan.drawn)
    batches = published_batches(library("crysformer"), chosen, c.recipe)
    recycled = c.network.config.recycled
    return judge(c.network, batches, blob, c.recipe, plan, recycled=recycled, trained=c.trained, data=holdout.digest)


def _report(report: Report) -> dict[str, Any]:
    return {"brief": brief(report), "table": tables(report)}


def race_all(results: Results, contestants: list[Contestant], holdout: Library, crystals: int, seconds: float) -> None:
    """Networks alone, and every method from random phases and from each network's prediction, crystal by crystal."""
    for c in contestants:
        results.forget(c.name, c.digest)
        recipe = c.recipe
        batches = first(one_shot_batches(holdout, DRAW, SEED, recipe), crystals)
        everyone = ((batch, i) for batch in batches for i in range(len(batch.truth)))
        for number, (batch, i) in enumerate(everyone):
            crystal = Crystal.of(batch, i, recipe.d_min)
            base = {"family": recipe.family, "d_min": recipe.d_min, "crystal": crystal.fingerprint, "limit": seconds}
            own = {**base, "network": c.name, "digest": c.digest}
            phases: Any = None
            for way, method in (("alone", ""), *product(("random", "from the prediction"), METHODS)):
                facts = {**(base if way == "random" else own), "way": way, "method": method}
                key = " | ".join(str(x) for x in facts.values() if x != "")
                if key in results.rows["race"]:
                    continue
                if way == "random":
                    row = race(crystal, method, None, before=0.0, seconds=seconds, seed=number, batch=BATCH)
                else:
                    if phases is None:
                        predicted(c.network, crystal, 1)  # the first call builds tables and plans
                        phases, spent = predicted(c.network, crystal, PASSES)
                    if way == "alone":
                        row = alone(crystal, phases, spent)
                    else:
                        row = race(crystal, method, phases, before=spent, seconds=seconds, seed=number, batch=BATCH)
                results.add("race", key, {**facts, "number": number, **row})


def time_all(results: Results, contestants: list[Contestant], holdout: Library) -> None:
    """Seconds of one prediction: of the networks given, and of untrained ones of the papers' sizes."""
    todo: list[tuple[str, str, Any, OneShotRecipe]] = [(c.name, "as given", c, c.recipe) for c in contestants]
    for kind, family in product(("unet", "crysformer"), FAMILIES):
        make, config, recipe = configure(kind, family, 1.5, 1.5 / 3, parts=False, recycled=True)
        todo.append((f"{kind}, {family}", "untrained, default size", (make, config), recipe))
    for (name, what, made, recipe), threads in product(todo, (1, 2)):
        key = f"{name} | {threads} threads"
        tag = made.digest if isinstance(made, Contestant) else str(made[1])
        if results.rows["latency"].get(key, {}).get("of") == tag:
            continue
        network = made.network if isinstance(made, Contestant) else made[0](made[1]).eval()
        row = {
            "of": tag,
            "network": name,
            "what": what,
            "threads": threads,
            **latency(network, holdout, recipe, threads),
        }
        results.add("latency", key, row)


def latency(network: UNet | CrysFormer, holdout: Library, recipe: OneShotRecipe, threads: int) -> dict[str, Any]:
    """Least wall and processor seconds of a prediction of one crystal, after one and after PASSES passes."""
    batch = next(first(one_shot_batches(holdout, 1, SEED, recipe), 1))
    shape = tuple(batch.truth.shape[1:])
    torch.set_num_threads(threads)
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in network.parameters()), "grid": shape, "family": recipe.family,
        "d_min": recipe.d_min,
    }  # fmt: skip
    for passes in (1, PASSES):
        wall, busy, began = [], [], time.monotonic()
        while len(wall) < 2 or (len(wall) < 10 and time.monotonic() - began < 3):
            at = time.perf_counter(), time.process_time()
            predict(network, batch.half, shape, batch.parts, batch.lengths, passes)  # type: ignore[arg-type]
            wall.append(time.perf_counter() - at[0])
            busy.append(time.process_time() - at[1])
            if wall[0] > 10:  # the large ones: once is enough, and so is one pass
                break
        row[f"wall {passes}"], row[f"processor {passes}"] = min(wall), min(busy)
        if wall[0] > 10:
            break
    torch.set_num_threads(1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[], help="bundled networks, or checkpoint.pt of runs")
    parser.add_argument(
        "--holdout", type=Path, help="held-out coordinates: folder, or file of train pack [shared data]"
    )
    parser.add_argument("--parts", nargs="*", default=["judge", "race", "latency"], help="what to do [everything]")
    parser.add_argument("--crystals", type=int, default=256, help="to judge each network by")
    parser.add_argument("--raced", type=int, default=32, help="crystals of the race")
    parser.add_argument("--seconds", type=float, default=1.0, help="processor time of an entrant on a crystal")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "one_shot")
    args = parser.parse_args()
    torch.set_num_threads(1)
    holdout = load_library(args.holdout or shared_data() / "coordinates", "holdout")
    contestants = [Contestant.of(what) for what in args.networks]
    results = Results(args.out)
    results.rows["run"] |= {
        "held_out_sha256": holdout.digest,
        "arguments": {**vars(args), "out": None, "holdout": None},
    }
    if "judge" in args.parts:
        judge_all(results, contestants, holdout, args.crystals)
    if "race" in args.parts:
        race_all(results, contestants, holdout, args.raced, args.seconds)
    if "latency" in args.parts:
        time_all(results, contestants, holdout)


if __name__ == "__main__":
    main()
