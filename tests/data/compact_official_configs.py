"""Makes tests/data/official_configs.json: what each official config says, in little space.

    python tests/data/compact_official_configs.py ../shared/reference/official_configs.json

An entry is ["parent", {keys it says otherwise}, [keys it leaves at their defaults]]; the parent is
the earlier entry that leaves least to say, "" for none. Two entries hold the defaults of the keys
that the official projects add. Files without keys of their own (Base-*) are left out.
"""

import argparse
import json
from pathlib import Path

HERE = Path(__file__).parent


def compact(full: dict[str, dict]) -> dict[str, list]:
    """Entries as differences from one another."""
    entries: dict[str, list] = {}
    for name, keys in full.items():
        if "/Base-" not in name:
            options = [difference(keys, full[other], other) for other in entries]
            entries[name] = min([difference(keys, {}, ""), *options], key=lambda e: len(str(e)))
    return entries


def difference(keys: dict, parent: dict, name: str) -> list:
    """The entry of `keys` below a parent of that name."""
    own = {k: v for k, v in keys.items() if k not in parent or parent[k] != v}
    return [name, own, sorted(parent.keys() - keys.keys())]


def expand(entries: dict[str, list]) -> dict[str, dict]:
    """The inverse of `compact`."""
    full: dict[str, dict] = {"": {}}
    for name, (parent, own, left_out) in entries.items():
        full[name] = {k: v for k, v in {**full[parent], **own}.items() if k not in left_out}
    del full[""]
    return full


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    entries = compact(json.loads(parser.parse_args().source.read_text(encoding="utf-8")))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(e)}" for name, e in entries.items())
    (HERE / "official_configs.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
