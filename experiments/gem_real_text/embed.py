"""Embeds the passages into a store. Stopped, the same command continues; several parts may run at the same time.

python experiments/gem_real_text/embed.py --encoder CHECKPOINT --texts FOLDER --out runs/gem_real_text
python experiments/gem_real_text/embed.py --encoder builtin --texts FOLDER --out runs/gem_real_text
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from texts import passages

TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="builtin", help="folder of a checkpoint, or builtin")
    parser.add_argument("--texts", help="folder of DOMAIN.jsonl files beside the bundled corpus")
    parser.add_argument("--out", default="runs/gem_real_text")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--per-domain", type=int, default=1300)
    arguments = parser.parse_args()
    from jaxmix.data.embeddings import write_embedding_store
    from jaxmix.models.encoders.load import load_encoder

    found = passages(arguments.texts, arguments.per_domain)
    is_builtin = arguments.encoder == "builtin"
    options = {"sample": [t for texts in found.values() for t in texts]} if is_builtin else {"max_length": TOKENS}
    started, used = time.time(), time.process_time()
    encoder = load_encoder(arguments.encoder, **options)
    folder = Path(arguments.out) / ("builtin" if is_builtin else "checkpoint")
    record = folder / f"time-{arguments.part}.jsonl"

    def report(done: int, total: int, shard: object) -> None:
        line = {"rows": shard.rows, "seconds": time.time() - started, "cpu_seconds": time.process_time() - used}
        with record.open("a") as file:
            file.write(json.dumps({"shard": shard.source, **line}) + "\n")
        print(f"{done}/{total} {shard.source} {line}", flush=True)

    write_embedding_store(
        folder, texts_by_shard=found, encoder=encoder, part=(arguments.part, arguments.parts), report=report
    )


if __name__ == "__main__":
    main()
